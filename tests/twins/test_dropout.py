"""Shared dropout: the same bits in both twins, and in numpy."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import torch

import mlx_gpt.layers
import torch_gpt.layers
from gpt_common.keyed import dropout_key
from gpt_common.network.dropout import threefry


def test_dropout_masks_are_the_same_bits_in_both_twins() -> None:
    key = dropout_key(7, 3, 1)
    for site, shape in ((0, (2, 5)), (4, (3, 3)), (1, (1,)), (9, (4, 7, 5))):
        mine = np.array(mlx_gpt.layers.uniform(mx.array(key), site, shape))
        theirs = torch_gpt.layers.uniform(torch.from_numpy(key), site, torch.Size(shape)).numpy()
        assert mine.tobytes() == theirs.tobytes()
        words = threefry(key + np.array([0, site], np.uint32), mine.size)
        assert (words.astype(np.float32) * np.float32(2**-32) == mine.ravel()).all()
