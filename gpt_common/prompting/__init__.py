"""What is put to a model from a command line, and what it answers: samples, solved examples, choices, conversations."""
