"""All mutants, of whatever they break."""

from __future__ import annotations

from convert.parity.mutants.adapters import ADAPTER_MUTANTS
from convert.parity.mutants.climb import Mutant
from convert.parity.mutants.families import FAMILY_MUTANTS
from convert.parity.mutants.gpt2 import GPT2_MUTANTS
from convert.parity.mutants.quantised import QUANTISED_MUTANTS
from convert.parity.mutants.ranks import RANK_MUTANTS

MUTANTS: tuple[Mutant, ...] = (
    *GPT2_MUTANTS,
    *FAMILY_MUTANTS,
    *ADAPTER_MUTANTS,
    *QUANTISED_MUTANTS,
    *RANK_MUTANTS,
)
