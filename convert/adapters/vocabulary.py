"""An adapter whose run added tokens to its base's vocabulary: how it says so elsewhere, and how that is read again."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from pathlib import Path

from convert.formats.tokenizer_files import read_tokenizer, write_tokenizer
from gpt_common.config import ModelConfig
from gpt_common.data.tokenizers import Tokenizer, load_tokenizer
from gpt_common.data.tokenizers.extended import with_tokens
from gpt_common.errors import UserError
from gpt_common.training.manifest import TOKENIZER_FILE, Manifest


def tell_growth(checkpoint: Path, manifest: Manifest, base: Manifest, folder: Path) -> tuple[str, ...]:
    """Put the tokenizer beside an adapter that was written for another library, if it is not the base's.

    Returns:
        What a person should know of it.
    """
    if manifest.tokenizer == base.tokenizer or not (checkpoint / TOKENIZER_FILE).exists():
        return ()
    model = manifest.run_config.model
    write_tokenizer(load_tokenizer(checkpoint / TOKENIZER_FILE), folder, model.block_size)
    if model.vocab_size == base.run_config.model.vocab_size:
        return ()
    return (
        f"the run added tokens: before its adapter the base gets {model.vocab_size} rows by "
        f"model.resize_token_embeddings({model.vocab_size}); the tokenizer lies beside the adapter",
    )


def with_growth(source: Path, base: Path, model: ModelConfig) -> tuple[ModelConfig, Tokenizer | None]:
    """The base's shape and tokenizer, with the tokens that the tokenizer beside an adapter has behind them.

    Args:
        source: folder of the adapter; one without a tokenizer, or with quite another, adds nothing.
        base: checkpoint that the adapter is for, and `model` its shape.
    """
    if not (base / TOKENIZER_FILE).exists():
        return model, None
    ours, theirs = load_tokenizer(base / TOKENIZER_FILE), None
    with suppress(UserError):
        theirs, _ = read_tokenizer(source)
    if theirs is None:
        return model, ours
    behind = {i: name for name, i in theirs.specials.items() if i >= ours.vocab_size}
    grown = with_tokens(ours, [behind[i] for i in sorted(behind)])
    if grown.known != theirs.known or any(grown.decode_bytes([i]) != theirs.decode_bytes([i]) for i in grown.known):
        return model, ours
    return dataclasses.replace(model, vocab_size=max(model.vocab_size, grown.vocab_size)), grown
