"""The ladder: its rungs in order, and the climb from bytes to generated text, to real size and to ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from convert.parity.climb import Climb
from convert.parity.compare import Measurement
from convert.parity.rungs.adapters import rung_adapters
from convert.parity.rungs.generation import rung_generation
from convert.parity.rungs.operations import rung_bytes, rung_operations
from convert.parity.rungs.passes import rung_gradients, rung_layers, rung_logits, rung_loss
from convert.parity.rungs.quantised import rung_quantised
from convert.parity.rungs.ranks import rung_ranks
from convert.parity.rungs.real_size import rung_real_size
from convert.parity.rungs.trajectories import rung_switch, rung_trajectory
from convert.parity.rungs.updates import rung_optimizer, rung_step


@dataclass(frozen=True)
class Rung:
    """One kind of comparison. Each rung rests on those below: a failure belongs to the first that fails."""

    name: str
    title: str
    measure: Callable[[Climb], Iterator[Measurement]]


RUNGS = (
    Rung("L0", "bytes", rung_bytes),
    Rung("L1", "operations", rung_operations),
    Rung("L2", "layers", rung_layers),
    Rung("L3", "logits", rung_logits),
    Rung("L4", "loss", rung_loss),
    Rung("L5", "gradients", rung_gradients),
    Rung("L6a", "optimiser", rung_optimizer),
    Rung("L6b", "one step", rung_step),
    Rung("L7", "trajectory", rung_trajectory),
    Rung("L8", "change of framework", rung_switch),
    Rung("G", "generation", rung_generation),
    Rung("A", "adapters", rung_adapters),
    Rung("Q", "quantised", rung_quantised),
    Rung("S", "real size", rung_real_size),
    Rung("R", "ranks", rung_ranks),
)
NAMES = [rung.name for rung in RUNGS]


@dataclass(frozen=True)
class Result:
    """What a rung measured."""

    rung: Rung
    measurements: list[Measurement]
    seconds: float
    note: str = ""
    """What it was climbed with, or why it was left out, where that is not said elsewhere."""

    @property
    def passed(self) -> bool:
        """Whether every measurement is within its gate."""
        return all(m.passed for m in self.measurements)

    @property
    def worst(self) -> Measurement | None:
        """The distance nearest to its gate, or whatever is furthest beyond; None if the class has no gate here."""
        failed = [m for m in self.measurements if not m.passed]
        return max(failed or (m for m in self.measurements if not m.times), key=lambda m: m.strain, default=None)

    @property
    def times(self) -> Measurement | None:
        """The largest multiple: of PyTorch's error, or of the noise."""
        return max((m for m in self.measurements if m.times), key=lambda m: m.strain, default=None)


@dataclass
class Report:
    """A climb and how it ended."""

    climb: Climb
    results: list[Result] = field(default_factory=list)

    @property
    def failed(self) -> Result | None:
        """The rung that ended the climb; None if all passed."""
        return next((result for result in self.results if not result.passed), None)


def climb_ladder(
    climb: Climb, rungs: Sequence[str] = NAMES, on_result: Callable[[Result], None] = lambda _: None
) -> Report:
    """Climb the named rungs in order, up to the first that fails.

    Args:
        on_result: is told the result of every rung.
    """
    report = Report(climb)
    for rung in RUNGS:
        if rung.name in rungs:
            began = time.perf_counter()
            measurements = list(rung.measure(climb))
            result = Result(rung, measurements, time.perf_counter() - began, climb.notes.get(rung.name, ""))
            report.results.append(result)
            on_result(result)
            if not result.passed:
                break
    return report
