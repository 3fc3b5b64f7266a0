"""Corpora beyond one file: shards, mixtures, data sets of a hub."""
