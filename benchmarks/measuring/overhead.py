"""What the trainer around the step costs: the real `train` loop against bare calls of TrainStep on the same work.

The loop draws its batches, logs every tenth step, moves its progress bar and watches for alarms. Evaluation, sampling
and checkpoints are work of their own and left out. The bare side has its batches ready. Both wait for the device once
per ten steps, and take turns of ten steps: whenever the loop asks for the batches of a new block, the bare side runs a
block first, on a model of its own. So a busy machine slows both, and a per cent can be seen on it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import string
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring.backends import Backend
from benchmarks.measuring.measure import BLOCK
from benchmarks.measuring.samples import median_of
from benchmarks.measuring.work import Batcher, OpenWork, Work, run_steps
from benchmarks.readings import Overhead
from benchmarks.report.pairs import paired_ratio
from gpt_common.commands import TrainCommand
from gpt_common.config import DataConfig, RunConfig
from gpt_common.data.batches import NumpyBatch
from gpt_common.data.tokenizers import CharTokenizer
from gpt_common.data.writer import write_dataset
from gpt_common.keyed import keyed_generator
from gpt_common.training.due import Due
from gpt_common.training.run import Run

GROUPS = 8
"""Ratios for the interval, each of medians over its share of the blocks."""
WARM_BLOCKS = 2
LONGEST = 10
"""Blocks per group at most; fewer if they take longer than SECONDS."""
SECONDS = 30.0
CORPUS_TOKENS = 200_000


class Screen(io.StringIO):
    """Where the loop draws its progress; it takes this for a terminal."""

    def isatty(self) -> bool:
        """Yes."""
        return True


class Enough(Exception):
    """Ends the loop."""


class TimedRun(Run):
    """A run that times each block of its loop, and lets another side work in between.

    Args:
        between: runs a block of the other side and returns its seconds; None when enough was measured.
    """

    def __init__(self, command: TrainCommand, *, twin: str, between: Callable[[], float | None]) -> None:
        super().__init__(command, twin=twin)
        self._between = between
        self._resumed: float | None = None
        self.blocks: list[tuple[float, float]] = []
        """Seconds of the loop's block and of the other side's, for each pair."""
        self.parts: dict[str, list[float]] = {"batches": [], "stepped": [], "record": []}
        """Seconds of every call of what the loop does besides the step."""

    def batches(self, step: int, *, whole: bool = False) -> list[NumpyBatch]:
        """See Run. At the first step of a block the step before it was logged, and so waited for."""
        if step % BLOCK == 0:
            mine = None if self._resumed is None else time.perf_counter() - self._resumed
            with self.timer.paused():
                other = self._between()
            if mine is not None and other is not None:
                self.blocks.append((mine, other))
            if other is None:
                raise Enough
            self._resumed = time.perf_counter()
        with self._timed("batches"):
            return super().batches(step, whole=whole)

    def after_step(self, step: int) -> Due:
        """See Run."""
        with self._timed("stepped"):
            return super().after_step(step)

    def record(self, step: int, **figures: Any) -> None:
        """See Run."""
        with self._timed("record"):
            super().record(step, **figures)

    @contextlib.contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.parts[part].append(time.perf_counter() - began)


def measure_overhead(
    open_work: OpenWork, backend: Backend, config: RunConfig, report: Callable[[str, float], None]
) -> Overhead:
    """The ratio of the loop's time to the bare step's.

    Raises:
        Absent: the backend is not here.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = loop_only(config, backend, folder)
        work = open_work(backend, config)
        # The loop on the device that was found.
        train = dataclasses.replace(config.train, device=work.device)  # type: ignore[arg-type] # a str to mypy
        config = dataclasses.replace(config, train=train)
        bare = bare_blocks(work, config)
        began, done = time.perf_counter(), 0

        def between() -> float | None:
            nonlocal done
            pairs, over = max(0, done - 1 - WARM_BLOCKS), time.perf_counter() - began > SECONDS
            enough = pairs >= GROUPS and pairs % GROUPS == 0 and (over or pairs >= LONGEST * GROUPS)
            report("overhead", pairs / (LONGEST * GROUPS))
            done += 1
            return None if enough else bare()

        twin = f"{backend.framework}_gpt"
        with contextlib.redirect_stdout(Screen()):
            run = TimedRun(TrainCommand(out=folder / "run", run=config), twin=twin, between=between)
            with contextlib.suppress(Enough):
                import_module(f"{twin}.train").train(run)
    return overhead_of(run.blocks[WARM_BLOCKS:], run.parts)


def overhead_of(blocks: Sequence[tuple[float, float]], parts: Mapping[str, Sequence[float]]) -> Overhead:
    """Ratio of loop to bare step, with its interval over groups of blocks.

    Args:
        blocks: seconds of both, in the order in which they were measured.
        parts: seconds of every call of what the loop does besides the step.
    """
    size = max(1, len(blocks) // GROUPS)
    groups = [blocks[start : start + size] for start in range(0, size * min(GROUPS, len(blocks)), size)]
    loop, bare = ([median_of([pair[side] for pair in group]) for group in groups] for side in (0, 1))
    ratio = paired_ratio(loop, bare)
    assert ratio is not None
    return Overhead(
        parts_seconds={part: median_of(seconds) for part, seconds in parts.items()},
        steps_per_block=BLOCK,
        loop_seconds=[round(pair[0], 6) for pair in blocks],
        bare_seconds=[round(pair[1], 6) for pair in blocks],
        ratio=ratio.value,
        low=ratio.low,
        high=ratio.high,
    )


def loop_only(config: RunConfig, backend: Backend, folder: Path) -> RunConfig:
    """The configuration without anything in the loop that is work of its own, on a corpus of random characters."""
    train = dataclasses.replace(
        config.train,
        compile=backend.compiled,
        log_interval=BLOCK,
        eval_interval=0,
        eval_batches=1,
        checkpoint_interval=0,
        sample_tokens=0,
        health_gates="off",
        max_steps=10**6,
    )
    tokenizer = CharTokenizer(string.ascii_letters)
    ids = keyed_generator(train.seed, "overhead").integers(0, tokenizer.vocab_size, CORPUS_TOKENS).astype(np.uint16)
    splits = {"train": [ids], "val": [ids]}
    write_dataset(folder / "noise", tokenizer, splits, prompt="a", recipe={}, sources=[], overwrite=False)
    model = dataclasses.replace(config.model, vocab_size=max(config.model.vocab_size, tokenizer.vocab_size))
    return dataclasses.replace(config, train=train, model=model, data=DataConfig(dataset="noise", data_dir=str(folder)))


def bare_blocks(work: Work, config: RunConfig) -> Callable[[], float]:
    """A function that runs the next block of bare steps, and returns its seconds."""
    batcher = Batcher(config)

    def block() -> float:
        steps = batcher.take(BLOCK)
        began = time.perf_counter()
        run_steps(work, config, steps)
        return time.perf_counter() - began

    return block
