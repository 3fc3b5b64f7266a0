"""What a bigger model will reach: a grid of runs, the laws that fit it, and what they say of a budget."""
