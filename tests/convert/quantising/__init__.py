"""`convert quantise`."""
