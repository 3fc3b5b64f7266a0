"""How good a model is: loss on texts, tasks, questions, probes; what `evaluate` asks, and how it counts."""
