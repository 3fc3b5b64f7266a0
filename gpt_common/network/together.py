"""How several processes train one model together, as far as it decides who holds what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Together:
    """The ranks of a run."""

    ranks: int = 1
    engine: Literal["flat", "ddp", "fsdp"] = "flat"
    """What adds up their gradients."""
    shards_optimizer: bool = False
    """Each holds the optimiser's state of its share of the parameters."""


ALONE = Together()


def owners(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """The rank that updates each parameter, and holds what the optimiser remembers of it.

    Whole ones, since Muon needs a matrix as a whole; the largest first, each to the rank that has least.

    Args:
        sizes: how many numbers each parameter has, by name.
    """
    held, found = [0] * ranks, {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        found[name] = rank = held.index(min(held))
        held[rank] += sizes[name]
    return found
