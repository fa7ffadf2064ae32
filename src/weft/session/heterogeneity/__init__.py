"""Heterogeneity in files: inputs, trainings, their analysis, selections."""
