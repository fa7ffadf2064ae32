"""cupyx.scipy: its Fourier transforms only."""
