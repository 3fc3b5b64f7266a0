"""Measurements made once, for a figure in docs/results.md."""
