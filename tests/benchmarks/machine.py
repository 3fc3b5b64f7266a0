"""A made-up machine: its clocks move only when somebody works or waits, so tests of timing time nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.measuring.samples import Clocks
from benchmarks.measuring.work import Batches
from benchmarks.readings import Compilation

LAUNCH_SECONDS = 20e-6
"""What it takes to queue something."""


@dataclass
class Machine:
    """A device with a queue, as GPUs have, and a computer that may sleep or grow hot."""

    step_seconds: float = 0.02
    flops_per_second: float = 1e12
    """Rate of its matrix products."""
    synchronises: bool = True
    """Whether `wait` waits for the device. The mutant is False."""
    sleeps_at_step: int | None = None
    """During this step the computer sleeps for a minute."""
    hot_steps: range = range(0)
    """Steps during which it is throttled to a third of its speed."""
    awake: float = 100.0
    always: float = 5000.0
    queued: float = 0.0
    """Seconds of work that the device has yet to do."""
    steps: int = 0
    description: str = "made-up"
    device: str = "gpu"
    dtype: str = "float32"
    model: None = None
    notes: list[str] = field(default_factory=list)

    @property
    def clocks(self) -> Clocks:
        """Its two clocks."""
        return Clocks(lambda: self.awake, lambda: self.always)

    def spend(self, seconds: float) -> None:
        """Time passes."""
        self.awake += seconds
        self.always += seconds

    def queue(self, seconds: float) -> None:
        """Give the device something to do."""
        self.queued += seconds
        self.spend(LAUNCH_SECONDS)

    def finish(self) -> None:
        """Until the device is idle."""
        self.spend(self.queued)
        self.queued = 0.0

    def evidence(self) -> str:
        """What a throttle watch would read now."""
        return "too hot" if self.steps in self.hot_steps else ""

    # --- what work.Work asks

    def step(self, batches: Batches, step: int, rate: float) -> None:
        assert batches
        assert rate >= 0
        self.steps = step + 1
        self.queue(self.step_seconds * (3 if step in self.hot_steps else 1))
        if step == self.sleeps_at_step:
            self.always += 60.0

    def wait(self) -> None:
        if self.synchronises:
            self.finish()

    def force(self) -> float:
        self.finish()
        self.spend(LAUNCH_SECONDS)
        return 0.0

    def loss(self) -> float:
        self.finish()
        return 4.0

    def product(self, n: int) -> Callable[[], None]:
        return lambda: self.queue(2 * n**3 / self.flops_per_second)

    def weight_bytes(self) -> int:
        return 1000

    def memory(self) -> dict[str, int | None]:
        return {"peak": 1000, "cache": None}

    def compilation(self) -> Compilation | None:
        return None

    def generate(self, prompt: Sequence[int], tokens: int) -> Iterator[int]:
        self.queue(1e-3 * len(prompt))
        for token in range(tokens):
            self.queue(1e-3)
            self.finish()
            yield token
