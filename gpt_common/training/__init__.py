"""What surrounds training and is the same in both twins: opening a run, its records, health and checkpoints."""
