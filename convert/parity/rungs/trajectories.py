"""L7 and L8: hundreds of steps, and a change of framework on the way."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from convert.parity import material
from convert.parity.climb import Climb
from convert.parity.compare import Arrays, Measurement, distances, without_key_bias
from convert.parity.gates import COARSE_NOISE, ENVELOPE, ROUNDING
from convert.parity.rungs.updates import routing_differences, whole_schedule
from convert.parity.twins.choices import Choices, parted
from convert.parity.twins.twin import Batches, Twin
from gpt_common.config import RunConfig
from gpt_common.training.schedule import learning_rate

DROPOUT = 0.1
"""Rate of the long trajectories where the configuration has none."""
NUDGED = "one unit in the last place off"
PERTURBED_RUNS = 2
"""Trajectories from weights one unit in the last place off, which make the noise envelope."""
SWITCHES = 5
"""How often the ping-pong run changes framework."""


def trajectory_config(climb: Climb) -> RunConfig:
    """The configuration of long runs: dropout with shared masks, and the whole schedule within the steps there are."""
    steps = climb.trajectory_steps
    config = material.with_dropout(climb.config, climb.config.model.dropout or DROPOUT)
    # A block that is recomputed would ask its router twice; L2 to L6b compare such blocks.
    train = dataclasses.replace(
        config.train,
        max_steps=steps,
        gradient_checkpointing=config.train.gradient_checkpointing and not has_routers(config),
    )
    return dataclasses.replace(config, optim=whole_schedule(config.optim, steps), train=train)


def has_routers(config: RunConfig) -> bool:
    """Whether any block sends tokens to experts."""
    return any(config.model.has_experts(layer) for layer in range(config.model.n_layer))


def batches_for(twin: Twin, step: int) -> Batches:
    """Batches are a function of seed and step; that a run was resumed changes nothing."""
    return material.batches(twin.config, step)


@dataclass
class Trajectory:
    """Some steps of training."""

    losses: list[float] = field(default_factory=list)
    choices: list[Choices] = field(default_factory=list)
    """What the routers preferred, by step."""


def train(
    twin: Twin,
    first: int,
    last: int,
    tick: Callable[[int], None] = lambda _: None,
    followed: Sequence[Choices] = (),
) -> Trajectory:
    """Steps `first` to `last`.

    Args:
        followed: what routers shall prefer instead, by step from 0.
    """
    done = Trajectory()
    for step in range(first, last):
        rate = learning_rate(step, twin.config.optim, twin.config.train.max_steps)
        with twin.choosing((followed[step] if followed else None) or None) as own:
            done.losses.append(twin.step(batches_for(twin, step), step, rate)[0])
        done.choices.append(own)
        tick(step)
    return done


def drift(losses: Sequence[float], other: Sequence[float]) -> np.ndarray:
    """Relative difference of two trajectories, step by step."""
    a, b = np.array(losses), np.array(other)
    return np.asarray(np.abs(a - b) / np.abs(b))


def rung_trajectory(climb: Climb) -> Iterator[Measurement]:
    """Hundreds of steps with dropout: losses within the gate and within the noise envelope, weights at the end.

    Where there are routers, all follow the reference's (choices.py): one token at another expert is a step in the loss.
    """
    config, steps = trajectory_config(climb), climb.trajectory_steps
    # A compiled router cannot be led.
    twins = climb.twins(config, eager=has_routers(config))
    losses: dict[str, list[float]] = {}
    weights: dict[str, Arrays] = {}
    elsewhere: dict[str, tuple[int, int]] = {}
    moved: dict[str, float] = {}
    climb.followed = []
    climb.perturbed = []
    perturb = material.coarsened if climb.precision == "bf16" else material.nudged

    def run(name: str, twin: Twin, start: Arrays) -> list[float]:
        twin.set_weights(start)
        tick = partial(climb.progress, f"trajectory, {name}")
        done = train(twin, 0, steps, lambda step: tick(step, steps), climb.followed)
        climb.followed = climb.followed or done.choices
        elsewhere[name] = parted(_flat(done.choices), _flat(climb.followed), config.model)
        return done.losses

    reference = twins[climb.reference]
    for name, twin in twins.items():
        losses[name] = run(name, twin, climb.start())
        weights[name] = without_key_bias(twin.weights(), config.model)
    yield from routing_differences(twins, climb.reference)
    climb.uninterrupted = losses[climb.reference]
    climb.curves["loss"] = losses[climb.reference]

    # What the loss alone is off by, from equal weights, is no drift.
    envelope = np.full(steps, max(ROUNDING[climb.precision], climb.loss_noise))
    for seed in range(PERTURBED_RUNS):
        other = run(NUDGED, reference, perturb(climb.start(), seed))
        climb.perturbed.append(other)
        envelope = np.maximum(envelope, drift(other, losses[climb.reference]))
        for tensor, error in distances(without_key_bias(reference.weights(), config.model), weights[climb.reference]):
            moved[tensor] = max(moved.get(tensor, 0.0), error)
    envelope = np.maximum.accumulate(envelope)
    climb.curves["one unit in the last place"] = envelope.tolist()

    for name in climb.names[1:]:
        differences = drift(losses[name], losses[climb.reference])
        climb.curves[f"{name} ~ {climb.reference}"] = differences.tolist()
        yield from _trajectory_gates(climb, "L7 loss", losses[name], losses[climb.reference], name)
        if has_routers(config):
            ties, against = elsewhere[name]
            tensor = f"experts chosen against a clear lead ({ties} near ties; {elsewhere[NUDGED][0]} {NUDGED})"
            between = f"{name} ~ {climb.reference}"
            yield Measurement(tensor=tensor, error=float(against), gate=0.0, between=between)
        if climb.precision == "strict":
            worst = int(np.argmax(differences / envelope))
            yield Measurement(
                tensor=f"drift beside one unit in the last place's, step {worst}",
                error=float(differences[worst] / envelope[worst]),
                gate=ENVELOPE,
                between=f"{name} ~ {climb.reference}",
                times=True,
            )
    if climb.has_gate("L7 weights"):
        for measurement in climb.compare(weights, climb.gate("L7 weights")):
            noise = moved[measurement.tensor]
            after = dataclasses.replace(measurement, tensor=f"{measurement.tensor} after {steps} steps")
            # Where noise breaks the gate on its own no twin could keep it. So it is with queries of custom-llm-tiny:
            # products of four matrices near zero leave Adam the sign of rounding.
            yield after.allowing(noise, ENVELOPE) if noise > after.gate else after


def _flat(choices: Sequence[Choices]) -> Choices:
    return [preferred for step in choices for preferred in step]


def _trajectory_gates(
    climb: Climb, gate: str, losses: Sequence[float], reference: Sequence[float], name: str
) -> Iterator[Measurement]:
    """The worst loss and, in the classes that have such a gate, the mean of the last fifty."""
    differences = drift(losses, reference)
    worst = int(np.argmax(differences))
    perturbed = [other[: len(losses)] for other in climb.perturbed]
    noise = max((float(drift(other, reference).max()) for other in perturbed), default=0.0)
    loss = Measurement(
        tensor=f"loss, step {worst}",
        error=float(differences[worst]),
        gate=climb.gate(gate),
        between=f"{name} ~ {climb.reference}",
    )
    if climb.uncalibrated:
        yield loss.allowing(noise, COARSE_NOISE)
    else:
        # As of weights: where noise breaks the gate on its own no twin could keep it. Adapters of experts and of
        # custom-llm-tiny amplify one unit in the last place to 2e-3 within 300 steps.
        yield loss.allowing(noise, ENVELOPE) if noise > loss.gate else loss
    mean_gate = f"{gate.split()[0]} mean of last 50"
    if climb.has_gate(mean_gate):
        error, *noises = (
            float(drift([float(np.mean(run[-50:]))], [float(np.mean(reference[-50:]))])[0])
            for run in (losses, *(perturbed if climb.uncalibrated else []))
        )
        mean = dataclasses.replace(loss, tensor="mean of the last 50 losses", error=error, gate=climb.gate(mean_gate))
        yield mean.allowing(max(noises, default=0.0), COARSE_NOISE)


def rung_switch(climb: Climb) -> Iterator[Measurement]:
    """A run that changes framework half-way, both ways, and one that goes back and forth, on the same loss curve."""
    config, steps = trajectory_config(climb), climb.switch_steps
    twins = climb.twins(config, eager=has_routers(config))
    first = climb.reference
    if len(climb.uninterrupted) < steps:
        twins[first].set_weights(climb.start())
        run = train(twins[first], 0, steps)
        climb.uninterrupted, climb.followed = run.losses, run.choices
    uninterrupted = climb.uninterrupted[:steps]
    for other in climb.names[1:]:
        there, back = [first, other], [other, first]
        plans = {
            f"{first} > {other}": _switches(there, steps, 2),
            f"{other} > {first}": _switches(back, steps, 2),
            f"{first} > {other} > {first} ...": _switches(there, steps, SWITCHES + 1),
        }
        for plan, legs in plans.items():
            losses = _relay(climb, twins, legs, plan)
            climb.curves[plan] = drift(losses, uninterrupted).tolist()
            yield from _trajectory_gates(climb, "L8", losses, uninterrupted, plan)


def _switches(names: Sequence[str], steps: int, legs: int) -> list[tuple[str, int, int]]:
    """Who runs from which step to which."""
    bounds = [round(steps * i / legs) for i in range(legs + 1)]
    return [(names[i % len(names)], bounds[i], bounds[i + 1]) for i in range(legs)]


def _relay(climb: Climb, twins: dict[str, Twin], legs: Sequence[tuple[str, int, int]], plan: str) -> list[float]:
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint: Path | None = None
        for name, first, last in legs:
            twin = twins[name]
            if checkpoint is None:
                twin.set_weights(climb.start())
            else:
                first = twin.restore(checkpoint)
            tick = partial(climb.progress, plan)
            losses += train(twin, first, last, lambda step: tick(step, climb.switch_steps), climb.followed).losses  # noqa: B023
            checkpoint = twin.save(Path(folder), last)
    return losses
