"""A model of a few lines of numpy, in float64, that forgets nothing: what it predicts depends on every token before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gpt_common.data.batches import NumpyBatch
from gpt_common.sampling import Batch, Logits


class Remembering:
    """The logits of a token are a fixed matrix times a fading sum over the tokens before it."""

    def __init__(self, vocab_size: int, block_size: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.vocab_size, self.block_size, self.logits_at_once = vocab_size, block_size, 1 << 20
        self.rows_VD, self.out_DV = rng.normal(size=(vocab_size, 16)), rng.normal(size=(16, vocab_size))
        self.batch: Batch = Writing(self)
        self.asked: list[tuple[int, int, int]] = []
        """Of every call its rows, their length, and the tokens that they shared."""

    def exact(self, ids: Sequence[int]) -> np.ndarray:
        """(T, V) log probabilities behind each token of one text, float64."""
        assert len(ids) <= self.block_size, "more than the block holds"
        state, states = np.zeros(16), []
        for token in ids:
            state = 0.7 * state + self.rows_VD[token]
            states.append(state)
        logits_TV = np.tanh(np.array(states)) @ self.out_DV
        return logits_TV - np.log(np.exp(logits_TV).sum(axis=1, keepdims=True))

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return np.array([self.exact(row) for row in tokens.tolist()], np.float32)

    def scores(
        self, tokens: np.ndarray, labels: np.ndarray, shared: Sequence[int] = (), *, likeliest: bool = True
    ) -> tuple[np.ndarray, np.ndarray | None]:
        self.asked.append((*tokens.shape, len(shared)))
        known = np.array([self.exact([*shared, *row])[len(shared) :] for row in tokens.tolist()])
        nats = -np.take_along_axis(known, labels[..., None], axis=2)[..., 0]
        return nats.astype(np.float32), known.argmax(axis=2) == labels if likeliest else None

    def losses(self, batches: Iterable[NumpyBatch]) -> list[float]:
        return [float(self.scores(batch.tokens, batch.labels)[0].mean()) for batch in batches]


class Writing:
    """The same model, for text that it writes."""

    def __init__(self, model: Remembering) -> None:
        self.model = model

    def next_logits(self, contexts: Mapping[int, Sequence[int]]) -> dict[int, Logits]:
        block = self.model.block_size
        return {number: self.model.exact(ids[-block:])[-1].astype(np.float32) for number, ids in contexts.items()}

    def all_logits(self, tokens: Sequence[int]) -> Logits:
        return self.model.exact(tokens).astype(np.float32)
