"""GGUF: random models, the reader that is asked, and the tests."""
