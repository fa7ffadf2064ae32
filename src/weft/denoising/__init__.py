"""Noise2noise: denoising learnt from two noisy pictures of the same thing."""
