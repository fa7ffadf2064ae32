"""Structures of single particles from their tilt images: a variational auto-encoder, and what it shows."""
