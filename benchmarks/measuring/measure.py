"""How one process measures: first step, warm-up, proof that the timer waits, two series, memory, the peak.

Two series, because they answer two questions. *Latency* waits for the device after every step: how long does a step
take? *Throughput* waits after every tenth: how many steps does a training run get done? Where the framework queues
work ahead of the device, the second is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.measuring.resources import resident, swapped
from benchmarks.measuring.samples import Clocks, Series, median_of
from benchmarks.measuring.thermal import ThrottleWatch
from benchmarks.measuring.work import Batcher, Batches, Work, run_steps
from benchmarks.readings import Measured, Memory, Plan, SelfTest, Throttling, WarmUp
from gpt_common.config import RunConfig

BLOCK = 10
"""Steps between two waits in a throughput series."""
COMPARED_LOSSES = 5
"""Steps whose losses must agree between backends: the proof that they did the same work."""
WARM_STEPS = 20
WARM_DRIFT = 0.02
"""Warm is when the medians of the two halves of the last WARM_STEPS steps differ by less than this."""
PRODUCT_SIZES = (256, 512, 1024, 2048, 4096, 8192)
PRODUCT_SECONDS = 0.08
"""No larger product is tried once one takes longer than this."""
PRODUCT_REPEATS = 3


Report = Callable[[str, float], None]
"""Is told the phase and the share of it that is done, between 0 and 1."""


class Measurement:
    """One process's measurement of one backend.

    Args:
        watch: looks for throttling between samples.
        stop: whether to end the series early.
    """

    def __init__(
        self,
        work: Work,
        config: RunConfig,
        plan: Plan,
        watch: ThrottleWatch,
        report: Report,
        stop: Callable[[], bool] = lambda: False,
        clocks: Clocks | None = None,
    ) -> None:
        self._work, self._plan, self._watch, self._report = work, plan, watch, report
        self._config, self._stop = config, stop
        self._batcher = Batcher(config)
        self._clocks = clocks or Clocks()

    def run(self) -> Measured:
        """Everything, as the worker's result."""
        base = resident()
        self._report("first step", 0)
        first, losses = self._first_steps()
        warm_up = self._warm_up()
        self_test = self._self_test(warm_up.step_seconds)
        swap = swapped()
        latency = self._series("latency", 1, self._plan.latency_seconds)
        throughput = self._series("throughput", BLOCK, self._plan.throughput_seconds)
        self._report("peak", 0)
        # Before the products, whose matrices are not the training's.
        memory = Memory(
            **self._work.memory(),
            resident_before=base["now"],
            resident_peak=resident()["peak"],
            swapped=swapped() - swap,
        )
        return Measured(
            plan=self._plan,
            first_step_seconds=first,
            losses=[*losses],
            warm_up=warm_up,
            self_test=self_test,
            products=self._products(),
            latency=latency.samples(),
            throughput=throughput.samples(),
            compilation=self._work.compilation(),
            memory=memory,
            interrupted=self._stop(),
            throttling=Throttling(known=self._watch.known, evidence=self._watch.seen),
        )

    def _steps(self, steps: list[tuple[int, Batches]]) -> None:
        run_steps(self._work, self._config, steps)

    def _first_steps(self) -> tuple[float, list[float]]:
        """Seconds of the first step, which compiles what is compiled, and the losses of the first few."""
        began = self._clocks.awake()
        self._steps(self._batcher.take(1))
        first = self._clocks.awake() - began
        losses = [self._work.loss()]
        for _ in range(COMPARED_LOSSES - 1):
            self._steps(self._batcher.take(1))
            losses.append(self._work.loss())
        return round(first, 6), losses

    def _warm_up(self) -> WarmUp:
        """Step until the times stand still, or patience ends."""
        series = Series(1, self._clocks)
        began, drift = self._clocks.awake(), float("inf")
        while drift >= WARM_DRIFT:
            spent = self._clocks.awake() - began
            if spent >= self._plan.warm_seconds and series.seconds:
                break
            self._report("warm-up", min(1.0, spent / self._plan.warm_seconds))
            series.take(lambda: self._batcher.take(1), self._steps)
            drift = _drift(series.seconds)
        step_seconds = median_of(series.seconds[-WARM_STEPS:])
        assert step_seconds is not None
        return WarmUp(
            steps=len(series.seconds) + COMPARED_LOSSES,
            seconds=round(self._clocks.awake() - began, 3),
            settled=drift < WARM_DRIFT,
            drift=None if drift == float("inf") else round(drift, 4),
            step_seconds=step_seconds,
        )

    def _self_test(self, step_seconds: float) -> SelfTest:
        """What is left to do after waiting: the time to copy results to the host, less that of copying them again."""
        left = []
        for _ in range(3):
            self._steps(self._batcher.take(1))
            times = []
            for _ in range(2):
                began = self._clocks.awake()
                self._work.force()
                times.append(self._clocks.awake() - began)
            left.append(times[0] - times[1])
        return SelfTest(step_seconds=step_seconds, left_seconds=max(0.0, median_of(left) or 0.0))

    def _products(self) -> dict[str, float]:
        """Seconds of one matrix product by width, the best of several tries."""
        found: dict[str, float] = {}
        for n in PRODUCT_SIZES:
            if n > self._plan.largest_product:
                break
            queue = self._work.product(n)
            self._time_products(queue, 1)
            once = self._time_products(queue, 1)
            # Several in a row where one is short, so that queueing them does not count.
            count = max(1, min(100, round(0.02 / max(once, 1e-6))))
            found[str(n)] = min(self._time_products(queue, count) for _ in range(PRODUCT_REPEATS))
            if found[str(n)] > PRODUCT_SECONDS:
                break
        return found

    def _time_products(self, queue: Callable[[], None], count: int) -> float:
        self._work.wait()
        began = self._clocks.awake()
        for _ in range(count):
            queue()
        self._work.wait()
        return (self._clocks.awake() - began) / count

    def _series(self, name: str, steps: int, seconds: float) -> Series:
        """Samples for `seconds`, each of `steps` steps; the watch looks between them."""
        series = Series(steps, self._clocks)
        if seconds <= 0:
            return series
        began, checked, hot = self._clocks.awake(), 0, False
        for _ in self._until(name, began, seconds, series):
            series.take(lambda: self._batcher.take(steps), self._steps)
            if self._watch.due():
                checked, hot = self._mark_throttled(series, checked, hot)
        self._mark_throttled(series, checked, hot)
        series.mark_outliers()
        return series

    def _mark_throttled(self, series: Series, checked: int, hot: bool) -> tuple[int, bool]:
        """Mark what was taken since the last look if there is evidence now, or was then."""
        still = self._watch.look() is not None
        if hot or still:
            series.mark_since(checked, "throttled")
        return len(series.seconds), still

    def _until(self, name: str, began: float, seconds: float, series: Series) -> Iterator[None]:
        while (spent := self._clocks.awake() - began) < seconds or _steps_of(series) < self._plan.minimum_steps:
            if self._stop():
                return
            self._report(name, min(1.0, spent / seconds))
            yield


def _steps_of(series: Series) -> int:
    return len(series.seconds) * series.steps_per_sample


def _drift(seconds: list[float]) -> float:
    """Relative difference of the medians of the halves of the last WARM_STEPS; infinite before there are as many."""
    if len(seconds) < WARM_STEPS:
        return float("inf")
    half = WARM_STEPS // 2
    before, after = median_of(seconds[-WARM_STEPS:-half]), median_of(seconds[-half:])
    assert before is not None
    assert after is not None
    return abs(after / before - 1)
