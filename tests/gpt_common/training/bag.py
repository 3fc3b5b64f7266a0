"""A language model in a few lines of numpy, with gradients worked out by hand: what the gates look at in tests."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from gpt_common.data.batches import Batch, NumpyBatch, Tokens
from gpt_common.training.health.gates import token_losses

WIDTH = 16


def cross_entropy(logits: NDArray[np.float32], labels: Tokens) -> float:
    return float(token_losses(logits, labels).mean())


class Bag:
    """`logits[t] = head @ (here[token t] + mean over s <= t of past[token s])`: causal, and it has a memory."""

    def __init__(self, vocab_size: int = 65, length: int = 12, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.vocab_size = vocab_size
        self.parameters = {
            name: rng.normal(0, 0.2, (vocab_size, WIDTH)).astype(np.float32) for name in ("here", "past", "head")
        }
        self.mixing = np.tril(np.ones((length, length))) / np.arange(1, length + 1)[:, None]

    def parameter_names(self) -> list[str]:
        return sorted(self.parameters)

    def hidden(self, tokens: Tokens) -> NDArray[np.float32]:
        here, past = (self.parameters[name][tokens] for name in ("here", "past"))
        return (here + self.mixing @ past).astype(np.float32)

    def logits(self, tokens: Tokens) -> NDArray[np.float32]:
        return self.hidden(tokens) @ self.parameters["head"].T

    def loss(self, batch: NumpyBatch) -> float:
        return float(np.float32(cross_entropy(self.logits(batch.tokens), batch.labels)))

    def losses(self, batches: Iterable[NumpyBatch]) -> list[float]:
        return [self.loss(batch) for batch in batches]

    def gradient_norms(self, batch: NumpyBatch) -> dict[str, float]:
        tokens, labels = batch.tokens, batch.labels
        logits, hidden = self.logits(tokens).astype(np.float64), self.hidden(tokens)
        errors = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True) - np.eye(self.vocab_size)[labels]
        back = errors @ self.parameters["head"] / labels.size
        gradients = {"head": np.einsum("btv,btd->vd", errors, hidden) / labels.size}
        for name, signal in (("here", back), ("past", self.mixing.T @ back)):
            gradients[name] = np.zeros((self.vocab_size, WIDTH))
            np.add.at(gradients[name], tokens, signal)
        return {name: float(np.linalg.norm(gradient)) for name, gradient in gradients.items()}


def batch(vocab_size: int = 65, rows: int = 4, length: int = 12, seed: int = 1) -> NumpyBatch:
    ids = np.random.default_rng(seed).integers(0, vocab_size, (rows, length + 1), dtype=np.int32)
    return Batch(ids[:, :-1].copy(), ids[:, 1:].copy())
