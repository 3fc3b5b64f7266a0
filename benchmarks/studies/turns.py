"""Kinds of work side by side: each in a process of its own, taking turns, so that a busy machine slows all."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.measuring.backends import BACKENDS
from benchmarks.measuring.processes import THREADS
from benchmarks.measuring.work import Batcher, Work
from benchmarks.measuring.worker import open_work
from benchmarks.report.pairs import Ratio, paired_ratio
from gpt_common.adapting.quantisation import NOT_QUANTISED, Grids
from gpt_common.config import RunConfig
from gpt_common.errors import WorkFailed
from gpt_common.progress import Progress

TURNS = 2
"""Of each side in a round: it goes first in one and last in the other."""
Note = Callable[[str], None]
"""Is told what is being done."""
Proof = list[float]
"""What shows that a side does the same work as the others: its losses, or the ids of a text."""
Proofs = dict[str, Proof]


def take_rounds(
    names: Sequence[str], turns_of: Callable[[Sequence[str], Note], list[tuple[float, ...]]], rounds: int
) -> dict[str, list[float]]:
    """Seconds per unit of work of every side in each round: the geometric mean of its turns. Says how far it is.

    Args:
        names: the sides.
        turns_of: takes the turns of a round, with the sides in their order in it, as `take_turns` does.
        rounds: how many; the side that begins in one ends in the next.
    """
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with Progress(tells_left=False) as bar:
        for number in range(rounds):

            def note(what: str, number: int = number) -> None:
                bar(f"round {number + 1} of {rounds}, {what}", number, rounds)

            order = names if number % 2 == 0 else names[::-1]
            turns = turns_of(order, note)
            for i, name in enumerate(order):
                seconds[name].append(statistics.geometric_mean(turn[i] for turn in turns))
    return seconds


def ratios_of(times: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Ratio of two sides' times in each round, their median, and the interval of their mean (None of few rounds)."""
    ratios = [a / b for a, b in zip(times, others, strict=True)]
    found = paired_ratio(times, others)
    assert isinstance(found, Ratio)
    return {
        "ratios": ratios,
        "median": statistics.median(ratios),
        "interval": None if found.low is None else [found.low, found.high],
    }


def measure(
    sides: Sequence[str],
    start: Callable[[Proofs, str], subprocess.Popen[str]],
    compare: Callable[[Proofs, str], float],
    rounds: int,
    seconds: float,
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds per unit of work of each side in each round, and how far each side's proof is from the first one's.

    Args:
        start: brings a side up, as `proven` returns it.
        compare: how far a side's proof is from the first one there; raises WorkFailed where that is too far.
        seconds: least time of one side's turn.
    """
    apart: dict[str, float] = {}

    def turns_of(order: Sequence[str], note: Note) -> list[tuple[float, ...]]:
        proofs: Proofs = {}

        def started(side: str) -> subprocess.Popen[str]:
            note(f"{side} shows that its work is the same")
            return start(proofs, side)

        turns = take_turns(order, started, TURNS, seconds, note)
        for side in sides:
            apart[side] = compare({sides[0]: proofs[sides[0]], side: proofs[side]}, side)
        return turns

    return take_rounds(sides, turns_of, rounds), apart


def take_turns(
    names: Sequence[str],
    start: Callable[[str], subprocess.Popen[str]],
    turns: int,
    seconds: float,
    note: Note = lambda _: None,
) -> list[tuple[float, ...]]:
    """Seconds per unit of work of every side, for each turn.

    Args:
        names: the sides; `start` brings one up in a process of its own, which answers as `work_on_request` does.
        turns: how many, each in the other order than the one before.
        seconds: least time of one side's turn.
    """
    sides: dict[str, subprocess.Popen[str]] = {}
    try:
        for name in names:
            sides[name] = start(name)
        note("warm-up")
        for side in sides.values():
            ask(side, seconds)
        note("turns")
        taken = []
        for turn in range(turns):
            times = {name: ask(sides[name], seconds) for name in (names if turn % 2 == 0 else names[::-1])}
            taken.append(tuple(times[name] for name in names))
        return taken
    finally:
        for side in sides.values():
            side.kill()
            side.communicate()


def proven(
    script: str, side: str, flags: Sequence[str], threads: int, proofs: Proofs, compare: Callable[[Proofs, str], float]
) -> subprocess.Popen[str]:
    """One side: its script again, which first prints its proof and then does as `work_on_request`.

    Args:
        proofs: of the sides before; this one's is added, and must be the same.

    Raises:
        WorkFailed: it ended, or does other work.
    """
    process = subprocess.Popen(
        [sys.executable, script, "--side", side, *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **dict.fromkeys(THREADS, str(threads)), "HF_HUB_OFFLINE": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise WorkFailed(f"{side} ended before it began: its error stands above")
        proofs[side] = json.loads(line)
        compare(proofs, side)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return process


def losses_apart(proofs: Mapping[str, Proof], side: str, largest: float) -> float:
    """How far a side's losses are from those of the first one there, nats per token.

    Raises:
        WorkFailed: further than `largest`, which is rounding.
    """
    first = next(iter(proofs))
    differences = [abs(a - b) for a, b in zip(proofs[first], proofs[side], strict=True)]
    for step, difference in enumerate(differences, 1):
        # Not `>`: a NaN agrees with nothing.
        if not difference <= largest:
            raise WorkFailed(
                f"{side} does other work than {first}: at step {step} its loss is {difference:.1e} off, and "
                f"{largest:g} is rounding: no figure is given"
            )
    return max(differences)


def ask(side: subprocess.Popen[str], seconds: float) -> float:
    """Let a side work for a while; returns its seconds per unit of work."""
    assert side.stdin is not None
    assert side.stdout is not None
    side.stdin.write(f"{seconds}\n")
    side.stdin.flush()
    answer = side.stdout.readline()
    if not answer:
        raise WorkFailed("one side of the comparison ended early: its error stands above")
    return float(answer)


def work_on_request(work: Callable[[], object]) -> None:
    """Work for as long as each line of the standard input says, in seconds, and answer with seconds per unit."""
    for _ in requests():
        work()


def requests() -> Iterator[None]:
    """The same for whom work is fetched from: an item asks for a unit, one at least, done when the next is fetched."""
    for line in sys.stdin:
        units, began = 0, time.perf_counter()
        while not units or time.perf_counter() - began < float(line):  # however slow the clock or short the time
            yield
            units += 1
        print((time.perf_counter() - began) / units, flush=True)


def cpu_work(twin: str, config: RunConfig, grids: Grids = NOT_QUANTISED) -> Work:
    """One twin's model at its initial weights, on the CPU; rounded where it is quantised."""
    return open_work(BACKENDS["mlx-cpu" if twin == "mlx" else "cpu"], config, grids)


def twin_step(twin: str, config: RunConfig) -> Callable[[], None]:
    """A training step of one twin on the CPU, waited for."""
    work = cpu_work(twin, config)
    batches, number = Batcher(config).take(1)[0][1], itertools.count()

    def step() -> None:
        work.step(batches, next(number), 1e-3)
        work.wait()

    return step


def start_side(script: str, side: str, twin: str, *flags: str) -> subprocess.Popen[str]:
    """One side of a study's comparison: its script again, which then does as `work_on_request`."""
    command = [sys.executable, script, "--side", side, "--twin", twin, *flags]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
