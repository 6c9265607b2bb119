"""Plots, videos and pages of a run's results; used by stages only."""
