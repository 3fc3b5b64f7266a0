"""What a hostile case is, and which commands meet it."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from tests.gpt_common.training.hostile.sound import Damage

TRAINING = frozenset({"resume", "init-from", "sample"})
"""Commands of either twin."""
CHECKPOINT = TRAINING | {"inspect", "export"}
"""What opens a checkpoint."""
READING = TRAINING | {"export"}
"""What reads its tensors; `inspect` reads headers alone, and tells what is wrong with them without refusing."""
LOG = frozenset({"show", "report", "compare"})
"""What reads a run's configuration and log; `list` has a line for each folder, whatever is in it."""
ALL = CHECKPOINT | LOG | {"list"}


@dataclass(frozen=True)
class Case:
    """A run with one thing changed.

    Args:
        name: what is wrong with it, in words.
        damage: changes a sound run.
        says: regular expression, ignoring case, that every refusal must match: the file, the tensor, the value.
        refused_by: commands that must refuse it; the others may, and none may hang, break or fill memory.
        tried_by: others that meet it, besides those that meet all of its kind.
    """

    name: str
    damage: Damage
    says: str
    refused_by: AbstractSet[str] = CHECKPOINT
    tried_by: AbstractSet[str] = frozenset()
