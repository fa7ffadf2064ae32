"""Finding known structures in tomograms: templates, masks, the search, and what is taken from it."""
