"""Dropout masks that both twins can make to the same bits.

A mask is a function of (seed, step, micro-step, site), where the sites are numbered in execution order. The bits come
from threefry-2x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), a counter-based hash in the
layout of `mx.random.uniform(key=...)`: for n words, n even, counter (i, n/2 + i) gives words i and n/2 + i.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
THREEFRY_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
THREEFRY_PARITY = 0x1BD11BDA


def threefry(key: Words, words: int) -> Words:
    """`words` pseudo-random words, (words,), from a key of two words. Equal to MLX's for an even number."""
    half = (words + 1) // 2
    counter = np.arange(half, dtype=np.uint32)
    return np.concatenate(threefry_2x32(key, counter, counter + np.uint32(half)))[:words]


def threefry_2x32(key: Words, left: Words, right: Words) -> tuple[Words, Words]:
    """The hash itself, with 20 rounds: two words for every pair of counters (left[i], right[i])."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(THREEFRY_PARITY))
    with np.errstate(over="ignore"):
        left, right = left + keys[0], right + keys[1]
        for group in range(5):
            for rotation in THREEFRY_ROTATIONS[group % 2]:
                left = left + right
                right = left ^ ((right << np.uint32(rotation)) | (right >> np.uint32(32 - rotation)))
            left = left + keys[(group + 1) % 3]
            right = right + keys[(group + 2) % 3] + np.uint32(group + 1)
    return left, right
