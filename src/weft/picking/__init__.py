"""Finding particles in micrographs: the segmentation network, its training, templates, picks."""
