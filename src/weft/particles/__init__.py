"""Particles: sub-tomograms, series of tilt images, and averages of them."""
