"""What `evaluate` can ask of a model, each a measure: made ready before a model is loaded, then asked of one or two."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gpt_common.judging.scoring import Scorer
from gpt_common.training.source import Source


@dataclass(frozen=True)
class Asked:
    """A model that is asked."""

    source: Source
    dtype: str
    """What it computes in, as the command says it."""

    @property
    def run(self) -> Path | None:
        """The run whose checkpoint it is, where results are kept; None of one that stands alone."""
        folder = self.source.checkpoint.parent
        return folder.parent if folder.name == "checkpoints" else None


class Result(Protocol):
    """What was found."""

    def lines(self) -> Iterator[str]:
        """The figures for people, 80 columns at most."""

    def as_json(self) -> dict[str, Any]:
        """The figures for programs."""

    def against(self, other: Any) -> Iterator[str]:
        """This model beside another that was asked the same: what differs, with its interval."""


class Measure(Protocol):
    """Something that is asked."""

    name: str
    """Of the file that keeps the result in the run's folder."""

    @property
    def about(self) -> str:
        """What the model is asked about, in a word or two."""

    def prepare(self, asked: Asked) -> None:
        """Look whether this model can be asked; raises UserError before it is loaded."""

    def ask(self, scorer: Scorer, asked: Asked) -> Result:
        """Do it."""
