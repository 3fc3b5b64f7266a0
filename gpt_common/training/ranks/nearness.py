"""Ranks that do not compute to the same bits: how near their weights must be."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_common.training.health.gates import GateFailed

NEAR = {"adamw": 1e-5, "muon": 1e-4}
"""How far a tensor of another twin may be from rank 0's, relative L2, for the same sums and another rounding, by
optimiser: 2.6e-7 and 5.4e-6 were seen on a CPU in 200 and 1000 steps; roots and quotients of a GPU are less exact."""
TINY = 1e-12
"""A norm below which a tensor counts as zero."""

Array = npt.NDArray[Any]


def distances(weights: Mapping[str, Array], of_first: Callable[[Array], Array]) -> dict[str, float]:
    """How far each tensor is from that of rank 0, relative L2.

    Args:
        of_first: gives rank 0's tensor in place of one's own; all ranks must ask.
    """
    apart = {}
    for name, mine in weights.items():
        first = of_first(mine)
        apart[name] = float(np.linalg.norm(mine - first) / max(float(np.linalg.norm(first)), TINY))
    return apart


def check_near(said: Sequence[str], step: int, near: float) -> None:
    """Raise GateFailed if a tensor of a rank is further than `near` from that of rank 0 after `step` steps.

    Args:
        said: the distances of every rank, as JSON.
    """
    for rank, text in enumerate(said):
        for name, distance in json.loads(text).items():
            if not distance <= near:
                raise GateFailed(
                    "ranks",
                    f"after {step} steps {name} of rank {rank} is {distance:.1e} from that of rank 0, relative, "
                    f"and {near:.0e} is what rounding may make of it",
                    "Its sum, its update or its memory is wrong: what was saved before is right",
                )
