"""Deliberately wrong twins, which the ladder must reject."""
