"""Adapters in and out, judged by the libraries themselves."""
