"""`convert quantise`: a model in a few bits, calibrated on local text, with a table of what it cost."""
