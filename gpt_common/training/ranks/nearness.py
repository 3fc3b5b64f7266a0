"""Ranks that do not compute to the same bits: how near their weights must be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpt_common.training.health.gates import GateFailed

if TYPE_CHECKING:
    from gpt_common.training.ranks.agreement import Agreement

NEAR = {"adamw": 1e-5, "muon": 1e-4}
"""How far a tensor of another twin may be from rank 0's, relative L2, for the same sums and another rounding, by
optimiser: 2.6e-7 and 5.4e-6 were seen on a CPU in 200 and 1000 steps; roots and quotients of a GPU are less exact."""
TINY = 1e-12
"""A norm below which a tensor counts as zero."""

Array = npt.NDArray[Any]


def check_near(ranks: Agreement, weights: Mapping[str, Array], step: int, near: float) -> None:
    """Raise GateFailed if a tensor of a rank is further than `near` from that of rank 0 after `step` steps."""
    assert ranks.wire is not None
    apart = {}
    for name, mine in weights.items():
        with ranks.waiting():
            first = ranks.wire.of_first(mine)
        apart[name] = float(np.linalg.norm(mine - first) / max(float(np.linalg.norm(first)), TINY))
    for rank, text in enumerate(ranks.gather(json.dumps(apart))):
        for name, distance in json.loads(text).items():
            if not distance <= near:
                raise GateFailed(
                    "ranks",
                    f"after {step} steps {name} of rank {rank} is {distance:.1e} from that of rank 0, relative, "
                    f"and {near:.0e} is what rounding may make of it",
                    "Its sum, its update or its memory is wrong: what was saved before is right",
                )
