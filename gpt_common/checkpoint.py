"""Checkpoints by a short name, for scripts: `from gpt_common.checkpoint import find_checkpoint, read_state`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from gpt_common.training.checkpoint import find_checkpoint, read_manifest, validate

__all__ = ["find_checkpoint", "read_manifest", "read_state", "validate"]


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What state.json says, as plain values; raises UserError as `read_manifest` does."""
    return dataclasses.asdict(read_manifest(checkpoint))
