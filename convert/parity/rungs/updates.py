"""L6: the optimiser alone, and one full step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from convert.parity import material
from convert.parity.climb import ORACLE, Climb
from convert.parity.compare import Arrays, Measurement, without_key_bias
from convert.parity.rungs.exact_adamw import ExactAdamW
from convert.parity.rungs.exact_muon import ExactMuon
from convert.parity.twins.choices import choice_gates
from convert.parity.twins.twin import Batches, Twin
from gpt_common.config import ModelConfig, OptimConfig, RunConfig
from gpt_common.keyed import keyed_generator
from gpt_common.network.parameters import parameter_shapes
from gpt_common.training.schedule import learning_rate

LEAST_RATE = 1e-3
"""Least peak of the learning rate in L6a and L6b: below it, rounding the new weight hides what changes it.

A norm's weight is near 1, and an update of 1e-5 is 100 units in its last place. custom-llm-1b decays by 2e-7 a step,
two or three units: rounded 200 times, and the same way, that is 2.1e-6 of the update, in PyTorch and in MLX alike.
"""
STORED = 2.0
"""A weight is rounded twice in a step: when it decays, and when it moves."""
ROUNDED_SHARE = 0.05
"""At most this share of the first update may be left to rounding."""
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
    twins: dict[str, ExactAdamW | Twin] = {ORACLE: oracle, **climb.twins(config)}
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
        yield from climb.compare(found_by_name, climb.gate(gate), split_bias=False)
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
    exact = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in gradients.values()))
    norms = {n: twin.update(gradients, 0, config.optim.learning_rate) for n, twin in climb.twins(config).items()}
    found = {n: {name: np.array(norm)} for n, norm in {ORACLE: exact, **norms}.items()}
    yield from climb.compare(found, climb.gate("L5"))


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
    config = climb.config
    if config.train.grad_accum_steps == 1:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, grad_accum_steps=2))
    if config.model.dropout:
        config = material.with_dropout(config, config.model.dropout)
    for state, weights in climb.states().items():
        yield from one_step(climb, config, state, weights, material.batches(config, 0))
    weights = material.widened(config)
    yield from one_step(climb, config, "examples in rows", weights, material.packed(config))


def one_step(climb: Climb, config: RunConfig, state: str, weights: Arrays, batches: Batches) -> Iterator[Measurement]:
    """The first step of `config` from these weights, one batch per micro-step."""
    gate = climb.gate("L6b")
    updates: dict[str, Arrays] = {}
    figures: dict[str, Arrays] = {}
    twins = {ORACLE: climb.oracle(config), **climb.twins(config)}
    rate = max(config.optim.learning_rate, LEAST_RATE)
    for twin in twins.values():
        twin.set_weights(weights)
    steps, own = climb.routed_alike(twins, lambda twin: twin.step(batches, 0, rate))
    yield from choice_gates(own, config.model, climb.gate("L3"), state)
    yield from routing_differences(twins, climb.reference, state)
    for name, twin in twins.items():
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
    stored = {
        tensor: float(np.linalg.norm(weights[tensor.removeprefix("update of ")]) * 2.0**-24 / np.linalg.norm(update))
        for tensor, update in updates[ORACLE].items()
        if update.any()
    }
    for measured in climb.compare(updates, gate, state, ratio=False):
        # A gradient far below Adam's epsilon moves a weight by less than storing it in float32 can tell.
        noise = stored.get(measured.tensor, 0.0)
        yield measured.allowing(noise, STORED) if noise > gate else measured
    for figure, limit in (("loss", climb.gate("L4")), ("gradient norm", climb.gate("L5"))):
        one = {name: {figure: arrays[figure]} for name, arrays in figures.items()}
        yield from climb.compare(one, limit, state)


def routing_differences(twins: Mapping[str, Twin], reference: str, state: str = "") -> Iterator[Measurement]:
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


def whole_schedule(optim: OptimConfig, steps: int) -> OptimConfig:
    """Warm-up and decay within the steps there are: during a warm-up of thousands nothing would move."""
    return dataclasses.replace(optim, warmup_steps=min(optim.warmup_steps, steps // 10), decay_steps=0)


def raised(optim: OptimConfig, least: float) -> OptimConfig:
    """The same schedule with a peak of at least `least`."""
    factor = max(1.0, least / optim.learning_rate)
    return dataclasses.replace(optim, learning_rate=factor * optim.learning_rate, min_lr=factor * optim.min_lr)
