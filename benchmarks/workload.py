"""What is measured: the configuration from preset and flags, its vocabulary, and the values of a sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.cli import parse, peek
from gpt_common.config import RunConfig, from_dict, load_preset, load_toml
from gpt_common.errors import UserError, nearest
from gpt_common.machine.hardware import probably_has_gpu
from gpt_common.manual import asked
from gpt_common.network.width import scaled

VOCABULARIES = {
    "stories": 54,
    "stories-worlds": 504,
    "stories-qa": 504,
    "shakespeare_char": 65,
    "shakespeare": 50257,
    "tinystories": 10000,
}
"""Entries of the tokenizers of named corpora, so that nothing must be downloaded to measure speed."""
SWEEPABLE = ("n_layer", "n_embd", "n_head", "block_size", "batch_size", "grad_accum_steps", "vocab_size")


def base_config(argv: Sequence[str], *, has_gpu: bool) -> tuple[str, RunConfig]:
    """The configuration before flags, and its name: `shakespeare-char` on a GPU, its small sister on a CPU.

    Args:
        argv: the command line, of which --preset and --config matter, and for some presets --n-embd.
    """
    given = peek(argv, ("preset", "config", "n_embd", "n_head", "learning_rate"))
    name = given.get("preset", "shakespeare-char" if has_gpu else "shakespeare-char-cpu")
    if "config" not in given:
        return name, scaled(name, load_preset(name), given)
    path = Path(given["config"])
    return path.stem, load_toml(path, load_preset(name) if "preset" in given else RunConfig())


def answer_help(kind: type[Any], argv: Sequence[str], prog: str) -> None:
    """Print the help with the values of the configuration that would be taken, and end, if `argv` asks for it."""
    if asked(argv):
        name, base = base_config(argv, has_gpu=probably_has_gpu())
        parse(kind, argv, prog=prog, default=kind(run=base), values_from=name)


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
    from gpt_common.data.dataset import read_meta  # with numpy, which help does without

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
    # With one head there is one of keys; the only layer is one with experts, where there are any.
    model = dataclasses.replace(config.model, n_kv_head=min(config.model.n_kv_head, 1), n_dense_layer=0)
    model = dataclasses.replace(model, n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=16)
    train = dataclasses.replace(config.train, short_context=0, short_context_steps=0)
    return dataclasses.replace(config, model=model, train=train, adapter=AdapterConfig())
