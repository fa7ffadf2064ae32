"""One exposure of many frames: reading it, its motion, its average."""
