"""What a result means: which is fastest and how sure that is, what to doubt, and the figures that are drawn.

Table, page and pictures show these and work out none of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.measuring.samples import invalid, median_of
from benchmarks.readings import Process, Samples
from benchmarks.report.pairs import Ratio
from benchmarks.results import BackendRow, CaseResult, Comparison, Environment, Summary, TimeRatio, Work
from gpt_common.words import in_memory, milliseconds, parameters_in_words, rate, share


def parameters(work: Work) -> str:
    """Parameters in words, and the active ones where these are fewer."""
    return parameters_in_words(work.parameters, work.active)


def size(count: int | None) -> str:
    """Memory in words; `-` where unknown."""
    return "-" if count is None else in_memory(count)


def measured(case: CaseResult) -> list[tuple[BackendRow, Summary]]:
    """Rows with figures, the fastest first; not the control."""
    rows = [(row, row.summary) for row in case.rows if row.summary and not row.control]
    return sorted(rows, key=lambda pair: pair[1].seconds_per_step)


def memory_key(cases: Sequence[CaseResult]) -> str:
    """Which memory to show: the frameworks' own peaks if all keep count, else that of the processes, never a mix."""
    peaks = [row.summary.memory.peak for case in cases for row in case.rows if row.summary]
    return "resident_peak" if None in peaks else "peak"


class Times(NamedTuple):
    """How many times as long a backend takes as the fastest."""

    ratio: Ratio
    claimed: bool


def times(case: CaseResult, row: BackendRow) -> Times | None:
    """A row against the fastest; None for the fastest itself."""
    best = measured(case)[0][0].backend
    found = comparison(case, row.backend, best)
    if found is None:
        return None
    ratio = ratio_of(found)
    return Times(ratio if found.slower == row.backend else ratio.inverse(), found.claimed)


def comparison(case: CaseResult, a: str, b: str) -> Comparison | None:
    """Of two rows; None if there is none."""
    return next((c for c in case.comparisons if {c.slower, c.faster} == {a, b}), None)


def ratio_of(found: TimeRatio) -> Ratio:
    """A comparison or control of the file as a ratio."""
    return Ratio(found.ratio, found.low, found.high, found.rounds)


def noise(case: CaseResult) -> float | None:
    """The largest difference that the A/A control allows, as a share: 0.04 is 4 %; None without a control."""
    if case.control is None or case.control.low is None:
        return None
    return math.exp(ratio_of(case.control).reach) - 1


def headline(case: CaseResult) -> str:
    """Which is fastest, by how much, and how sure that is."""
    rows = measured(case)
    if not rows:
        return "Nothing was measured."
    best = rows[0][0].backend
    others = [(found.ratio.value, row) for row, _ in rows if (found := times(case, row))]
    if not others:
        return f"{best}: {milliseconds(rows[0][1].seconds_per_step)} ms per step."
    _, other = min(others, key=lambda pair: pair[0])
    second = comparison(case, other.backend, best)
    assert second is not None
    if second.low is None:
        return f"{best} is ahead of {other.backend}; too few rounds ({second.rounds}) to tell whether by chance."
    interval = f"95 % interval {second.low:.2f} to {second.high:.2f}"
    if not second.claimed:
        return f"{best} and {other.backend} are too close to call: ratio {second.ratio:.2f}, {interval}."
    return f"{best} is fastest: {other.backend} takes {second.ratio:.2f} times as long ({interval})."


def findings(case: CaseResult) -> list[str]:
    """What the table means, in sentences."""
    lines = [headline(case)]
    level = noise(case)
    if case.control is not None and level is not None:
        lines.append(
            f"{case.control.backend} against itself differed by up to {level:.1%}: less is no difference here."
        )
    for row in case.rows:
        if row.control and row.status == "measured":
            continue
        if row.reason:
            lines.append(f"{row.label}: {row.status}: {row.reason}")
        elif row.status == "stopped":
            lines.append(f"{row.label}: stopped before it was measured")
        lines += [f"{row.label}: {note}" for note in row.notes if not row.control]
        lines += [f"{row.label}: {line}" for line in doubts(row)]
    if any(row.summary and row.verified == "unverified" for row in case.rows):
        lines.append("(?) unverified: whether it computes the right thing was not checked (--no-parity)")
    return lines


def doubts(row: BackendRow) -> list[str]:
    """What a reader should know before believing a row."""
    figures = row.summary
    if not figures or row.control:
        return []
    lines = []
    for mark, words in (("asleep", "the machine slept"), ("throttled", "the machine was throttled")):
        if figures.marked[mark]:
            lines.append(f"{figures.marked[mark]} of {figures.samples} samples left out: {words}")
    if not figures.settled:
        lines.append("was not warm when the series began: its times still drifted")
    if (figures.memory.swapped or 0) > 64 * 2**20:
        lines.append(f"the machine swapped {size(figures.memory.swapped)} while it ran")
    return lines


def machine_doubts(environment: Environment) -> list[str]:
    """Why this machine may not have been at its best."""
    hardware, before = environment.hardware, environment.before
    lines = []
    if hardware.power_source == "battery":
        lines.append("on battery: plug it in, and measure again")
    if hardware.low_power_mode:
        lines.append("in low-power mode: turn it off, and measure again")
    if before.thermal_pressure not in (None, "nominal"):
        lines.append(f"the machine was hot when this began: thermal pressure {before.thermal_pressure}")
    if before.load is not None and hardware.cores and before.load > max(0.5, 0.25 * hardware.cores):
        lines.append(f"other programs were running when this began: load {before.load:.1f} on {hardware.cores} cores")
    return lines


def extras(case: CaseResult) -> list[str]:
    """What was measured beyond the rounds, a line for each."""
    lines = []
    for row in case.rows:
        if (run := row.sustained) and run.kept is not None:
            minutes = sum(run.process.throughput.seconds) / 60
            lines.append(f"{row.label} kept {run.kept:.0%} of its first speed over {minutes:.1f} minutes")
        if row.generation:
            longest = row.generation.lengths[-1]
            token = _per_second(longest.token_seconds)
            prompt = longest.prompt * (_per_second(longest.prompt_seconds) or math.nan)
            written = "" if token is None else f", writes {rate(token)} tokens/s"
            lines.append(f"{row.label} reads a prompt of {longest.prompt} at {rate(prompt)} tokens/s{written}")
        if cost := row.overhead:
            interval = (
                "" if cost.low is None or cost.high is None else f" ({cost.low - 1:+.1%} to {cost.high - 1:+.1%})"
            )
            lines.append(f"{row.label}: the trainer's loop takes {cost.ratio - 1:+.1%} over bare steps{interval}")
    return lines


def _per_second(seconds: Sequence[float | None]) -> float | None:
    middle = median_of([s for s in seconds if s is not None])
    return None if middle is None else 1 / middle


# --- what is drawn


class Point(NamedTuple):
    """A timed sample."""

    when: float
    """Seconds since the first one."""
    milliseconds: float
    """Per step."""
    counts: bool
    """False if the machine was throttled or asleep."""


def every_step(row: BackendRow) -> list[Point]:
    """All samples of the latency series of a row's complete processes."""
    return [point for process in row.processes if process.complete for point in _points(process.latency, 0.0)]


def course(processes: Mapping[str, Sequence[Process]], *, from_zero: bool = False) -> dict[str, list[Point]]:
    """Every sample of the throughput series of each backend's processes, at the time when it was taken.

    Args:
        from_zero: every process begins at zero; otherwise the session does.
    """
    series = {label: [process.throughput for process in found] for label, found in processes.items()}
    first = min((samples.began for found in series.values() for samples in found if samples.start), default=0.0)
    return {
        label: [p for samples in found for p in _points(samples, 0.0 if from_zero else samples.began - first)]
        for label, found in series.items()
    }


def _points(samples: Samples, since: float) -> list[Point]:
    return [
        Point(since + start, 1000 * seconds / samples.steps_per_sample, not invalid(samples, i))
        for i, (start, seconds) in enumerate(zip(samples.start, samples.seconds, strict=True))
    ]


@dataclass(frozen=True)
class Panel:
    """One figure of every backend against a value that was changed."""

    title: str
    lines: dict[str, list[float | None]]
    """By label, one figure for each value."""
    text: Callable[[Any], str]
    """How the figure is written."""

    def cells(self) -> dict[str, list[str]]:
        """The figures in words."""
        return {label: ["-" if y is None else self.text(y) for y in line] for label, line in self.lines.items()}


@dataclass(frozen=True)
class Panels:
    """Figures against one value."""

    name: str
    values: list[int]
    panels: list[Panel]


def growth(cases: Sequence[CaseResult]) -> Panels | None:
    """How time, memory and MFU grow over a sweep; None if there was none."""
    if len(cases) < 2:
        return None
    name, key = next(iter(cases[0].changes)), memory_key(cases)
    rows = [{row.label: summary for row, summary in measured(case)} for case in cases]
    labels = [row.label for row in cases[0].rows if any(row.label in found for found in rows)]
    figures: list[tuple[str, Callable[[Summary], float | None], Callable[[Any], str]]] = [
        ("milliseconds per step", lambda s: s.seconds_per_step, milliseconds),
        ("tokens per second", lambda s: s.tokens_per_second, rate),
        ("peak memory" if key == "peak" else "peak memory of the process", lambda s: getattr(s.memory, key), size),
        ("MFU of the measured peak", lambda s: s.mfu.measured, share),
    ]
    return Panels(
        name,
        [case.changes[name] for case in cases],
        [
            Panel(title, {label: [figure(c[label]) if label in c else None for c in rows] for label in labels}, text)
            for title, figure, text in figures
        ],
    )


def generation(case: CaseResult) -> Panels | None:
    """Prompt tokens read and new tokens written per second, by length of the prompt; None if it was not measured."""
    found = {row.label: row.generation for row, _ in measured(case) if row.generation}
    if not found:
        return None
    lengths = {label: run.lengths for label, run in found.items()}
    reading: dict[str, list[float | None]] = {
        k: [n.prompt * (_per_second(n.prompt_seconds) or math.nan) for n in run] for k, run in lengths.items()
    }
    writing = {label: [_per_second(n.token_seconds) for n in run] for label, run in lengths.items()}
    return Panels(
        "length of the prompt",
        [length.prompt for length in next(iter(lengths.values()))],
        [Panel("prompt tokens read per second", reading, rate), Panel("new tokens per second", writing, rate)],
    )
