"""cupyx: its Fourier transforms only."""
