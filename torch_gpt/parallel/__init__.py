"""Other engines than the flat sum of distributed.py, which PyTorch has and MLX has not."""
