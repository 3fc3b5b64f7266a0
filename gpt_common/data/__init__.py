"""Corpora: the built-in one, prepared ones, and batches of them."""

from gpt_common.data.dataset import Dataset, check_block, open_dataset

__all__ = ["Dataset", "check_block", "open_dataset"]
