"""Gates on the path that trains: the step itself is asked, with its dropout, compilation, accumulation and all.

A gate with a forward pass of its own proves something about that pass. Twelve of 36 planted faults were once seen by
nobody, because they stood in what the gates walked around: the mask under dropout, the conversion of ids in the step,
the sum over micro-steps. So what is asked here is `TrainStep.__call__`, and only its update is held back or undone.

Shapes: `B` sequences, `T` tokens of each.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gpt_common.config import RunConfig
from gpt_common.data.batches import Batch, NumpyBatch
from gpt_common.keyed import keyed_generator
from gpt_common.network.flops import parameter_count
from gpt_common.training.health.asked import Arrays, Asked, StepProbe, distance, square_of
from gpt_common.training.health.dropout_gates import check_dropout
from gpt_common.training.health.gates import GateFailed, token_losses
from gpt_common.training.health.update_gates import check_derivative, check_schedule, check_update

Gates = Literal["quick", "full", "off"]

CAUSAL_TOKENS = 1024
"""Tokens in which a step is asked whether it sees the future, if it is not compiled for a shape of its own."""
GATE_TOKENS = 256
"""Tokens in a gate's batch, if the step is not compiled for its own shape; two sequences at least."""
GATE_LOGITS = 1 << 22
"""Logits of it, where a large vocabulary makes them many."""
QUICK_SECONDS = 8.0
"""What quick gates may take in all; what is left out then is said."""
DEALT = 1e-5
"""How far the step of several ranks may be from that of one, relative: 3e-7 was seen, of sums in another order."""
LARGE = 150_000_000
"""Parameters beyond which quick gates do not copy weights and moments away and back: 24 bytes each, for a moment."""


def asked_of(
    probe: StepProbe, config: RunConfig, batches: Sequence[NumpyBatch], step: int, dtype: str = "float32"
) -> Asked:
    """What the gates ask of a run's step.

    Args:
        batches: micro-batches of the first step, as the loop will hand them over.
        step: updates done.
        dtype: that the step computes in.
    """
    tokens = np.concatenate([batch.tokens for batch in batches])
    labels = np.concatenate([batch.labels for batch in batches])
    length = tokens.shape[1]
    rows = max(2, min(GATE_TOKENS, GATE_LOGITS // config.model.vocab_size) // length)
    if probe.compiled:
        rows = len(batches[0].tokens)
    batch: NumpyBatch = Batch(np.resize(tokens, (rows, length)), np.resize(labels, (rows, length)))
    return Asked(probe, config, batch, step, exact=dtype == "float32")


def check_step(asked: Asked, gates: Gates, clock: Callable[[], float] = time.monotonic) -> list[str]:
    """All gates, or as many as there is time for.

    Returns:
        A line for each: what was checked.

    Raises:
        GateFailed: names the gate, what it found and what that usually means.
    """
    full = gates == "full"
    checks: list[tuple[str, Callable[[], str | None]]] = [
        ("step loss", lambda: check_loss(asked)),
        ("causality", lambda: check_causality(asked, every=full)),
        ("positions", lambda: check_positions(asked)),
        ("micro-steps", lambda: check_micro_steps(asked)),
        ("dropout", lambda: check_dropout(asked)),
        ("schedule", lambda: check_schedule(asked)),
        ("update", lambda: check_update(asked)),
        ("derivative", lambda: check_derivative(asked, each=full)),
    ]
    began, lines, left_out = clock(), [], []
    large = parameter_count(asked.config.model) > LARGE
    for name, check in checks:
        if not full and (clock() - began > QUICK_SECONDS or (large and name in ("update", "derivative"))):
            left_out.append(name)
        elif line := check():
            lines.append(f"health: {line}")
        if name in ("step loss", "causality") and asked.probe.compiled:
            began = clock()  # they waited for the compiler: for the step, and for one whose positions have weights
    if left_out:
        asked.again = "positions" not in left_out
        lines.append(f"health: left out to begin soon: {', '.join(left_out)} (--health-gates full)")
    return lines


def check_dealt(
    probe: StepProbe, batches: Sequence[NumpyBatch], step: int, known: tuple[float, Arrays] | None = None
) -> str:
    """The step whose micro-steps are dealt to ranks is the one that this rank makes of all of them, dropout and all.

    Only the order of sums differs: in float32 whatever the step computes in, since gradients are.

    Args:
        known: loss and gradient of one rank's step, where one can no more be asked.
    """
    alone, whole = known or probe.step_gradients(batches, step)
    loss, added = probe.step_gradients(batches, step, dealt=True)
    error = distance(added, whole)
    if not (abs(loss - alone) <= DEALT * max(1.0, alone) and error <= DEALT):
        ratio = math.sqrt(square_of(added) / max(square_of(whole), 1e-30))
        raise GateFailed(
            "ranks",
            f"the step of all ranks has loss {loss:.4f}, that of one {alone:.4f}; its gradient is {error:.1e} off, "
            f"and {ratio:.3f} times as long",
            "Gradients are averaged twice or not at all, or ranks do the same micro-steps or drop otherwise",
        )
    return "make the step that one makes"


def check_again(asked: Asked, step: int) -> None:
    """The cheap gates in the middle of a run, at other places than before; raises GateFailed."""
    asked.step = step
    if asked.again:
        check_loss(asked)
        check_causality(asked)
        check_positions(asked)


def check_loss(asked: Asked) -> str:
    """What the step calls its loss is the cross entropy of the batch's ids and labels, all of them.

    Without dropout, so that the model's plain logits tell it; of the run's batch, and of ids from all over the
    vocabulary, since a conversion that loses high ones is right on a text that has none.
    """
    rows, length = asked.batch.tokens.shape
    last, count = asked.probe.vocab_size - 1, rows * (length + 1)
    # Half of them have the highest bit that an id has: what is cut off to fewer bits loses that one first.
    high = np.linspace(1 << last.bit_length() - 1, last, count // 2)
    everywhere = np.concatenate([high, np.linspace(0, last, count - count // 2)]).astype(np.int32)
    mixed = asked.draw("ids").permutation(everywhere).reshape(rows, length + 1)
    for batch, what in ((asked.batch, "the batch"), (Batch(mixed[:, :-1], mixed[:, 1:]), "ids of all sizes")):
        tokens, labels = np.ascontiguousarray(batch.tokens), np.ascontiguousarray(batch.labels)
        expected = float(token_losses(asked.probe.logits(tokens), labels).mean())
        found = asked.probe.step_loss([Batch(tokens, labels)], asked.step, dropout=False)
        if not abs(found - expected) <= (2e-5 if asked.exact else 2e-2) * max(1.0, expected):
            raise GateFailed(
                "step loss",
                f"the training step says {found:.4f} for {what}, the cross entropy of its logits is {expected:.4f}",
                "The step changes the ids or labels it is given, or trains on another loss than is evaluated",
            )
    return "the step's loss is that of the ids it was given"


def check_causality(asked: Asked, *, every: bool = False) -> str:
    """No loss on the training path depends on a later token.

    Every sequence is cut somewhere: only the loss at the cut counts, and all tokens after it become others. With
    `every`, at every position of the block; otherwise at as many as the batch has sequences, the next ones the next
    time, until all were asked and it begins again.
    """
    length = asked.batch.tokens.shape[1]
    if length < 2:
        return "a block of one token has no future"
    rows = len(asked.batch.tokens)
    if not asked.probe.compiled:
        rows = max(rows, min(CAUSAL_TOKENS, GATE_LOGITS // asked.probe.vocab_size) // length)
    cuts = _order(asked, length)
    if not every:
        cuts = np.take(cuts, np.arange(asked.cuts_asked, asked.cuts_asked + min(rows, length - 1)), mode="wrap")
        asked.cuts_asked += len(cuts)
    for first in range(0, len(cuts), rows):
        _check_cuts(asked, np.resize(cuts[first : first + rows], rows))
    return f"the step does not read the future, {'at any' if every else f'at {len(cuts)}'} of {length - 1} positions"


def _order(asked: Asked, length: int) -> npt.NDArray[Any]:
    """All cuts in the order in which they are asked: ends of a kernel's tiles, where a mask goes wrong, first."""
    cuts = keyed_generator(asked.config.train.seed, "cuts").permutation(length - 1)
    tiles = cuts % 32 == 31
    return np.concatenate([cuts[tiles], cuts[~tiles]])


def _check_cuts(asked: Asked, cuts: npt.NDArray[Any]) -> None:
    length, vocab_size = asked.batch.tokens.shape[1], asked.probe.vocab_size
    at, after = np.arange(length) == cuts[:, None], np.arange(length) > cuts[:, None]
    tokens, labels = (
        np.resize(value, (len(cuts), length)).astype(np.int32) for value in (asked.batch.tokens, asked.batch.labels)
    )
    other = (tokens + 1 + np.arange(length) % max(1, vocab_size - 1)) % vocab_size
    changed = np.where(after, other, tokens).astype(np.int32)

    def loss(tokens: npt.NDArray[Any], weights: npt.NDArray[Any]) -> float:
        return asked.probe.step_loss([Batch(tokens, labels, weights)], asked.step)

    def moves(weights: npt.NDArray[Any]) -> float:
        return abs(loss(changed, weights) - loss(tokens, weights))

    weights = at.astype(np.float32)
    still = loss(tokens, weights)
    bound = max(2 * abs(loss(tokens, weights) - still), 1e-6 * math.log(vocab_size))
    if abs(loss(changed, weights) - still) <= bound:
        return
    leaks = [
        int(cut) for row, cut in enumerate(cuts) if moves(np.where(np.arange(len(cuts)) == row, at.T, 0).T) > bound
    ]
    where = ", ".join(map(str, sorted(set(leaks))[:5])) or "some"
    raise GateFailed(
        "causality in training",
        f"with {'dropout' if asked.config.model.dropout else 'what the step does'} on, the loss at position {where} "
        "depends on later tokens",
        "The training path reads the future: its mask is missing, or off by one",
    )


def check_positions(asked: Asked) -> str:
    """The loss without weights is the mean over all positions: two halves of them, weighed apart, add up to it."""
    half = asked.draw("halves").random(asked.batch.tokens.shape) < 0.5
    whole = asked.probe.step_loss([asked.batch], asked.step)
    total = 0.0
    for part in (half, ~half):
        if part.any():
            weighed = Batch(asked.batch.tokens, asked.batch.labels, part.astype(np.float32))
            total += asked.probe.step_loss([weighed], asked.step) * float(part.mean())
    if not abs(whole - total) <= (2e-5 if asked.exact else 5e-3) * max(1.0, whole):
        raise GateFailed(
            "positions",
            f"the loss {whole:.4f} is not the mean over all positions, which is {total:.4f}",
            "The training loss leaves positions out, or counts some twice",
        )
    return "every position counts in the training loss"


def check_micro_steps(asked: Asked) -> str:
    """A step of micro-batches, as many as the run has, is that of the joined one: the same loss, the same gradient."""
    parts = asked.micro_batches()
    joined: NumpyBatch = asked.batch
    if parts[0] is not parts[1]:
        joined = Batch(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("tokens", "labels")))
    loss, whole = asked.probe.step_gradients([joined], asked.step, dropout=False)
    sum_loss, added = asked.probe.step_gradients(parts, asked.step, dropout=False)
    tolerance = 1e-4 if asked.exact else 5e-2
    # A penalty that keeps experts busy is of a batch, and not the mean over its parts.
    error = 0.0 if asked.config.model.balancing == "loss" else distance(added, whole)
    if not (abs(sum_loss - loss) <= tolerance * max(1.0, loss) and error <= tolerance):
        ratio = math.sqrt(square_of(added) / max(square_of(whole), 1e-30))
        raise GateFailed(
            "micro-steps",
            f"{len(parts)} micro-steps give loss {sum_loss:.4f} and a gradient {ratio:.3f} times as long as one joined "
            f"batch, whose loss is {loss:.4f}",
            "Micro-gradients are summed instead of averaged, or a micro-batch is left out or taken twice",
        )
    return f"{len(parts)} micro-steps make the step of the joined batch"
