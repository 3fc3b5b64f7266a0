"""Tokenizers by a short name, for scripts: `from gpt_common.tokenizers import load_tokenizer`."""

from gpt_common.data.tokenizers import Tokenizer, load_tokenizer

__all__ = ["Tokenizer", "load_tokenizer"]
