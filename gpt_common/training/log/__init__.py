"""What is said and kept of a run while it goes on."""
