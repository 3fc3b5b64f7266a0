"""`evaluate --memorisation`: validation text in the training text, and training text in what a model writes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt_common.commands import SampleSettings
from gpt_common.data import Dataset
from gpt_common.data.leakage.memory import Verbatim, longest_runs
from gpt_common.data.leakage.rolling import TokenIds
from gpt_common.data.leakage.validation import WINDOW, Leakage, leakage
from gpt_common.judging.dataset_measures import opened, own_dataset
from gpt_common.judging.measure import Asked
from gpt_common.judging.scoring import Scorer
from gpt_common.keyed import draws
from gpt_common.sampling import Continuation, continue_together
from gpt_common.training.checkpoint import read_manifest
from gpt_common.words import one_line, share

SAMPLES, SAMPLE_TOKENS = 16, 400
"""Texts that the model writes, and tokens of each; at temperature 1, so that it is the model's own distribution."""
SEED = 15_000
SHOWN = 160
"""Characters of the longest stretch."""


@dataclass(frozen=True)
class MemorisationResult:
    """What stands where it should not."""

    dataset: str
    leak: Leakage | None
    """None if the validation text is shorter than a window."""
    samples: tuple[Verbatim, ...]
    """Of each sample the longest stretch that the training text has."""
    validation: tuple[Verbatim, ...]
    """The same of pieces of the validation text as long as a sample: what a model that learnt nothing by heart has."""
    longest: str
    """The longest stretch of all samples."""

    def lines(self) -> Iterator[str]:
        """The figures, 80 columns at most."""
        if self.leak is None:
            yield f"  the validation text is shorter than a window of {WINDOW} letters: not looked for"
        else:
            yield (
                f"  validation windows of {WINDOW} letters in the training text: {share(self.leak.share)}"
                f"{', A LEAK' if self.leak.is_leak else ''}"
            )
            yield f"  of the training text in the rest of it: {share(self.leak.expected)}"
            if self.leak.sampled > 1 or self.leak.read < 1:
                read = "all" if self.leak.read == 1 else share(self.leak.read)
                yield f"  one window in {self.leak.sampled} was looked for, in {read} of the training text"
        yield "  letters in a row that the training text has too:"
        yield f"  {'':<30} {'median':>7} {'longest':>8} {'of about':>9}"
        for name, runs in (("what it writes", self.samples), ("validation text as long", self.validation)):
            if runs:
                lengths = [run.letters for run in runs]
                of = statistics.median(run.of for run in runs)
                yield f"  {name:<30} {statistics.median(lengths):>7.0f} {max(lengths):>8} {of:>9.0f}"
        text = one_line(self.longest[:SHOWN])
        for first in range(0, len(text), 74):
            yield f"    | {text[first : first + 74]}"

    def as_json(self) -> dict[str, Any]:
        """The same figures."""
        leak = self.leak and {**asdict(self.leak), "expected": self.leak.expected, "is_leak": self.leak.is_leak}
        runs = {
            name: [{"letters": run.letters, "of": run.of} for run in found]
            for name, found in (("samples", self.samples), ("validation", self.validation))
        }
        return {"dataset": self.dataset, "window": WINDOW, "leak": leak, **runs, "longest": self.longest}

    def against(self, other: MemorisationResult) -> Iterator[str]:
        """The longest stretches."""
        mine, theirs = (statistics.median(run.letters for run in each.samples) for each in (self, other))
        yield f"  letters in a row from the training text, median: {mine:.0f} against {theirs:.0f}"


class MemorisationMeasure:
    """Looks for validation text in the training text, and for training text in samples.

    Args:
        name: of the dataset; None: the one that the model was trained on.
        folder: of prepared corpora; None: the run's own.
    """

    name = "memorisation"

    def __init__(self, name: str | None, folder: Path | None) -> None:
        self.dataset_name, self.folder = name, folder
        self._opened: dict[str, Dataset] = {}

    @property
    def about(self) -> str:
        """What is looked for."""
        return "what it has learnt by heart"

    def prepare(self, asked: Asked) -> None:
        """Open the dataset, which must have the model's tokenizer."""
        manifest = read_manifest(asked.source.checkpoint)
        name = self.dataset_name or own_dataset(asked, manifest)
        folder = self.folder or Path(manifest.run_config.data.data_dir)
        self._opened[str(asked.source.checkpoint)] = opened(asked, name, folder)

    def ask(self, scorer: Scorer, asked: Asked) -> MemorisationResult:
        """Let the model write, and look."""
        return memorised(scorer, self._opened[str(asked.source.checkpoint)])


def memorised(scorer: Scorer, dataset: Dataset) -> MemorisationResult:
    """Let a model write, and look for that in the training text, and for the validation text in it."""
    prompt = dataset.tokenizer.encode_written(dataset.prompt)[: scorer.block_size]
    settings = SampleSettings(max_new_tokens=SAMPLE_TOKENS, temperature=1.0)
    sequences = [Continuation(list(prompt), settings, draws(SEED, number)) for number in range(SAMPLES)]
    ends = dataset.tokenizer.ends
    for _ in continue_together(scorer.batch, sequences, SAMPLES, lambda _, token: token in ends):
        pass
    said = [np.array(one.context[len(prompt) :], np.int64) for one in sequences]
    pieces: list[TokenIds] = []
    if len(dataset.val) > SAMPLE_TOKENS:
        starts = np.linspace(0, len(dataset.val) - SAMPLE_TOKENS, SAMPLES).astype(int)
        pieces = [np.asarray(dataset.val[start : start + SAMPLE_TOKENS], np.int64) for start in starts]
    found = longest_runs([*said, *pieces], dataset.train, dataset.tokenizer)
    samples, validation = found[:SAMPLES], found[SAMPLES:]
    longest = max(range(SAMPLES), key=lambda i: samples[i].letters)
    stretch = said[longest][samples[longest].begin : samples[longest].end].tolist()
    return MemorisationResult(
        dataset=dataset.name,
        leak=leakage(dataset.train, dataset.val, dataset.tokenizer, None),
        samples=tuple(samples),
        validation=tuple(validation),
        longest=dataset.tokenizer.decode(stretch),
    )
