"""Judging potentials: metrics, worst structures, predictions, plots, the report."""
