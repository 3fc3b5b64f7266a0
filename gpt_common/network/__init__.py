"""The network on paper: names, shapes, initial weights, dropout bits, and what it costs in FLOPs and memory."""
