"""Tensors on disk, streamed: safetensors, torch's zip archives, and pickles of plain values."""
