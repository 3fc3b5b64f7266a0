"""Models that need no training: one that knows the grammar by heart, and others made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_common.data.batches import NumpyBatch
from gpt_common.data.stories import ALPHABET, END
from gpt_common.data.tokenizers import CharTokenizer, Tokenizer
from gpt_common.judging.probes.truth import Read, begin
from gpt_common.sampling import Batch

CHARACTERS = CharTokenizer(ALPHABET)
IMPOSSIBLE = -60.0
"""Logit of what cannot be: a probability of 1e-26, and the softmax stays exact."""

Logits = Callable[[list[int]], npt.NDArray[np.float64]]
"""All tokens so far to the logits (V,) of the next."""


class Model:
    """A `Scorer` of a function that knows all tokens before."""

    batch: Batch

    def __init__(self, logits: Logits, tokenizer: Tokenizer = CHARACTERS, block_size: int = 1024) -> None:
        self.of, self.tokenizer = logits, tokenizer
        self.block_size, self.vocab_size, self.logits_at_once = block_size, tokenizer.vocab_size, 1 << 20

    def losses(self, batches: Iterable[NumpyBatch]) -> list[float]:
        raise NotImplementedError

    def logits(self, tokens: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        assert tokens.shape[1] <= self.block_size
        rows = [[self.of(row[: t + 1].tolist()) for t in range(len(row))] for row in tokens]
        return np.array(rows, np.float32)

    def scores(
        self, tokens: npt.NDArray[Any], labels: npt.NDArray[Any], shared: Sequence[int] = (), *, likeliest: bool = True
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | None]:
        nats, chosen = np.zeros(labels.shape, np.float32), np.zeros(labels.shape, bool)
        for row, (ids, wanted) in enumerate(zip(tokens.tolist(), labels.tolist(), strict=True)):
            for t, label in enumerate(wanted):
                assert len(shared) + t < self.block_size
                logits = self.of([*shared, *ids[: t + 1]])
                nats[row, t] = np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label]
                chosen[row, t] = logits.argmax() == label
        return nats, chosen if likeliest else None


def grammar(scale: float = 1.0, tokenizer: Tokenizer = CHARACTERS) -> Logits:
    """The grammar itself, as far as it is asked from the beginning of a story on; its logits times `scale`."""
    remembered: dict[str, npt.NDArray[np.float64]] = {}
    reads: dict[str, Read | None] = {"": begin()}
    ids = {character: tokenizer.encode(character)[0] for character in ALPHABET}

    def logits(tokens: list[int]) -> npt.NDArray[np.float64]:
        text = tokenizer.decode(tokens)
        story = text[text.rfind(END) + len(END) :] if END in text else ""
        if story not in remembered:
            before = reads[story[:-1]] if story[:-1] in reads else begin().then(story[:-1])
            reads[story] = read = before and before.then(story[-1:])
            found = np.full(tokenizer.vocab_size, IMPOSSIBLE)
            if read is not None:
                for character, probability in read.distribution().items():
                    found[ids[character]] = np.log(probability)
            remembered[story] = scale * found
        return remembered[story]

    return logits


def blind(_: list[int]) -> npt.NDArray[np.float64]:
    """Finds everything equally likely, always."""
    return np.zeros(CHARACTERS.vocab_size)
