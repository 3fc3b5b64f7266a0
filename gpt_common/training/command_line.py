"""The training command line: defaults < preset < TOML file < the run or checkpoint that is taken up < flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from gpt_common.cli import parse
from gpt_common.commands import TrainCommand
from gpt_common.config import RunConfig, load_preset, load_toml, preset_names
from gpt_common.errors import UserError
from gpt_common.training.checkpoint import find_checkpoint, read_manifest


def parse_training(argv: Sequence[str], *, prog: str, has_gpu: bool) -> tuple[TrainCommand, str | None]:
    """The training command line, with defaults < preset < TOML file < flags.

    With `--resume` the base is the configuration of the checkpoint, and a preset or TOML file is refused.

    Args:
        has_gpu: decides between the presets `stories` and `stories-cpu` if nothing else was asked for.

    Returns:
        The command, and which preset was taken and why if the command line does not say.
    """
    start, why = _starting_point(argv), None
    if start.resume is not None:
        if start.preset or start.config or start.init_from or start.out:
            raise UserError(
                "--resume takes configuration and folder from the run: leave out --preset, --config, --init-from, --out"
            )
        base = read_manifest(find_checkpoint(start.resume, prefer="latest")).run_config
    else:
        if not start.preset and not start.config:
            start = dataclasses.replace(start, preset="stories" if has_gpu else "stories-cpu")
            why = f"preset {start.preset}, because there is {'a' if has_gpu else 'no'} GPU (--preset chooses another)"
        base = load_preset(start.preset) if start.preset else RunConfig()
        if start.config is not None:
            base = load_toml(start.config, base)
        if start.init_from is not None:
            base = _with_model_of(start.init_from, base)
    return parse(TrainCommand, argv, prog=prog, default=dataclasses.replace(start, run=base)), why


def _starting_point(argv: Sequence[str]) -> TrainCommand:
    """The flags that decide what the other flags' defaults are."""
    found: dict[str, str] = {}
    for i, word in enumerate(argv):
        name, equals, value = word.partition("=")
        key = name.removeprefix("--").replace("-", "_")
        if name.startswith("--") and key in ("preset", "config", "resume", "init_from", "out"):
            if not equals and (i + 1 == len(argv) or argv[i + 1].startswith("--")):
                raise UserError(f"{name} needs a value" + (f": {', '.join(preset_names())}" if key == "preset" else ""))
            found[key] = value if equals else argv[i + 1]
    paths = {key: Path(value) for key, value in found.items() if key != "preset"}
    return TrainCommand(preset=found.get("preset"), **paths)  # type: ignore[arg-type]


def _with_model_of(source: Path, base: RunConfig) -> RunConfig:
    """`base` with the model of a checkpoint, except for what does not change its shape."""
    model = read_manifest(find_checkpoint(source, prefer="best")).run_config.model
    block_size = min(base.model.block_size, model.block_size)
    model = dataclasses.replace(
        model, dropout=base.model.dropout, dropout_rng=base.model.dropout_rng, block_size=block_size
    )
    return dataclasses.replace(base, model=model)
