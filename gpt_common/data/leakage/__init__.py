"""Text that stands where it should not: validation text in the training text, training text in samples."""
