"""L2 to L5: layers, logits, loss and gradients, one forward and backward pass in all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from convert.parity import material
from convert.parity.climb import ORACLE, Climb, top1_disagreements
from convert.parity.compare import Array, Arrays, Measurement, Tokens
from convert.parity.gates import TOP1_MARGIN
from convert.parity.twins.choices import Choices, choice_gates
from gpt_common.data.batches import NumpyBatch
from gpt_common.keyed import dropout_key

OUTPUT = ": output"
GRADIENT = ": gradient of "


def passes(climb: Climb) -> Iterator[tuple[str, Arrays, Array | None]]:
    """The passes to make, with their weights and dropout key: from every state, and with dropout where there is any."""
    key = dropout_key(climb.config.train.seed, 0)
    for state, weights in climb.states().items():
        yield state, weights, None
        if climb.config.model.dropout:
            yield f"{state} with dropout", weights, key


def rung_layers(climb: Climb) -> Iterator[Measurement]:
    """Every module on its own, forward and backward, from the oracle's input and upstream gradient."""
    for state, weights, key in passes(climb):
        yield from layers(climb, state, weights, key)


def layers(climb: Climb, state: str, weights: Arrays, key: Array | None) -> Iterator[Measurement]:
    """The modules in execution order, parents before their children, with these weights."""
    batch = material.batches(climb.config, 0)[0]
    twins = climb.loaded(weights)
    traced = climb.oracle().trace(batch, key)
    for done, (path, inputs) in enumerate(traced.inputs.items()):
        climb.progress(f"layers, {state}", done, len(traced.inputs))
        # Rounded first, so that all start from the same numbers.
        rounded = tuple(x if x.dtype.kind == "i" else climb.rounded(x.astype(np.float32)) for x in inputs)
        upstream = climb.rounded(traced.upstream[path].astype(np.float32))
        results, own = climb.routed_alike(twins, lambda twin: twin.layer(path, rounded, upstream, key))  # noqa: B023
        outputs = {name: {f"{path}{OUTPUT}": result.output} for name, result in results.items()}
        gradients = {
            name: {f"{path}{GRADIENT}{part}": value for part, value in result.gradients.items()}
            for name, result in results.items()
        }
        yield from choice_gates(own, climb.config.model, climb.gate("L2 forward"), state)
        yield from climb.compare(outputs, climb.gate("L2 forward"), state)
        yield from climb.compare(gradients, climb.gate("L2 backward"), state)


def rung_logits(climb: Climb) -> Iterator[Measurement]:
    """Logits of a whole forward pass; the likeliest token agrees wherever it leads clearly."""
    tokens = material.batches(climb.config, 0)[0].tokens
    for state, weights in climb.states().items():
        yield from logits(climb, state, weights, tokens)


def logits(climb: Climb, state: str, weights: Arrays, tokens: Tokens) -> Iterator[Measurement]:
    """Logits of (B, T) ids with these weights."""
    gate = climb.gate("L3")
    found, own = climb.routed_alike(climb.loaded(weights), lambda twin: twin.logits(tokens))
    yield from choice_gates(own, climb.config.model, gate, state)
    yield from climb.compare({name: {"logits": values} for name, values in found.items()}, gate, state)
    for name in climb.names:
        count = top1_disagreements(found[name], found[ORACLE], TOP1_MARGIN)
        yield Measurement(
            tensor="top-1 where it leads clearly", error=count, gate=0, between=f"{name} ~ {ORACLE}", state=state
        )


def rung_loss(climb: Climb) -> Iterator[Measurement]:
    """Mean cross entropy."""
    for state, found, own in _passes(climb):
        for measurement in losses(climb, state, found, own):
            if measurement.between.endswith(f"~ {climb.reference}"):
                climb.loss_noise = max(climb.loss_noise, measurement.error)
            yield measurement


def rung_gradients(climb: Climb) -> Iterator[Measurement]:
    """The gradient of every parameter; the worst tensor counts."""
    for state, found, _ in _passes(climb):
        yield from gradients(climb, state, found)


def losses(climb: Climb, state: str, found: Mapping[str, Arrays], own: Mapping[str, Choices]) -> Iterator[Measurement]:
    """The losses of one pass, and what its routers chose."""
    yield from choice_gates(own, climb.config.model, climb.gate("L3"), state)
    yield from climb.compare(
        {name: {"loss": arrays["loss"]} for name, arrays in found.items()}, climb.gate("L4"), state
    )


def gradients(climb: Climb, state: str, found: Mapping[str, Arrays], *, ratio: bool = True) -> Iterator[Measurement]:
    """The gradients of one pass; `ratio` as in `Climb.compare`."""
    without_loss = {name: {t: g for t, g in arrays.items() if t != "loss"} for name, arrays in found.items()}
    yield from climb.compare(without_loss, climb.gate("L5"), state, ratio=ratio)


def _passes(climb: Climb) -> Iterator[tuple[str, dict[str, Arrays], dict[str, Choices]]]:
    """Loss, gradients and choices of every backend and the oracle, in every state, with and without dropout."""
    batch = material.batches(climb.config, 0)[0]
    for state, weights, key in passes(climb):
        yield state, *one_pass(climb, weights, batch, key)
    # Examples that share a row, whose attention and positions are of another path.
    weights = material.widened(climb.config)
    yield "examples in rows", *one_pass(climb, weights, material.packed(climb.config)[0], None)


def one_pass(
    climb: Climb, weights: Arrays, batch: NumpyBatch, key: Array | None
) -> tuple[dict[str, Arrays], dict[str, Choices]]:
    """Loss, gradients and choices of every backend and the oracle."""
    results, own = climb.routed_alike(climb.loaded(weights), lambda twin: twin.gradients(batch, key))
    return {name: {"loss": np.array([loss]), **found} for name, (loss, found) in results.items()}, own
