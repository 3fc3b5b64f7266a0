"""What `evaluate` asks about a prepared dataset: questions with answers, or the loss of its validation text."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt_common.data import Dataset, check_block, open_dataset
from gpt_common.errors import UserError
from gpt_common.judging.answers import Put, judge, lines_of, questions_of
from gpt_common.judging.comparison import mean
from gpt_common.judging.measure import Asked
from gpt_common.judging.scoring import Scorer
from gpt_common.training.checkpoint import read_manifest
from gpt_common.training.manifest import Manifest
from gpt_common.training.whole_text import WholeText, whole_text


@dataclass(frozen=True)
class DatasetResult:
    """The loss of the validation split, and which questions were answered right, if any were asked."""

    dataset: str
    is_text: bool
    right: dict[str, list[bool]]
    """By group, a value for every question."""
    whole: WholeText
    floor: float | None

    def lines(self) -> Iterator[str]:
        """The figures, a line each."""
        counts = {group: (sum(right), len(right)) for group, right in self.right.items()}
        yield from lines_of(counts, self.whole, self.floor, is_text=self.is_text)

    def as_json(self) -> dict[str, Any]:
        """The same figures."""
        counts = {group: {"right": sum(right), "of": len(right)} for group, right in self.right.items()}
        loss = asdict(self.whole) | {"bits_per_byte": self.whole.bits_per_byte}
        return {"dataset": self.dataset, "questions": counts, "validation": loss, "floor": self.floor}

    def against(self, other: DatasetResult) -> Iterator[str]:
        """Group by group, question by question."""
        for group in sorted(set(self.right) & set(other.right)):
            pairs = list(zip(self.right[group], other.right[group], strict=True))
            found = mean([float(mine) - float(theirs) for mine, theirs in pairs])
            low, high = found.interval
            won, lost = sum(mine > theirs for mine, theirs in pairs), sum(mine < theirs for mine, theirs in pairs)
            interval = f" (95 %: {low:+.1%} to {high:+.1%})" if low == low else ""
            yield f"  {group:<26} {found.value:+.1%}{interval}; {won} won, {lost} lost"
        yield f"  loss: {self.whole.loss:.4f} against {other.whole.loss:.4f}, {self.whole.loss - other.whole.loss:+.4f}"


class DatasetMeasure:
    """Asks the questions of a dataset of conversations, and for the loss of any dataset's validation split.

    Args:
        name: of the dataset; None: the one that the model was trained on.
        folder: of prepared corpora; None: the run's own.
        questions: how many, of conversations.
        batch_size: rows at once, for the loss.
    """

    name = "dataset"

    def __init__(self, name: str | None, folder: Path | None, questions: int, batch_size: int) -> None:
        self.dataset_name, self.folder, self.questions, self.batch_size = name, folder, questions, batch_size
        self.opened: dict[str, tuple[Dataset, list[Put]]] = {}

    @property
    def about(self) -> str:
        """The dataset's name."""
        return self.dataset_name or "its dataset"

    def prepare(self, asked: Asked) -> None:
        """Open the dataset, which must have the model's tokenizer."""
        source = asked.source
        manifest = read_manifest(source.checkpoint)
        # Of two models both are asked about what the first one is asked about.
        self.dataset_name = name = self.dataset_name or own_dataset(asked, manifest)
        self.folder = folder = self.folder or Path(manifest.run_config.data.data_dir)
        if source.tokenizer.fingerprint in self.opened:
            return
        dataset = opened(asked, name, folder)
        check_block(dataset, source.model.block_size)
        put = questions_of(dataset, self.questions) if dataset.examples is not None else []
        self.opened[source.tokenizer.fingerprint] = dataset, put

    def ask(self, scorer: Scorer, asked: Asked) -> DatasetResult:
        """Put the questions, and go through the validation split."""
        dataset, put = self.opened[asked.source.tokenizer.fingerprint]
        right: dict[str, list[bool]] = {}
        for question, is_right in zip(put, judge(put, scorer.batch, scorer.block_size), strict=True):
            right.setdefault(question.group, []).append(is_right)
        _, val = dataset.splits(scorer.block_size, packing=True)
        whole = whole_text(
            val, dataset.tokenizer, scorer.losses, block_size=scorer.block_size, batch_size=self.batch_size
        )
        assert whole is not None
        return DatasetResult(dataset.name, dataset.examples is None, right, whole, dataset.floor)


def opened(asked: Asked, name: str, folder: Path) -> Dataset:
    """A prepared dataset; raises UserError if it is not there, or has another tokenizer than the model."""
    dataset, source = open_dataset(name, folder, on_progress=lambda line: print(line, file=sys.stderr)), asked.source
    if dataset.tokenizer.fingerprint != source.tokenizer.fingerprint:
        raise UserError(
            f"dataset '{dataset.name}' has another tokenizer than {source.checkpoint}: prepare it with --tokenizer "
            f"{source.checkpoint}"
        )
    return dataset


def own_dataset(asked: Asked, manifest: Manifest) -> str:
    """What the run was trained on; of the base that stories-qa begins with, that."""
    trained_on = manifest.dataset
    if trained_on is None:
        raise UserError(
            f"{asked.source.checkpoint} does not say what it was trained on: name a dataset with --dataset, or give a "
            "--text"
        )
    return "stories-qa" if trained_on["name"] == "stories-worlds" else str(trained_on["name"])
