"""Rotary position embedding (Su et al. 2021): the angles, as both twins use them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpt_common.config import ModelConfig


def rotary_tables(model: ModelConfig) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Cosine and sine of position t times theta^(-2i / K) (section 3.2.2), each (T, K/2).

    Computed in float64 and rounded once, so that both twins rotate by the same bits.
    """
    K = model.rotary_size
    frequencies_K = model.rope_theta ** (-np.arange(0, K, 2, dtype=np.float64) / K)
    angles_TK = np.arange(model.block_size)[:, None] * frequencies_K
    return np.cos(angles_TK).astype(np.float32), np.sin(angles_TK).astype(np.float32)
