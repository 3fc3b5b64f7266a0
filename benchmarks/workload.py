"""What is measured: the configuration from preset and flags, its vocabulary, and the values of a sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from gpt_common.config import RunConfig, from_dict, load_preset, load_toml
from gpt_common.data.dataset import read_meta
from gpt_common.errors import UserError, nearest

VOCABULARIES = {"stories": 54, "shakespeare_char": 65, "shakespeare": 50257, "tinystories": 10000}
"""Entries of the tokenizers of named corpora, so that nothing must be downloaded to measure speed."""
SWEEPABLE = ("n_layer", "n_embd", "n_head", "block_size", "batch_size", "grad_accum_steps", "vocab_size")


def base_config(preset: str | None, path: Path | None, *, has_gpu: bool) -> tuple[str, RunConfig]:
    """The configuration before flags, and its name: `shakespeare-char` on a GPU, its small sister on a CPU."""
    name = preset or (None if path else "shakespeare-char" if has_gpu else "shakespeare-char-cpu")
    config = load_preset(name) if name else RunConfig()
    if path is not None:
        return path.stem, load_toml(path, config)
    assert name is not None
    return name, config


def resolve(config: RunConfig) -> RunConfig:
    """Everything decided that the trainers leave to the dataset and the device.

    Raises:
        UserError: a vocabulary that nothing here knows; flags that the backends decide.
    """
    if config.train.device != "auto" or config.train.compile:
        raise UserError("--device and --compile are decided by the backends: --backends cpu,cpu-compiled,mps,...")
    model, train = config.model, config.train
    if model.vocab_size == 0:
        model = dataclasses.replace(model, vocab_size=_vocabulary(config))
    if train.dtype == "auto":
        # The trainers' auto differs between devices; here every row computes the same.
        train = dataclasses.replace(train, dtype="float32")
    return dataclasses.replace(config, model=model, train=train)


def _vocabulary(config: RunConfig) -> int:
    name = config.data.dataset
    if name in VOCABULARIES:
        return VOCABULARIES[name]
    try:
        return int(read_meta(Path(config.data.data_dir) / name)["tokenizer"]["vocab_size"])
    except (UserError, KeyError):
        raise UserError(f"the vocabulary of dataset '{name}' is not known here: add --vocab-size") from None


def parse_sweep(text: str | None, config: RunConfig) -> list[tuple[dict[str, int], RunConfig]]:
    """`n_layer=2,4,8` as changes and configurations; one without changes if there is no sweep.

    Raises:
        UserError: no such field, a value that is no number, an impossible combination.
    """
    if not text:
        return [({}, config)]
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not values:
        raise UserError(f"--sweep {text}: write FIELD=VALUE,VALUE,..., as in --sweep n_layer=2,4,8")
    if name not in SWEEPABLE:
        raise UserError(f"--sweep {name}: {nearest(name, SWEEPABLE)}")
    section = "model" if hasattr(config.model, name) else "train"
    try:
        numbers = [int(value) for value in values.split(",")]
    except ValueError:
        raise UserError(f"--sweep {text}: the values must be whole numbers with commas between them") from None
    return [
        ({name: number}, from_dict({section: {name: number}}, base=config, where=f"--sweep {name}={number}"))
        for number in numbers
    ]


def smallest(configs: Sequence[RunConfig]) -> RunConfig:
    """The first configuration shrunk to almost nothing, to find out which backends can do this kind of work."""
    config = configs[0]
    model = dataclasses.replace(config.model, n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=16)
    return dataclasses.replace(config, model=model)
