"""A trained model as `evaluate` takes it up: command line, checkpoint, the data with the answers, and the figures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from gpt_common.cli import parse
from gpt_common.data import Dataset, check_block, open_dataset
from gpt_common.data.batches import NumpyBatch
from gpt_common.errors import UserError
from gpt_common.judging.answers import Generate, judge, lines_of, questions_of
from gpt_common.judging.whole_text import whole_text
from gpt_common.training.checkpoint import read_manifest
from gpt_common.training.folder import newest_run
from gpt_common.training.manifest import Manifest
from gpt_common.training.source import Source, open_source
from gpt_common.words import one_line, say


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Put the questions of a dataset to a trained model. CKPT is a checkpoint or a run (then its best)."""

    examples: ClassVar[tuple[str, ...]] = ("--questions 1000", "--dataset stories-qa")
    dataset: str | None = None
    """A dataset of conversations, if not the run's own; of stories-qa, questions about worlds that no training example
    has."""
    data_dir: Path | None = None
    """Folder of prepared corpora, if not the run's own."""
    questions: int = 500
    """How many; of stories-qa also as many in new phrasings."""
    batch_size: int = 16
    """Rows at once, for the loss."""
    latest: bool = False
    """Of a run folder, take the latest checkpoint and not the best."""
    device: Literal["auto", "cpu", "gpu", "mps", "cuda"] = "auto"
    """Where to compute."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype; auto: bfloat16 on MLX GPU and CUDA, float32 on MPS and CPU."""

    def __post_init__(self) -> None:
        for name in ("questions", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")


@dataclass(frozen=True)
class Judged:
    """What is judged, and on what."""

    source: Source
    dataset: Dataset


def parse_evaluation(argv: Sequence[str], *, prog: str) -> tuple[Path, EvaluateCommand]:
    """The evaluation command line: the checkpoint or run folder, if not the newest run is meant, then flags."""
    words = list(argv)
    named = bool(words) and not words[0].startswith("-")
    command = parse(EvaluateCommand, words[1:] if named else words, prog=f"{prog} CKPT")
    if named:
        return Path(words[0]), command
    run = newest_run()
    print(f"evaluating the newest run, {one_line(str(run))}", file=sys.stderr)
    return run, command


def open_judged(path: Path, command: EvaluateCommand) -> Judged:
    """Model and data, which must have one tokenizer.

    Raises:
        UserError: no checkpoint or dataset there, or they do not belong together.
    """
    source = open_source(path, latest=command.latest)
    manifest = read_manifest(source.checkpoint)
    name, folder = command.dataset or _own_dataset(source, manifest), command.data_dir
    folder = folder or Path(manifest.run_config.data.data_dir)
    dataset = open_dataset(name, folder, on_progress=lambda line: print(line, file=sys.stderr))
    if dataset.tokenizer.fingerprint != source.tokenizer.fingerprint:
        raise UserError(
            f"dataset '{dataset.name}' has another tokenizer than {source.checkpoint}: prepare it with --tokenizer "
            f"{source.checkpoint}"
        )
    check_block(dataset, source.model.block_size)
    return Judged(source, dataset)


def _own_dataset(source: Source, manifest: Manifest) -> str:
    """What the run was trained on; of the base that stories-qa begins with, that."""
    trained_on = manifest.dataset
    if trained_on is None:
        raise UserError(f"{source.checkpoint} does not say what it was trained on: name a dataset with --dataset")
    return "stories-qa" if trained_on["name"] == "stories-worlds" else str(trained_on["name"])


def print_judged(
    judged: Judged,
    command: EvaluateCommand,
    generate: Generate,
    losses: Callable[[Iterable[NumpyBatch]], list[float]],
) -> None:
    """Ask, and print what was right; and the loss of the validation split's answers."""
    dataset, block = judged.dataset, judged.source.model.block_size
    put = questions_of(dataset, command.questions)
    found = judge(put, generate, dataset.tokenizer, block)
    _, val = dataset.splits(block, packing=True)
    whole = whole_text(val, dataset.tokenizer, losses, block_size=block, batch_size=command.batch_size)
    assert whole is not None
    say(f"{judged.source.checkpoint} on {dataset.name}")
    for line in lines_of(found, whole.loss, whole.tokens, dataset.floor):
        say(line)
