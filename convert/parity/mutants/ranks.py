"""Wrong ranks of the MLX twin, or of what both share, as mutants of the ladder."""

from __future__ import annotations

from convert.parity.mutants.climb import Change, Mutant
from convert.parity.mutants.planted import Edit
from convert.parity.mutants.rank_faults import rank_faults
from convert.parity.rungs import ranks
from convert.parity.twins.replaced import replaced


def _in_every_rank(edit: Edit) -> Change:
    return replaced(ranks, "FAULTS", (edit,))


RANK_MUTANTS = [
    Mutant(fault.name, "R", lambda edit=fault.edit: _in_every_rank(edit), fault.family)  # type: ignore[misc]
    for fault in rank_faults("mlx_gpt")
]
