"""Probes: what a model knows of the world of `stories`, asked where the right answer and its probability are known."""
