"""Tilt series: stacks, alignment, reconstruction."""
