"""The text that a quantised model is calibrated and judged on: never the same, and always this machine's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convert.trained_on import trained_on
from gpt_common.config import RunConfig
from gpt_common.data.batches import NumpyBatch, Source, Split, evaluation_batches, positions, training_batch
from gpt_common.data.tokenizers import Tokenizer
from gpt_common.errors import UserError
from gpt_common.training.manifest import Manifest

TOKENS_AT_ONCE = 512
JUDGED_SHARE = 0.1
"""Of a text of one's own, from its end."""


@dataclass(frozen=True)
class Material:
    """Batches."""

    name: str
    learnt_from: Source
    judged_by: Split
    block_size: int
    batch_size: int
    floor: float | None
    """The lowest loss that there can be on it, nats per token, where that is known."""

    def calibration(self, seed: int, step: int) -> NumpyBatch:
        """A batch of the text that is learnt from."""
        return training_batch(
            self.learnt_from, block_size=self.block_size, batch_size=self.batch_size, seed=seed, step=step
        )

    def enough(self, seed: int, tokens: int, first: int = 0) -> list[NumpyBatch]:
        """Batches of at least so many tokens that count."""
        found: list[NumpyBatch] = []
        while sum(map(positions, found)) < tokens:
            found.append(self.calibration(seed, first + len(found)))
        return found

    def judging(self, tokens: int) -> list[NumpyBatch]:
        """Batches of about so many tokens, spread over the text that is judged by."""
        batches = max(1, tokens // (self.block_size * self.batch_size))
        whole = evaluation_batches(
            self.judged_by, block_size=self.block_size, batch_size=self.batch_size, batches=batches
        )
        return list(whole)


def material(config: RunConfig, manifest: Manifest, tokenizer: Tokenizer | None, text: Path | None) -> Material:
    """A text file's, or else that of the dataset that the model was trained on.

    Raises:
        UserError: the text cannot be read, or is too short; or the dataset is not here, or for another tokenizer.
    """
    block = config.model.block_size
    if text is not None:
        return _of_text(text, tokenizer, block)
    dataset = trained_on(config, manifest)
    if tokenizer is None or dataset.tokenizer.fingerprint != tokenizer.fingerprint:
        raise UserError(f"its dataset '{dataset.name}' has another tokenizer than the model")
    train, val = dataset.splits(block, packing=True)
    return Material(dataset.name, train, val, block, max(1, TOKENS_AT_ONCE // block), dataset.floor)


def material_if_any(
    config: RunConfig, manifest: Manifest, tokenizer: Tokenizer | None, text: Path | None
) -> tuple[Material | None, str]:
    """The same; where no text was asked for and there is no dataset, None and why.

    Raises:
        UserError: the text that was asked for cannot be taken.
    """
    try:
        return material(config, manifest, tokenizer, text), ""
    except UserError as error:
        if text is not None:
            raise
        return None, str(error)


def _of_text(text: Path, tokenizer: Tokenizer | None, block: int) -> Material:
    if tokenizer is None:
        raise UserError(f"the model has no tokenizer, so {text} means nothing to it: import it with --tokenizer FILE")
    try:
        written = text.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{text} cannot be read as text: {getattr(error, 'strerror', None) or error}") from None
    try:
        ids = np.asarray(tokenizer.encode(written), np.int32)
    except UserError as error:
        raise UserError(f"{text} is no text for this model: {error}") from None
    block = min(block, TOKENS_AT_ONCE)
    learnt, judged = np.split(ids, [int(len(ids) * (1 - JUDGED_SHARE))])
    if len(judged) <= block:
        raise UserError(f"{text} has {len(ids):,} tokens: {int(block / JUDGED_SHARE):,} are needed; take a longer text")
    return Material(str(text), learnt, judged, block, max(1, TOKENS_AT_ONCE // block), None)
