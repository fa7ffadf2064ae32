"""What is done to averages: deconvolution for the eye and for pickers."""
