"""Gates on adapters: each is trained, what is frozen stays as it is, and generation with a cache uses them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from gpt_common.data.batches import NumpyBatch
from gpt_common.keyed import keyed_generator
from gpt_common.training.health.asked import StepProbe
from gpt_common.training.health.gates import GateFailed

STIRRED = 0.02
"""B is so large while it is stirred: as initial weights are, where a network is about straight."""
CACHED_TOKENS = 16
"""So many tokens are read at once and with a cache."""


@contextmanager
def stirred(probe: StepProbe, seed: int) -> Iterator[None]:
    """For a while adapters that are at their beginning, where B is 0, are somewhere else.

    There no gradient reaches A, and whether an adapter is used at all nobody could tell: what is asked is asked of a
    stirred one. The weights are the same afterwards, bit by bit.
    """
    kept = probe.weights()
    still = [name for name, value in kept.items() if name.endswith(".lora_b") and not value.any()]
    for name in still:
        value = kept[name]
        draw = keyed_generator(seed, "stirred", name).uniform(-STIRRED, STIRRED, value.shape)
        probe.set_weights({name: draw.astype(np.float32)})
    try:
        yield
    finally:
        probe.set_weights({name: kept[name] for name in still})


def check_used(probe: StepProbe, batch: NumpyBatch, *, exact: bool) -> str:
    """With a cache a model gives the logits that it gives without one; call it while adapters are stirred.

    Raises:
        GateFailed: it does not.
    """
    tokens = np.ascontiguousarray(batch.tokens[:1, :CACHED_TOKENS])
    whole, cached = probe.logits(tokens).astype(np.float64), probe.cached_logits(tokens).astype(np.float64)
    spread = float(np.linalg.norm(whole - whole.mean(axis=-1, keepdims=True)))
    error = float(np.linalg.norm(whole - cached)) / max(spread, 1e-30)
    if not error <= (1e-3 if exact else 0.1):
        raise GateFailed(
            "adapter",
            f"read with a cache, {tokens.shape[1]} tokens have logits that are {error:.1%} off those read at once",
            "Generation with a cache does not use the adapters as training does",
        )
    return "with a cache the adapters do what they do without one"


def check_adapters_moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """After a few steps every tensor of every adapter is another; raises GateFailed."""
    still = [name for name, value in before.items() if after.get(name) == value]
    if still:
        raise GateFailed(
            "adapter",
            f"{', '.join(still[:3])} and {max(0, len(still) - 3)} more of {len(before)} tensors have not moved",
            "They are left out of the forward pass, or not given to the optimiser",
        )


def check_frozen(before: Mapping[str, int], after: Mapping[str, int]) -> None:
    """Nothing that is frozen is another than before; raises GateFailed."""
    moved = [name for name, value in before.items() if after.get(name) != value]
    if moved:
        raise GateFailed(
            "adapter",
            f"{', '.join(moved[:3])} and {max(0, len(moved) - 3)} more of {len(before)} frozen tensors have changed",
            "The base is trained beside its adapter, and its checkpoint is not what the adapter belongs to any more",
        )
