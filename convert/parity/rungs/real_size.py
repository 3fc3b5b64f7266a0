"""S: what shows at a configuration's own size only, far along the block, high in the vocabulary, late in a step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Literal

from convert.parity import material
from convert.parity.climb import Climb
from convert.parity.compare import Measurement
from convert.parity.gates import SIGMAS
from convert.parity.rungs.passes import gradients, logits, losses, one_pass
from convert.parity.rungs.updates import one_step
from gpt_common.config import RunConfig
from gpt_common.keyed import dropout_key
from gpt_common.machine.hardware import detect
from gpt_common.network.flops import flops_per_step_exact, parameter_count
from gpt_common.network.memory import memory_plan
from gpt_common.words import in_memory

LONG_SUM = 32_766
"""The shortest of L1's long sums. What reaches the last block is a sum over the vocabulary: from this length on its
errors are compared with the gate and not with PyTorch's, as there."""
COPIES = 4
"""Sets of weights, gradients and updates that a twin's comparison holds beside the twin itself."""


def rung_real_size(small: Climb) -> Iterator[Measurement]:
    """Logits, loss, gradients and one step with whole blocks, the whole vocabulary and every micro-step.

    The gates are those of L3 to L6b.
    """
    climb = small.at_real_size()
    config = climb.config
    refused = too_large(climb, detect().memory_bytes)
    small.notes["S"] = f"left out: {refused}" if refused else climbed_with(small.real or small.config, config)
    if refused:
        return
    batches = material.spread_batches(config)
    key = dropout_key(config.train.seed, 0) if config.model.dropout else None
    for done, (state, weights) in enumerate(climb.states().items()):
        climb.progress(f"real size, {state}", done, len(climb.states()))
        yield from logits(climb, state, weights, batches[0].tokens)
        found, own = one_pass(climb, weights, batches[0], key)
        yield from losses(climb, state, found, own)
        yield from gradients(climb, state, found, ratio=config.model.vocab_size < LONG_SUM)
        if climb.has_gate("L6b"):
            yield from one_step(climb, config, state, weights, batches)
    if config.model.dropout:
        yield from dropped_shares(climb, "native")
        yield from dropped_shares(climb, "shared")


def dropped_shares(climb: Climb, rng: Literal["native", "shared"]) -> Iterator[Measurement]:
    """At every site of dropout the share that chance allows becomes zero, and the rest is scaled up."""
    rate = climb.config.model.dropout
    config = dataclasses.replace(
        climb.config,
        model=dataclasses.replace(climb.config.model, dropout_rng=rng),
        train=dataclasses.replace(climb.config.train, gradient_checkpointing=False),
    )
    weights, tokens = climb.start(), material.spread_batches(config)[0].tokens
    for name, twin in climb.twins(config, eager=True).items():
        twin.set_weights(weights)
        for site, found in enumerate(twin.dropped(tokens, dropout_key(config.train.seed, 0))):
            where, between = f"{rng} dropout at site {site}", f"{name} ~ chance"
            share = found.zeros / found.numbers
            most = SIGMAS * math.sqrt(rate * (1 - rate) / found.numbers)
            yield Measurement(tensor=f"{where}: share", error=abs(share - rate), gate=most, between=between)
            scale = f"{where}: what is kept"
            yield Measurement(tensor=scale, error=found.scaled_wrongly, gate=climb.gate("L1"), between=between)


def climbed_with(config: RunConfig, used: RunConfig) -> str:
    """The size in words, and what of it was cut."""
    model, steps = used.model, used.train.grad_accum_steps
    layers = f"{model.n_layer} of {config.model.n_layer} layers"
    size = f"block {model.block_size}, vocabulary {model.vocab_size}, width {model.n_embd}"
    return f"{size}, {steps} micro-steps of one sequence, {layers}"


def too_large(climb: Climb, memory_bytes: int | None) -> str:
    """Why a climb at real size is left out; empty if it is not.

    Args:
        memory_bytes: the machine's memory; None where it is not known, and all fits.
    """
    config = climb.config
    flops = flops_per_step_exact(config.model, config.train.batch_size)
    if flops > climb.most_flops:
        return f"{flops:.0e} FLOPs a pass, {climb.most_flops:.0e} at most in this mode; the others climb it"
    needed = planned_bytes(climb)
    if memory_bytes is not None and needed > memory_bytes:
        return f"it needs about {in_memory(needed)}, this machine has {in_memory(memory_bytes)}"
    return ""


def planned_bytes(climb: Climb) -> int:
    """Peak of the rung by the memory plan: all twins and oracles at once, and what is compared.

    The oracle's numbers are twice as wide.
    """
    config = dataclasses.replace(climb.config, train=dataclasses.replace(climb.config.train, dtype="float32"))
    oracles = 4 if climb.uncalibrated else 1
    plans = {twin: memory_plan(config, twin).total for twin in ("mlx", "torch")}
    twins = sum(plans[backend.framework] for backend in climb.backends) + 2 * oracles * plans["torch"]
    return twins + COPIES * 4 * parameter_count(config.model) * (len(climb.backends) + 2 * oracles)
