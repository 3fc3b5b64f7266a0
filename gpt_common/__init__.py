"""What both twins must agree on. Never imports torch or mlx."""
