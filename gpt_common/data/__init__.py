"""Corpora: the built-in one, prepared ones, and batches of them."""

from gpt_common.data.catalogue import open_dataset
from gpt_common.data.dataset import Dataset, check_block

__all__ = ["Dataset", "check_block", "open_dataset"]
