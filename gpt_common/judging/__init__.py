"""How good a model is, in figures that compare: loss over a whole text, bits per byte."""
