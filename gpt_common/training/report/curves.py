"""The course of a run out of the rows of its metrics.jsonl: what page, picture and console show is worked out here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

OF_RANKS = ("dt_ranks", "slowest_rank", "dt_behind", "efficiency")
LOGGED = ("loss", "lr", "grad_norm", "dt", "tps", "mfu", "memory", "power_watts", "gpu_usage", *OF_RANKS)
LARGEST_VALUE = 1e100
BUCKETS = 400
"""Most columns of a curve that are drawn; each shows the least and the greatest value in it."""
BLOCKS, ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-~=*#@"
"""Heights of a sparkline from the least to the greatest."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """Numbers over the course of a run; NaN where one is missing or was not finite."""

    step: Numbers
    """Updates done."""
    seconds: Numbers
    """Since training began, with what lies between steps and without the time between two sessions."""
    values: Mapping[str, Numbers]
    """By the name of their field in metrics.jsonl."""

    def finite(self, name: str) -> Numbers:
        """The numbers of this name that are there."""
        return self.values[name][np.isfinite(self.values[name])]

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True, kw_only=True)
class Session:
    """One process that trained the run."""

    first_step: int
    """Updates that were done before."""
    start_up: float | None = None
    """Seconds from the command to its first step; None where nobody wrote it down."""
    first_step_seconds: float | None = None
    """Of its first step, with compilation."""


@dataclass(frozen=True, kw_only=True)
class Used:
    """What the sessions used that had a source of power."""

    joules: float
    seconds: float
    """For which the source told."""
    sessions: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Course:
    """What happened in a run."""

    steps: Curve
    """Logged steps."""
    evaluations: Curve
    floor: float | None
    """Lowest possible validation loss, nats per token, where it is known."""
    sessions: Sequence[Session]
    alarms: Sequence[tuple[int, str]]
    """(step, words)."""
    expert_loads: Sequence[tuple[int, Sequence[Sequence[float]]]]
    """(step, loads in fair shares: of each expert, by router)."""
    tokens_per_step: int
    whole: tuple[int, float, float] | None = None
    """(step, loss in nats per token, bits per byte) on the whole validation split, where it was evaluated."""
    used: Used | None = None
    """Energy; None where nothing tells."""
    ended: str | None = None
    """Why the run ended before its schedule, if it did so by itself and was not taken up again."""
    paced: int | None = None
    """Steps of the schedule where they were worked out from a time; its configuration then says another number."""

    @property
    def last_step(self) -> int:
        """Updates done, as far as the log tells."""
        return int(max((curve.step[-1] for curve in (self.steps, self.evaluations) if len(curve)), default=0))

    @property
    def seconds(self) -> float:
        """Time of training, from the first step to the last row."""
        return float(max((curve.seconds[-1] for curve in (self.steps, self.evaluations) if len(curve)), default=0.0))

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, validation loss) of the best evaluation."""
        losses = self.evaluations.values["val_loss"]
        if not np.isfinite(losses).any():
            return None
        i = int(np.nanargmin(losses))
        return int(self.evaluations.step[i]), float(losses[i])

    @property
    def excess(self) -> float | None:
        """How far the best validation loss lies above the floor, where there is one."""
        return None if self.best is None or self.floor is None else self.best[1] - self.floor

    @property
    def stepping(self) -> tuple[float, float]:
        """(steps that were timed, seconds that they took)."""
        dt = self.steps.values["dt"]
        timed = np.isfinite(dt)
        steps = np.diff(self.steps.step, prepend=0)[timed]
        return float(steps.sum()), float((steps * dt[timed]).sum())

    @property
    def tokens_per_second(self) -> float:
        """Over all steps that were timed; NaN if none was."""
        steps, seconds = self.stepping
        return self.tokens_per_step * steps / seconds if seconds > 0 else math.nan

    @property
    def untimed(self) -> list[tuple[float, float]]:
        """Gaps of the speed, as (from, to) in steps: compilation, a machine asleep or throttled."""
        before = np.concatenate([[0.0], self.steps.step[:-1]]) if len(self.steps) else self.steps.step
        missing = np.isnan(self.steps.values["tps"])
        return [(float(a), float(b)) for a, b in zip(before[missing], self.steps.step[missing], strict=True)]

    @property
    def memory(self) -> float | None:
        """Peak, in bytes, where the framework tells."""
        found = self.steps.finite("memory")
        return float(found.max()) if len(found) else None


def course(rows: Sequence[Mapping[str, Any]], tokens_per_step: int) -> Course:
    """The course of a run.

    Args:
        rows: of its metrics.jsonl, as `read_metrics` gives them.
        tokens_per_step: over all micro-steps.

    Raises:
        ValueError: a row without a step; says which.
    """
    clock = _Clock()
    logged, evaluated = _Rows(LOGGED), _Rows(("val_loss", "train_loss"))
    sessions, alarms, loads = [Session(first_step=0)], [], []
    floor, whole, used, ended, paced = None, None, None, None, None
    for number, row in enumerate(rows, start=1):
        step = row.get("step")
        if type(step) is not int or step < 0:
            raise ValueError(f"row {number} has no step")
        seconds = clock.at(step, row)
        if "loss" in row:
            logged.add(step, seconds, row)
            if _is_loads(row.get("expert_load")):
                loads.append((step, row["expert_load"]))
        elif "val_loss" in row:
            evaluated.add(step, seconds, row)
            floor = _number(row.get("floor")) if row.get("floor") is not None else floor
        elif "whole_val_loss" in row:
            whole = (step, _number(row["whole_val_loss"]), _number(row.get("bits_per_byte")))
        elif "alarm" in row:
            alarms.append((step, str(row["alarm"])))
        elif row.get("event") == "energy":
            used = _used(used, row)
        elif row.get("event") == "end":
            ended = str(row.get("why"))
        elif row.get("event") == "pace":
            paced = None if math.isnan(steps := _number(row.get("max_steps"))) else int(steps)
        elif row.get("event") == "resume":
            sessions.append(Session(first_step=step))
            ended = paced = None
        elif row.get("event") == "start":
            known = {name: _number(row.get(name)) for name in ("start_up", "first_step_seconds")}
            sessions[-1] = Session(
                first_step=sessions[-1].first_step, **{k: v for k, v in known.items() if not math.isnan(v)}
            )
    return Course(
        steps=logged.curve(),
        evaluations=evaluated.curve(),
        floor=floor if floor is not None and math.isfinite(floor) else None,
        sessions=sessions,
        alarms=alarms,
        expert_loads=loads,
        tokens_per_step=tokens_per_step,
        whole=whole,
        used=used,
        ended=ended,
        paced=paced,
    )


class _Clock:
    """When each row was written, in seconds of training.

    Rows say how long their session had been running, and its `start` says how much of that was start-up, which is left
    out. In older runs, which say neither, the time of a step stands for it, and what lay between steps is not known.
    """

    def __init__(self) -> None:
        self._now, self._step = 0.0, 0
        self._last = math.nan
        """Time of the row before in its session; NaN before the first step."""

    def at(self, step: int, row: Mapping[str, Any]) -> float:
        time, event = _number(row.get("time")), row.get("event")
        if event == "resume":
            self._last, self._step = math.nan, step
        elif event == "start":
            self._now += max(_number(row.get("first_step_seconds"), 0.0), 0.0)
            self._last = time
        elif math.isfinite(time) and math.isfinite(self._last):
            self._now += max(time - self._last, 0.0)
            self._last = time
        elif "loss" in row:
            self._now += max(step - self._step, 0) * max(_number(row.get("dt"), 0.0), 0.0)
        if "loss" in row:
            self._step = step
        return self._now


class _Rows:
    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._step: list[int] = []
        self._seconds: list[float] = []
        self._values: list[list[float]] = []

    def add(self, step: int, seconds: float, row: Mapping[str, Any]) -> None:
        self._step.append(step)
        self._seconds.append(seconds)
        self._values.append([_number(row.get(name)) for name in self._names])

    def curve(self) -> Curve:
        table = np.array(self._values, dtype=np.float64).reshape(len(self._step), len(self._names))
        return Curve(
            step=np.array(self._step, dtype=np.float64),
            seconds=np.array(self._seconds, dtype=np.float64),
            values={name: table[:, i] for i, name in enumerate(self._names)},
        )


def _number(value: Any, otherwise: float = math.nan) -> float:
    # Beyond that it is no measurement, and nothing that can be drawn.
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST_VALUE:
        return float(value)
    return otherwise


def _used(before: Used | None, row: Mapping[str, Any]) -> Used | None:
    """With one more session's, if it tells."""
    joules, seconds = _number(row.get("joules")), _number(row.get("seconds"))
    if not (joules >= 0 and seconds > 0):
        return before
    if before is None:
        return Used(joules=joules, seconds=seconds, sessions=1)
    return Used(joules=before.joules + joules, seconds=before.seconds + seconds, sessions=before.sessions + 1)


def _is_loads(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(router, list) and router and all(math.isfinite(_number(load)) for load in router)
            for router in value
        )
    )


def thinned(x: Numbers, y: Numbers, buckets: int = BUCKETS) -> tuple[Numbers, Numbers]:
    """A curve that looks the same, of at most three points per bucket: the least, the greatest, and a gap if any."""
    if len(x) <= 2 * buckets:
        return x, y
    span = float(x[-1] - x[0]) or 1.0
    places = ((x - x[0]) / span * (buckets - 1)).astype(int).tolist()
    values: list[float] = y.tolist()
    kept: dict[tuple[int, str], int] = {}
    for i, (place, value) in enumerate(zip(places, values, strict=True)):
        if math.isnan(value):
            kept[place, "gap"] = i
            continue
        if value < values[kept.setdefault((place, "least"), i)]:
            kept[place, "least"] = i
        if value > values[kept.setdefault((place, "greatest"), i)]:
            kept[place, "greatest"] = i
    chosen = sorted({0, *kept.values(), len(x) - 1})
    return x[chosen], y[chosen]


def sparkline(values: Numbers, width: int = 40, *, ascii_only: bool = False) -> str:
    """A curve as one line of text: a character per stretch, its height the mean there, on a logarithmic scale.

    Nothing for a curve without numbers; a blank where a stretch has none.
    """
    if not np.isfinite(values).any():
        return ""
    blocks = ASCII_BLOCKS if ascii_only else BLOCKS
    parts = [part[np.isfinite(part)] for part in np.array_split(values, min(width, len(values)))]
    means = np.array([part.mean() if len(part) else math.nan for part in parts])
    if np.nanmin(means) > 0:
        means = np.log(means)
    low, high = np.nanmin(means), np.nanmax(means)
    heights = (means - low) / (high - low) * (len(blocks) - 1) if high > low else means - low
    return "".join(" " if math.isnan(height) else blocks[round(height)] for height in heights)


def loss_line(run: Course, encoding: str | None = None) -> str:
    """The training loss as a line of blocks, with where it began and ended; nothing without logged losses.

    Args:
        encoding: of where it is printed; UTF-8 if None.
    """
    losses = run.steps.finite("loss")
    if not len(losses):
        return ""
    line = sparkline(losses)
    try:
        line.encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        line = sparkline(losses, ascii_only=True)
    return f"{line} {losses[0]:.3g} to {losses[-1]:.3g}"
