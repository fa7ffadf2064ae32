"""What the microscope does: optics, CTF, dose, splines, Fourier transforms. Pure functions of tensors."""
