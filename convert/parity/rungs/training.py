"""L6 to L8: the optimiser alone, one full step, hundreds of steps, and a change of framework on the way."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from convert.parity import material
from convert.parity.climb import ORACLE, Climb
from convert.parity.compare import Arrays, Measurement, distances, without_key_bias
from convert.parity.gates import COARSE_NOISE, ENVELOPE, ROUNDING
from convert.parity.rungs.exact_adamw import ExactAdamW, Optimizing
from convert.parity.rungs.exact_muon import ExactMuon
from convert.parity.twins.backends import Batches, Choices, Twin
from convert.parity.twins.choices import choice_gates, parted
from gpt_common.config import ModelConfig, OptimConfig, RunConfig
from gpt_common.network.init import keyed_generator, parameter_shapes
from gpt_common.training.schedule import learning_rate

DROPOUT = 0.1
"""Rate of the long trajectories where the configuration has none."""
NUDGED = "one unit in the last place off"
PERTURBED_RUNS = 2
"""Trajectories from weights one unit in the last place off, which make the noise envelope."""
LEAST_RATE = 1e-3
"""Least peak of the learning rate in L6a and L6b: below it, rounding the new weight hides what changes it.

A norm's weight is near 1, and an update of 1e-5 is 100 units in its last place. custom-llm-1b decays by 2e-7 a step,
two or three units: rounded 200 times, and the same way, that is 2.1e-6 of the update, in PyTorch and in MLX alike.
"""
STORED = 2.0
"""A weight is rounded twice in a step: when it decays, and when it moves."""
ROUNDED_SHARE = 0.05
"""At most this share of the first update may be left to rounding."""
SWITCHES = 5
"""How often the ping-pong run changes framework."""
OPTIMIZER_MODEL = ModelConfig(vocab_size=64, block_size=16, n_layer=1, n_head=2, n_embd=16, bias=True)
"""Adam knows no shapes: matrices and vectors of a small model stand for all."""
MUON_MODEL = dataclasses.replace(
    OPTIMIZER_MODEL, feed_forward="moe", n_expert=4, n_shared_expert=1, experts_per_token=2, expert_width=24
)
"""Muon does: wide, tall and square matrices, and stacks of wide and of tall ones."""
MANY_ROWS = dataclasses.replace(OPTIMIZER_MODEL, vocab_size=32768)
"""A gradient norm is a long sum: MLX's CPU loses 1e-4 of one over half a million numbers in one go."""


def rung_optimizer(climb: Climb) -> Iterator[Measurement]:
    """Clipping and the optimiser from identical gradients, which differ by nine orders of magnitude.

    Weights are of the size of some updates, so that rounding them to float32 weighs equally at every learning rate.
    """
    muon = climb.config.optim.optimizer == "muon"
    optim = raised(climb.config.optim, LEAST_RATE)
    peak = optim.learning_rate
    config = dataclasses.replace(climb.config, model=MUON_MODEL if muon else OPTIMIZER_MODEL, optim=optim)
    steps = climb.optimizer_steps
    schedule = whole_schedule(config.optim, steps)
    start = {
        name: keyed_generator(0, "optimizer", name).standard_normal(value.shape, np.float32) * np.float32(5 * peak)
        for name, value in material.fresh(config).items()
    }
    oracle = ExactMuon(config.optim) if muon else ExactAdamW(config.optim)
    twins: dict[str, Optimizing] = {ORACLE: oracle, **climb.twins(config)}
    norms: dict[str, Arrays] = {}
    for name, twin in twins.items():
        twin.set_weights(start)
        found = []
        for step in range(steps):
            climb.progress(f"optimiser, {name}", step, steps)
            rate = learning_rate(step, schedule, steps)
            found.append(twin.update(_random_gradients(start, step), step, rate))
        norms[name] = {"gradient norm": np.array(found)}
    weights = {name: twin.weights() for name, twin in twins.items()}
    moments = {name: twin.moments() for name, twin in twins.items()}
    updates = {name: {f"update of {t}": v - start[t] for t, v in w.items()} for name, w in weights.items()}
    for found_by_name, gate in ((updates, "L6a update"), (moments, "L6a moments"), (norms, "L6a moments")):
        exact = found_by_name.pop(ORACLE)
        yield from climb.compare(found_by_name, exact, climb.gate(gate), split_bias=False)
    limit = climb.gate("L6a distance")
    for name in climb.names:
        for tensor, value in weights[name].items():
            distance = float(np.abs(value - weights[ORACLE][tensor]).max()) / peak
            yield Measurement(
                tensor=f"{tensor}: largest difference in learning rates",
                error=distance,
                gate=limit,
                between=f"{name} ~ {ORACLE}",
            )
    yield from _large_norm(climb)


def _large_norm(climb: Climb) -> Iterator[Measurement]:
    """The norm of a gradient with many rows."""
    config = dataclasses.replace(climb.config, model=MANY_ROWS)
    gradients = {
        tensor: keyed_generator(0, "large", tensor).standard_normal(shape, np.float32)
        for tensor, shape in parameter_shapes(MANY_ROWS).items()
    }
    name = "norm of a large gradient"
    exact = {name: np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in gradients.values()))}
    norms = {n: twin.update(gradients, 0, config.optim.learning_rate) for n, twin in climb.twins(config).items()}
    yield from climb.compare({n: {name: np.array(norm)} for n, norm in norms.items()}, exact, climb.gate("L5"))


def _random_gradients(like: Arrays, step: int) -> Arrays:
    """Gradients between 1e-9 and 1: every other step one scale per tensor, large enough to be clipped or not."""
    gradients = {}
    for name, value in like.items():
        generator = keyed_generator(step, "gradient", name)
        scale = np.float32(10 ** generator.uniform(-9, 0)) if step % 2 else np.float32(0.1)
        gradients[name] = generator.standard_normal(value.shape, np.float32) * scale
    return gradients


def rung_step(climb: Climb) -> Iterator[Measurement]:
    """One step as the trainer does it, from every state: accumulated micro-steps, dropout, clipping, update."""
    if not climb.has_gate("L6b"):
        return
    gate = climb.gate("L6b")
    config = climb.config
    if config.train.grad_accum_steps == 1:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, grad_accum_steps=2))
    if config.model.dropout:
        config = material.with_dropout(config, config.model.dropout)
    for state, weights in climb.states().items():
        updates: dict[str, Arrays] = {}
        figures: dict[str, Arrays] = {}
        everyone = {ORACLE: climb.oracle(config), **climb.twins(config)}
        rate = max(config.optim.learning_rate, LEAST_RATE)
        for twin in everyone.values():
            twin.set_weights(weights)
        steps, own = climb.together(everyone, lambda twin: twin.step(material.batches(config, 0), 0, rate))  # noqa: B023
        yield from choice_gates(own, config.model, climb.gate("L3"), state)
        yield from _routed(everyone, climb.reference, state)
        for name, twin in everyone.items():
            loss, norm = steps[name]
            moved = {f"update of {tensor}": value - weights[tensor] for tensor, value in twin.weights().items()}
            updates[name] = without_key_bias(moved, config.model)
            if name == ORACLE:
                decided = _left_to_rounding(twin.moments(), config, climb.gate("L5"))
            figures[name] = {"loss": np.array([loss]), "gradient norm": np.array([norm])}
        for tensor, left in decided.items():
            for arrays in updates.values():
                arrays[f"update of {tensor}"][left] = 0
        share = sum(int(left.sum()) for left in decided.values()) / sum(left.size for left in decided.values())
        label = "share of the update that is left to rounding"
        yield Measurement(tensor=label, error=share, gate=ROUNDED_SHARE, between=ORACLE, state=state)
        exact = updates.pop(ORACLE)
        stored = {
            tensor: float(
                np.linalg.norm(weights[tensor.removeprefix("update of ")]) * 2.0**-24 / np.linalg.norm(update)
            )
            for tensor, update in exact.items()
            if update.any()
        }
        for measured in climb.compare(updates, exact, gate, state, ratio=False):
            # A gradient far below Adam's epsilon moves a weight by less than storing it in float32 can tell.
            noise = stored.get(measured.tensor, 0.0)
            yield measured.beside(noise, STORED) if noise > gate else measured
        for figure, limit in (("loss", climb.gate("L4")), ("gradient norm", climb.gate("L5"))):
            one = {name: {figure: arrays[figure]} for name, arrays in figures.items()}
            yield from climb.compare(one, one.pop(ORACLE), limit, state)


def _routed(twins: Mapping[str, Twin], reference: str, state: str = "") -> Iterator[Measurement]:
    """Expert loads are integers and equal, and so is what balancing makes of them."""
    loads = {name: twin.loads() for name, twin in twins.items()}
    buffers = {name: twin.buffers() for name, twin in twins.items()}
    for name in twins:
        if name in (reference, ORACLE):
            continue
        between = f"{name} ~ {reference}"
        for router, (load_E, wanted_E) in enumerate(zip(loads[name], loads[reference], strict=True)):
            wrong = float(np.abs(np.array(load_E) - np.array(wanted_E)).sum())
            tensor = f"tokens at other experts, router {router}"
            yield Measurement(tensor=tensor, error=wrong, gate=0.0, between=between, state=state)
        for tensor, value in buffers[name].items():
            wrong = float((value != buffers[reference][tensor]).sum())
            yield Measurement(tensor=tensor, error=wrong, gate=0.0, between=between, state=state)


def _left_to_rounding(moments: Arrays, config: RunConfig, gate: float) -> dict[str, np.ndarray]:
    """Where the error that L5 allows a gradient would change its sign, or move its update by more than a hundredth.

    Adam's first update is g / (|g| + eps) whatever the size of g: near zero, rounding decides. The first moment after
    one step is the gradient but for a factor.
    """
    decided, optim = {}, config.optim
    for name, value in without_key_bias(moments, config.model).items():
        moment, _, tensor = name.partition(".")
        if moment == "exp_avg":
            size = np.abs(value) / (1 - optim.beta1)
            error = gate * np.sqrt(np.mean(size**2))
            moved = error * optim.adam_eps / (size + optim.adam_eps) ** 2
            decided[tensor] = (size > 0) & ((size <= error) | (moved > 0.01))
    return decided


# ---- trajectories ------------------------------------------------------------------------------------------------


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


def whole_schedule(optim: OptimConfig, steps: int) -> OptimConfig:
    """Warm-up and decay within the steps there are: during a warm-up of thousands nothing would move."""
    return dataclasses.replace(optim, warmup_steps=min(optim.warmup_steps, steps // 10), decay_steps=0)


def raised(optim: OptimConfig, least: float) -> OptimConfig:
    """The same schedule with a peak of at least `least`."""
    factor = max(1.0, least / optim.learning_rate)
    return dataclasses.replace(optim, learning_rate=factor * optim.learning_rate, min_lr=factor * optim.min_lr)


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
    yield from _routed(twins, climb.reference)
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
        for measurement in climb.compare(weights, None, climb.gate("L7 weights")):
            noise = moved[measurement.tensor]
            after = dataclasses.replace(measurement, tensor=f"{measurement.tensor} after {steps} steps")
            # Where noise breaks the gate on its own no twin could keep it. So it is with queries of custom-llm-tiny:
            # products of four matrices near zero leave Adam the sign of rounding.
            yield after.beside(noise, ENVELOPE) if noise > after.gate else after


def _flat(choices: Sequence[Choices]) -> Choices:
    return [preferred for step in choices for preferred in step]


def _trajectory_gates(
    climb: Climb, gate: str, losses: Sequence[float], reference: Sequence[float], name: str
) -> Iterator[Measurement]:
    """The worst loss and, in the classes that have such a gate, the mean of the last fifty."""
    differences = drift(losses, reference)
    worst = int(np.argmax(differences))
    perturbed = [other[: len(losses)] for other in climb.perturbed] if climb.uncalibrated else []
    noise = max((float(drift(other, reference).max()) for other in perturbed), default=0.0)
    loss = Measurement(
        tensor=f"loss, step {worst}",
        error=float(differences[worst]),
        gate=climb.gate(gate),
        between=f"{name} ~ {climb.reference}",
    )
    yield loss.beside(noise, COARSE_NOISE)
    mean_gate = f"{gate.split()[0]} mean of last 50"
    if climb.has_gate(mean_gate):
        error, *noises = (
            float(drift([float(np.mean(run[-50:]))], [float(np.mean(reference[-50:]))])[0])
            for run in (losses, *perturbed)
        )
        mean = dataclasses.replace(loss, tensor="mean of the last 50 losses", error=error, gate=climb.gate(mean_gate))
        yield mean.beside(max(noises, default=0.0), COARSE_NOISE)


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
