"""Where a broken parity comes from: the first tensor that diverges, and the operation that made it."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from convert.parity import material
from convert.parity.climb import ORACLE, Climb
from convert.parity.compare import Array, Arrays, Measurement, distances, key_bias_is_idle, relative
from convert.parity.ladder import Report, Result
from convert.parity.rungs.passes import OUTPUT, layers, passes
from gpt_common.config import RunConfig, differences
from gpt_common.machine.backends import BACKENDS
from gpt_common.machine.hardware import detect
from gpt_common.machine.provenance import versions

WITHOUT_LAYERS = {
    "L0": "initial weights, or saving and loading",
    "L1": "this operation itself",
    "L6a": "gradient clipping or the optimiser's update",
    "R": "what ranks share: who does which micro-step, the sum of losses, gradients, loads and signals, or who "
    "evaluates and saves",
    "S": "what shows at this size only: masks and positions far along the block, ids high in the vocabulary, the sum "
    "over many micro-steps, or the share that dropout drops",
}
AFTER_LAYERS = {
    "L2": "several layers a little: none is wrong on its own",
    "L3": "the model outside its layers: the sum of the embeddings, its dropout, or the tied output layer",
    "L4": "the loss, or the labels",
    "L5": "the model outside its layers, in its backward pass: the tied output layer, the sum of the embeddings, or "
    "what the objective adds to the loss",
    "L6b": "what a step adds: the sum over micro-steps, dropout keys, the order of clipping, the balancing of experts",
    "L7": "what changes from step to step: dropout keys, the schedule, the order of batches, the balancing of experts",
    "L8": "saving and taking up a run: the optimiser's state, the step number, the order of batches",
    "A": "the adapters: their product, scale or dropout, DoRA's lengths of rows, what is frozen, or how they are saved",
    "Q": "quantised matrices: the order of their codes, scales and biases, or what adapters are told of them",
    "G": "the cache of keys and values or latents, positions after it, or the choice of tokens",
}
INSIDE = {
    "attention": "the parting into heads, rotation, the scores, the mask, the softmax or the sum over values",
    "feed_forward": "the activation between its layers, or what sends tokens to experts",
    "experts": "the order of tokens, the activation between its matrices, or the sum over a token's experts",
    "shared_experts": "the activation between its layers",
    "block": "the sum with the residual stream, or dropout",
}
COMPUTED = ("model.", "optim.", "train.batch", "train.grad", "train.seed")
"""Fields of a configuration that a bug report names."""


@dataclass(frozen=True)
class Blame:
    """The end of the search."""

    tensor: str
    """First tensor in execution order that diverges."""
    operation: str
    """What made it."""
    error: float
    gate: float


def suspect(result: Result, reference: str) -> tuple[str, Measurement]:
    """The backend that is furthest from the oracle, or from the reference where the oracle was not asked."""
    failed = [m for m in result.measurements if not m.passed]
    against_oracle = [m for m in failed if m.between.endswith(f"~ {ORACLE}")]
    worst = max(against_oracle or failed, key=lambda m: m.strain)
    sides = worst.between.split(" ~ ")[0].split(" : ")[0].split(" > ")
    return next((side for side in sides if side in BACKENDS and side != reference), sides[0]), worst


def search(climb: Climb, result: Result) -> Blame:
    """Bisect a failure: whole passes for the first tensor, then every layer on its own for the operation."""
    name, worst = suspect(result, climb.reference)
    if result.rung.name in WITHOUT_LAYERS or name not in BACKENDS:
        return Blame(worst.tensor, WITHOUT_LAYERS.get(result.rung.name, "unknown"), worst.error, worst.gate)
    states = {state: (weights, key) for state, weights, key in passes(climb)}
    # A trajectory belongs to no state: then all of them are searched.
    for state in [worst.state] if worst.state in states else states:
        found = _search_state(climb, name, state, *states[state])
        if found is not None:
            return found
    first = worst.tensor
    if result.rung.name in ("L3", "L5"):
        first = _first_tensor(climb, name, states[worst.state][1]) or first
    return Blame(first, AFTER_LAYERS[result.rung.name], worst.error, worst.gate)


def _search_state(climb: Climb, name: str, state: str, weights: Arrays, key: Array | None) -> Blame | None:
    """The first layer that is wrong on its own, at the deepest level; None if all are right."""
    found = list(layers(climb, state, weights, key))
    wrong = {m.tensor: m for m in found if not m.passed and m.between == f"{name} ~ {ORACLE}"}
    paths = [tensor.split(":")[0] for tensor in wrong]
    deepest = [path for path in paths if not any(other.startswith(f"{path}.") for other in paths)]
    if not deepest:
        return None
    path = deepest[0]
    parts = {tensor: m for tensor, m in wrong.items() if tensor.split(":")[0] == path}
    worst = max(parts.values(), key=lambda m: m.strain)
    way = "forward" if any(tensor.endswith(OUTPUT) for tensor in parts) else "backward"
    operation = f"`{path}` {way}"
    if any(m.tensor.startswith(f"{path}.") for m in found):
        kind = path.split(".")[-1]
        what = INSIDE.get("block" if kind.isdigit() else kind, "itself")
        operation += f", in {what}: its layers are right"
    return Blame(_first_tensor(climb, name, key) or worst.tensor, operation, worst.error, worst.gate)


def _first_tensor(climb: Climb, name: str, key: Array | None) -> str | None:
    """The first tensor of a whole pass outside its gate: activations forward, then gradients from the last layer."""
    batch = material.batches(climb.config, 0)[0]
    found = climb.twins()[name].trace(batch, key).taps
    exact = climb.oracle().trace(batch, key).taps
    for (tap, value), (_, wanted) in zip(found, exact, strict=True):
        if relative(value, wanted) > climb.gate("L3"):
            return tap
    gradients = climb.twins()[name].gradients(batch, key)[1]
    wanted_gradients = climb.oracle().gradients(batch, key)[1]
    late_first = {tensor: wanted_gradients[tensor] for tensor in reversed(list(wanted_gradients))}
    for tensor, error in distances(gradients, late_first, split_bias=key_bias_is_idle(climb.config.model)):
        if error > climb.gate("L5"):
            return f"gradient of {tensor}"
    return None


def paragraph(report: Report, command: str) -> str:
    """What to paste into a bug report.

    Args:
        command: repeats the climb.
    """
    result = report.failed
    assert result is not None
    climb = report.climb
    _, worst = suspect(result, climb.reference)
    blame = search(climb, result)
    config = climb.at_real_size().config if result.rung.name == "S" else climb.config
    changed = differences(RunConfig(), config)
    shape = ", ".join(f"{n.split('.')[1]} {value}" for n, (_, value) in changed.items() if n.startswith(COMPUTED))
    state = f", weights: {worst.state}" if worst.state else ""
    found = ", ".join(f"{package} {number}" for package, number in versions().items())
    off = f"{worst.error:.2g}" if worst.times else f"off by {worst.error:.2g}"
    return (
        f"Parity of {worst.between.split(' ~ ')[0]} breaks at rung {result.rung.name} ({result.rung.title}): "
        f"{worst.tensor} is {off}, the gate is {worst.gate:.2g} ({worst.between}{state}). "
        f"First tensor in execution order that diverges: {blame.tensor}. "
        f"Made by {blame.operation} (error {blame.error:.2g}, gate {blame.gate:.2g}). "
        f"Configuration: {shape or 'defaults'}. {found}; {platform.platform()}, {detect().chip}. Repeat: {command}"
    )
