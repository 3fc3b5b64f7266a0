"""The adapter of a run: its kind, its size and where it sits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gpt_common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What is trained beside a model whose own weights stay as they are; needs --init-from."""

    adapter: Literal["none", "lora", "dora"] = "none"
    """Train two thin matrices beside each frozen one (LoRA), these and its rows' lengths (DoRA), or the whole model."""
    adapter_rank: int = 8
    """Inner width of an adapter."""
    adapter_alpha: float = 16.0
    """An adapter is multiplied by alpha / rank."""
    adapter_rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead (rank-stabilised LoRA)."""
    adapter_targets: tuple[str, ...] = ("all",)
    """Matrices that get one, by the end of their name (q_proj, blocks.0.attention.q_proj); all: those of the blocks."""
    adapter_layers: int = 0
    """Adapt only the last N blocks; 0: all."""
    adapter_dropout: float = 0.0
    """Share of an adapter's inputs dropped in training."""
    adapter_whole: tuple[str, ...] = ()
    """Trained whole beside the adapters: token_embedding, position_embedding, final_norm, head."""
    adapter_ranks: tuple[str, ...] = ()
    """Other ranks for some matrices, as q_proj=4."""
    adapter_alphas: tuple[str, ...] = ()
    """Other alphas for some matrices, as q_proj=32."""
    adapter_base_dtype: Literal["float32", "bfloat16"] = "float32"
    """In which the frozen matrices are kept; halves their memory where the compute dtype is bfloat16 too."""

    def __post_init__(self) -> None:
        if self.adapter_rank < 1:
            raise UserError(f"adapter_rank is {self.adapter_rank}: it must be at least 1")
        if not 0 < self.adapter_alpha < math.inf:
            raise UserError(f"adapter_alpha is {self.adapter_alpha}: it must be above 0")
        if self.adapter_layers < 0:
            raise UserError(f"adapter_layers is {self.adapter_layers}: it must not be negative")
        if not 0 <= self.adapter_dropout < 1:
            raise UserError(f"adapter_dropout is {self.adapter_dropout}: it must be at least 0 and below 1")
        for name in ("adapter_ranks", "adapter_alphas"):
            pattern(name, getattr(self, name))
        untouched = all(getattr(self, each.name) == each.default for each in dataclasses.fields(self))
        if self.adapter == "none" and not untouched:
            raise UserError("there is no adapter that these --adapter-... could belong to: add --adapter lora or dora")
        if self.adapter != "none" and not self.adapter_targets:
            raise UserError("adapter_targets is empty: name matrices, or all")

    @property
    def adapts(self) -> bool:
        """Whether there is an adapter at all."""
        return self.adapter != "none"

    def scale(self, rank: int, alpha: float) -> float:
        """What an adapter's product is multiplied by: of LoRA (Hu et al. 2021, section 4.1), or rank-stabilised
        (Kalajdzievski 2023, theorem 3.2)."""
        return alpha / (math.sqrt(rank) if self.adapter_rslora else rank)


def pattern(name: str, entries: Sequence[str]) -> dict[str, float]:
    """Numbers by the name of a matrix, of a field that holds NAME=NUMBER.

    Raises:
        UserError: an entry of another form, or a number that is none of the field's.
    """
    found = {}
    for entry in entries:
        matrix, equals, text = entry.partition("=")
        try:
            value = float(int(text)) if name == "adapter_ranks" else float(text)
        except ValueError:
            value = math.nan
        if not (matrix and equals and 0 < value < math.inf):
            number = "a whole number from 1" if name == "adapter_ranks" else "a number above 0"
            raise UserError(f"{name}: {entry!r:.80} is not NAME=NUMBER with {number}")
        found[matrix] = value
    return found
