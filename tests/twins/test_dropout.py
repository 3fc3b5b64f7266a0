"""Shared dropout: the same bits in both twins, and in numpy."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
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


@pytest.mark.parametrize("rng", ["native", "shared"])
def test_what_is_kept_is_scaled_so_that_the_mean_stays(rng: str) -> None:
    # 10 000 activations: the share of zeros has a standard error of 0.0043, and 5 of them are allowed.
    rate, words, ones = 0.25, dropout_key(7, 3, 1), np.ones((100, 100), np.float32)
    torch_key, mlx_key = torch_gpt.layers.as_key(words, rng), mlx_gpt.layers.as_key(words, rng)
    for dropped in (
        torch_gpt.layers.dropout(torch.from_numpy(ones), rate, torch_key, 2, rng).numpy(),
        np.array(mlx_gpt.layers.dropout(mx.array(ones), rate, mlx_key, 2, rng)),
    ):
        assert set(np.unique(dropped)) == {np.float32(0), np.float32(1) / np.float32(1 - rate)}
        assert abs((dropped == 0).mean() - rate) < 0.022
