"""Corpora beyond one file: ready token shards, mixtures of prepared corpora, and data sets of a hub."""
