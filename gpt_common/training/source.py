"""A trained model as `sample`, `serve` and `evaluate` take it up: its checkpoint, shape and tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpt_common.config import ModelConfig
from gpt_common.data.tokenizers import Tokenizer, default_prompt, load_tokenizer
from gpt_common.errors import UserError
from gpt_common.training.checkpoint import described, find_checkpoint
from gpt_common.training.manifest import TOKENIZER_FILE, Manifest
from gpt_common.training.pretrained import local_run


@dataclass(frozen=True)
class Source:
    """What a sample command needs of a checkpoint, before a framework is asked."""

    checkpoint: Path
    model: ModelConfig
    tokenizer: Tokenizer
    prompt: str


def open_source(path: Path, *, latest: bool) -> Source:
    """The checkpoint that `path` means, with its shape and tokenizer; `hf:OWNER/NAME` is brought in first.

    Raises:
        UserError: no checkpoint there, a damaged one, or one without a tokenizer.
    """
    checkpoint = find_checkpoint(local_run(path), prefer="latest" if latest else "best")
    manifest = described(checkpoint)
    if not (checkpoint / TOKENIZER_FILE).exists():
        raise UserError(f"{checkpoint} has no {TOKENIZER_FILE}: copy in the one that the model was trained with")
    tokenizer = load_tokenizer(checkpoint / TOKENIZER_FILE)
    _check_tokenizer(checkpoint, tokenizer, manifest)
    prompt = manifest.prompt or default_prompt(tokenizer)
    return Source(checkpoint, manifest.run_config.model, tokenizer, prompt)


def _check_tokenizer(checkpoint: Path, tokenizer: Tokenizer, manifest: Manifest) -> None:
    """Refuse a tokenizer that the model was not trained with: its ids would mean other text, or lie outside."""
    path, rows = checkpoint / TOKENIZER_FILE, manifest.run_config.model.vocab_size
    remedy = "copy in the one that the model was trained with"
    if manifest.tokenizer and manifest.tokenizer["fingerprint"] != tokenizer.fingerprint:
        theirs = f"{manifest.tokenizer['kind']}, {manifest.tokenizer['vocab_size']} entries"
        ours = f"{tokenizer.kind}, {tokenizer.vocab_size} entries"
        raise UserError(f"{path} is another tokenizer ({ours}) than the model's ({theirs}): {remedy}")
    if tokenizer.vocab_size > rows:
        raise UserError(f"{path} has {tokenizer.vocab_size} entries, and the model {rows}: {remedy}")
