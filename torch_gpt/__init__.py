"""The GPT in PyTorch, the reference: CPU, MPS and CUDA."""
