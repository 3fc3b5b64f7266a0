"""Everything random, keyed: a number depends on its key alone, so that nothing has to be stored to repeat a run.

| what is drawn                  | key                                                   |
|--------------------------------|-------------------------------------------------------|
| initial weights                | seed, tensor name                                     |
| batches                        | seed, "batch", step, micro-step, rank                 |
| dropout masks                  | seed, "dropout", step, micro-step, rank; then the site|
| sampled tokens                 | seed, "sample", number of the sample                  |
| the built-in corpus            | "stories", its seed, split                            |
| a mixture of corpora           | seed, "mix", split, and name of the corpus            |
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt


def keyed_generator(*key: int | str) -> np.random.Generator:
    """A generator whose stream depends on `key` alone: Philox keyed with the key's SHA-256."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(*key)[:16], "little")))


def dropout_key(seed: int, step: int, micro_step: int = 0, rank: int = 0) -> npt.NDArray[np.uint32]:
    """Two words that, with a site's number added to the second, key one micro-step's masks."""
    return np.frombuffer(_digest(seed, "dropout", step, micro_step, rank)[:8], np.uint32).copy()


def draws(seed: int, sample: int) -> Iterator[float]:
    """Endless uniform numbers in [0, 1) of one sample."""
    generator = keyed_generator(seed, "sample", sample)
    while True:
        yield float(generator.random())


def _digest(*key: int | str) -> bytes:
    return hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
