"""The rungs of the ladder, from bytes to generated text, and the oracles of the optimisers."""
