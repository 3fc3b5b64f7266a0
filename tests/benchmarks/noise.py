"""Sessions of made-up step times with the vices of real machines: lasting jitter, spikes, drift, moody processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Steps = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Noise:
    """How unsteady a machine is; shares of a step's time."""

    process: float = 0.01
    """Standard deviation of what a process keeps from start to end: memory layout, placement."""
    heavy_tails: bool = False
    """Whether some processes are far off (Student's t with 3 degrees of freedom) and not normally distributed."""
    jitter: float = 0.03
    """Standard deviation of single steps, correlated 0.8 from step to step."""
    drift: float = 0.15
    """Standard deviation of the whole session's drift."""
    wander: float = 0.01
    """Slow changes of load from process to process, correlated 0.7."""


MACHINES = {
    "quiet": Noise(process=0.005, wander=0.003),
    "usual": Noise(),
    "warming": Noise(drift=0.3),
    "moody": Noise(heavy_tails=True),
}


def process_steps(rng: np.random.Generator, level: float, jitter: float, steps: int = 60) -> Steps:
    """Steps of one process around `level` seconds, with a spike of 1.5 to 6 times now and then."""
    shocks = rng.normal(size=steps) * jitter * 0.6
    correlated = np.empty(steps)
    state = rng.normal() * jitter
    for i, shock in enumerate(shocks):
        state = 0.8 * state + shock
        correlated[i] = state
    times = level * np.exp(correlated)
    spikes = rng.random(steps) < 0.02
    times[spikes] *= rng.uniform(1.5, 6, spikes.sum())
    return times


def session(
    rng: np.random.Generator,
    noise: Noise,
    slowdown: Sequence[float] = (1.0, 1.0, 1.0),
    rounds: int = 6,
    *,
    alternate: bool = True,
) -> list[list[Steps]]:
    """Steps of each backend in each round.

    Args:
        slowdown: true time of each backend, as a multiple of 20 ms.
        alternate: A B C C B A, as a session does; otherwise A B C A B C.
    """
    backends = len(slowdown)
    found: list[list[Steps]] = [[] for _ in slowdown]
    drift, wander, position = rng.normal() * noise.drift, 0.0, 0
    for number in range(rounds):
        order = range(backends) if number % 2 == 0 or not alternate else reversed(range(backends))
        for backend in order:
            wander = 0.7 * wander + rng.normal() * noise.wander
            mood = rng.standard_t(3) * 0.6 if noise.heavy_tails else rng.normal()
            change = drift * position / (rounds * backends) + noise.process * mood + wander
            level = 0.02 * slowdown[backend] * np.exp(change)
            found[backend].append(process_steps(rng, level, noise.jitter))
            position += 1
    return found


def medians(processes: Sequence[Steps]) -> list[float]:
    """What a session compares: one figure per process."""
    return [float(np.median(steps)) for steps in processes]
