"""The twins as the ladder sees them: numpy in, numpy out."""
