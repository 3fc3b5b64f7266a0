"""Gates before training: they prove, before the first step, that learning is possible.

Real runs have trained for a thousand steps without a backward pass, compared each token with itself, or skipped
their layers, and nobody saw it in the loss. Nothing here imports a framework: the twins hand numbers over.

Shapes: `B` sequences, `T` tokens of each, `V` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gpt_common.data.batches import Batch, NumpyBatch, Tokens
from gpt_common.errors import WorkFailed

# What the gates may cost: forward passes over at most so many tokens and so many logits.
PROBE_TOKENS = 1024
PROBE_LOGITS = 2**24


class GateFailed(WorkFailed):
    """A health gate found that the model or the training step is broken."""

    def __init__(self, gate: str, found: str, meaning: str) -> None:
        super().__init__(f"health: {gate}: {found}. {meaning}.")
        self.gate = gate


class Probe(Protocol):
    """What the gates need to know of a model; each twin implements it over its own."""

    vocab_size: int

    def loss(self, batch: NumpyBatch) -> float:
        """Mean cross entropy in nats per token, without dropout."""

    def logits(self, tokens: Tokens) -> NDArray[np.float32]:
        """Logits (B, T, V) of tokens (B, T), without dropout."""

    def gradient_norms(self, batch: NumpyBatch) -> dict[str, float]:
        """Norm of the loss's gradient by parameter name; a parameter without gradient is absent or 0."""

    def parameter_names(self) -> list[str]:
        """Names of all parameters that training should move."""


class TrainedProbe(Probe, Protocol):
    """What a run asks besides of the model that it trains."""

    def cached_logits(self, tokens: Tokens) -> NDArray[np.float32]:
        """Logits (B, T, V) of tokens (B, T), half of them read at once and the others one by one, with a cache."""

    def frozen_checksums(self) -> dict[str, int]:
        """A checksum of the bytes of every tensor that is not trained, by name."""

    def checksums(self) -> dict[str, int]:
        """A checksum of every parameter's bytes by name: tells whether an update moved it."""

    def losses(self, batches: Iterable[NumpyBatch]) -> list[float]:
        """The same as `loss` of each, without a pause between them."""

    def find_non_finite(self) -> str | None:
        """Name of the first parameter with NaN or infinity, if any."""


def check_start(probe: Probe, batch: NumpyBatch, *, fresh: bool = True) -> list[str]:
    """Prove before the first step that learning is possible.

    Args:
        probe: the model.
        batch: the first training batch, (B, T).
        fresh: the weights are newly initialised, not from a checkpoint.

    Returns:
        One line per gate: what was checked and what was found.

    Raises:
        GateFailed: names the gate, what it found and what that usually means.
    """
    length = batch.tokens.shape[1]
    rows = min(len(batch.tokens), max(1, PROBE_TOKENS // length), max(1, PROBE_LOGITS // (length * probe.vocab_size)))
    _check_labels(batch.tokens, batch.labels, probe.vocab_size)
    tokens, labels = batch.tokens[:rows], batch.labels[:rows]
    batch = Batch(tokens, labels, None if batch.weights is None else batch.weights[:rows])
    logits = probe.logits(tokens)
    lines = ["health: the labels are the tokens shifted by one"]
    lines.append(_check_loss(probe, batch, logits))
    if fresh:
        lines.append(_check_initial_loss(token_losses(logits, labels), probe.vocab_size))
    lines.append(_check_gradients(probe, batch))
    lines.append(_check_causality(probe, tokens, logits))
    return lines


def check_first_update(before: Mapping[str, int], after: Mapping[str, int], learning_rate: float) -> None:
    """Every parameter must have moved in the first update.

    Args:
        before: a checksum of each parameter's bytes before the update, by name.
        after: the same after it.
        learning_rate: the rate of that update.

    Raises:
        GateFailed: names the parameters that did not move, or those that moved at a learning rate of 0.
    """
    still = [name for name in before if before[name] == after[name]]
    if learning_rate == 0:
        if len(still) < len(before):
            moved = [name for name in before if name not in still]
            raise GateFailed(
                "update", f"the learning rate is 0 and {_some(moved, before)} moved", "Something else writes to them"
            )
        return
    # Adam's step has the size of the learning rate. Above float32's resolution at 1 it moves every weight; above 1e-9
    # (its resolution at 0.02, the size of initial weights) it moves something.
    if len(still) == len(before) and learning_rate >= 1e-9:
        raise GateFailed(
            "update", "no parameter moved in the first step", "The loop never calls backward or the optimiser"
        )
    if still and learning_rate >= np.finfo(np.float32).eps:
        raise GateFailed(
            "update", f"{_some(still, before)} did not move in the first step", "Frozen, or not given to the optimiser"
        )


def _check_labels(tokens: Tokens, labels: Tokens, vocab_size: int) -> None:
    if vocab_size < 2:
        raise GateFailed("tokens", f"a vocabulary of {vocab_size}", "There is nothing to predict")
    low, high = int(min(tokens.min(), labels.min())), int(max(tokens.max(), labels.max()))
    if low < 0 or high >= vocab_size:
        found = f"token {low if low < 0 else high} in a vocabulary of {vocab_size}"
        raise GateFailed("tokens", found, "The data were made with another tokenizer")
    wrong = np.argwhere(labels[:, :-1] != tokens[:, 1:])
    if len(wrong):
        row, t = wrong[0]
        if np.array_equal(labels, tokens):
            found, meaning = (
                "the labels are the tokens themselves",
                "The model would learn to copy: shift labels by one",
            )
        else:
            found = f"label {t} of sequence {row} is {labels[row, t]}, but the next token is {tokens[row, t + 1]}"
            meaning = "The labels must be the tokens shifted by one"
        raise GateFailed("labels", found, meaning)


def _check_loss(probe: Probe, batch: NumpyBatch, logits: NDArray[np.float32]) -> str:
    # Before training all labels are about equally unlikely, so a loss over the wrong ones looks right. Labels that the
    # model finds likeliest, and least likely, tell a loss that shifts, ignores or masks them.
    likeliest = logits.argmax(-1).astype(batch.labels.dtype)
    unlikeliest = logits.argmin(-1).astype(batch.labels.dtype)
    weights = None if batch.weights is None else batch.weights.reshape(-1)
    # Rounding in bfloat16 is 4e-3 of a logit and averages out over the tokens; wrong labels cost 0.1 or more, or, where
    # a model begins with logits close to nothing, about the distance between its logits.
    spread = float((logits.max(-1) - logits.min(-1)).mean())
    tolerance = min(2e-3, 0.02 * spread + 1e-5)
    for chosen in (batch.labels, likeliest, unlikeliest):
        expected = float(np.average(token_losses(logits, chosen), weights=weights))
        found = probe.loss(Batch(batch.tokens, chosen, batch.weights))
        if not abs(found - expected) <= tolerance * max(1.0, expected):
            raise GateFailed(
                "loss",
                f"the model says {found:.4f}, the cross entropy of its logits and the labels is {expected:.4f}",
                "The loss shifts, masks or ignores the labels it is given, or dropout is on in evaluation",
            )
    return "health: the loss is the cross entropy of logits and labels"


def _check_initial_loss(losses: NDArray[np.float64], vocab_size: int) -> str:
    loss, uniform = float(losses.mean()), math.log(vocab_size)
    # At least 0.2 nats: with tied embeddings a token's own logit starts near 1, and in a vocabulary of a few
    # symbols that is not little. Few tokens have a mean with an error of its own.
    error = 4 * float(losses.std()) / math.sqrt(len(losses))
    if not abs(loss - uniform) <= max(0.05 * uniform, 0.2) + error:
        raise GateFailed(
            "initial loss",
            f"{loss:.4f} where fresh weights should give ln({vocab_size}) = {uniform:.4f}",
            "The initial weights or the scale of the logits are wrong, or the weights are not fresh",
        )
    return f"health: the initial loss {loss:.4f} is that of a blind guess, ln({vocab_size}) = {uniform:.4f}"


def _check_gradients(probe: Probe, batch: NumpyBatch) -> str:
    names, norms = probe.parameter_names(), probe.gradient_norms(batch)
    strange = [name for name in names if not math.isfinite(norms.get(name, 0.0))]
    if strange:
        raise GateFailed(
            "gradients", f"NaN or infinity in the gradient of {_some(strange, names)}", "An operation overflows"
        )
    # Softmax ignores what is added to all keys alike: a key bias of its own has no gradient in theory.
    without = [name for name in names if norms.get(name, 0.0) == 0.0 and not name.endswith("k_proj.bias")]
    if len(without) == len(names):
        raise GateFailed(
            "gradients", "no parameter receives a gradient", "Backward is not called, or the loss is cut off"
        )
    if without:
        raise GateFailed(
            "gradients",
            f"{_some(without, names)} {'receives' if len(without) == 1 else 'receive'} no gradient",
            "The forward pass skips them, or they are frozen or cut off from the loss",
        )
    return f"health: all {len(names)} parameters receive a gradient"


def _check_causality(probe: Probe, tokens: Tokens, logits: NDArray[np.float32]) -> str:
    def change(other: Tokens) -> NDArray[np.float32]:
        """By how much logits (T,) move when the tokens are others."""
        pairs = zip(probe.logits(other), logits, strict=True)
        moves = np.stack([np.abs(moved - still).max(axis=-1) for moved, still in pairs])
        return np.asarray(moves.max(axis=0))

    length, vocab_size = tokens.shape[1], probe.vocab_size
    far = max(1, vocab_size // 2)  # not the next: tokens that are new side by side have the same row at first
    scale = float(np.abs(logits).max())
    noise = float(change(tokens).max())
    if noise > 1e-2 * scale:
        raise GateFailed("causality", "the same tokens give other logits each time", "Dropout is on in evaluation")
    # A causal model multiplies the future by an exact 0, so nothing may change but by a backend's own noise.
    bound = max(1e-6 * scale, 2 * noise)
    for t in sorted({0, 1, length // 2, length - 1} & set(range(length))):
        others = tokens.copy()
        others[:, t:] = (tokens[:, t:] + far + np.arange(length - t) % (vocab_size - far)) % vocab_size
        moved = change(others)
        early = np.flatnonzero(moved[:t] > bound)
        if len(early):
            found = f"changing the tokens from {t} on changes the logits at {early[-1]} by {moved[early[-1]]:.1e}"
            raise GateFailed("causality", found, "The model reads the future: the mask is missing or off by one")
        if not moved[t] > bound:
            raise GateFailed(
                "causality", f"the logits at {t} ignore the token at {t}", "The model is blind to its input"
            )
    if length > 1:
        others = tokens.copy()
        others[:, 0] = (tokens[:, 0] + far) % vocab_size
        if not change(others)[1] > bound:
            found = "the logits at 1 ignore the token at 0"
            raise GateFailed("causality", found, "The model has no memory: attention is skipped or masks the past")
    return "health: logits depend on the past and on nothing after it"


def token_losses(logits: NDArray[np.float32], labels: Tokens) -> NDArray[np.float64]:
    """Cross entropy in nats of each label (B, T) under its logits (B, T, V), computed in float64: (B * T,)."""
    rows, wanted = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    losses = np.empty(len(rows))
    for begin in range(0, len(rows), 256):  # float64 logits of a large vocabulary are large
        part = slice(begin, begin + 256)
        shifted = rows[part].astype(np.float64)
        shifted -= shifted.max(axis=-1, keepdims=True)
        losses[part] = np.log(np.exp(shifted).sum(axis=-1)) - shifted[np.arange(len(shifted)), wanted[part]]
    return losses


def _some(names: Sequence[str], of: Sequence[str] | Mapping[str, int]) -> str:
    """`a, b, c and 4 more (7 of 20 parameters)`."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} ({len(names)} of {len(of)} parameters)"
