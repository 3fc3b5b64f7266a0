"""The training command line: defaults < preset < TOML file < the run or checkpoint that is taken up < flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpt_common.cli import in_our_words, parse, peek
from gpt_common.commands import TrainCommand
from gpt_common.config import RunConfig, is_for_fine_tuning, load_preset, load_toml
from gpt_common.errors import UserError
from gpt_common.machine.hardware import probably_has_gpu
from gpt_common.manual import asked
from gpt_common.network.width import rate_for, scaled, width_of, with_rate
from gpt_common.training.checkpoint import described, find_checkpoint
from gpt_common.training.folder import newest_run
from gpt_common.training.pretrained import is_local, local_run
from gpt_common.training.ranks.launchers import check_launcher

FINE_TUNING_SHARE = 0.1
"""Of the base's peak learning rate; and of that, where the schedule ends."""
ADAPTER_RATE = 10.0
"""An adapter learns best at about ten times the rate that suits the whole model (Schulman et al. 2025, "LoRA without
regret")."""
VALUES_FROM = {"resume": "the run", "init_from": "fine-tuning", "config": "the file", "preset": "preset"}
"""Where the values of flags that are left out come from: the first of these that is given."""


def parse_training(argv: Sequence[str], *, prog: str, has_gpu: bool) -> tuple[TrainCommand, str | None]:
    """The training command line, with defaults < preset < TOML file < flags.

    With `--resume` the base is the configuration of the checkpoint, and a preset or TOML file is refused. With
    `--init-from` it is that of the run whose weights are taken, with a learning rate for fine-tuning.

    Args:
        has_gpu: decides between the presets `stories` and `stories-cpu` if nothing else was asked for.

    Returns:
        The command, and a sentence on what was chosen without being asked for, if anything.
    """
    argv, why = _with_newest_run(_with_local_runs(in_our_words(TrainCommand, argv)))
    start = _starting_point(argv)
    values_from = next(
        (f"{what} {value}" for name, what in VALUES_FROM.items() if (value := getattr(start, name))),
        f"preset {'stories' if has_gpu else 'stories-cpu'}, which this machine would take; --preset NAME --help shows "
        "another's",
    )
    if start.resume is not None:
        if start.preset or start.config or start.init_from or start.out or start.name:
            raise UserError(
                "--resume takes configuration and folder from the run: leave out --preset, --config, --init-from, "
                "--out, --name"
            )
        base = described(find_checkpoint(start.resume, prefer="latest")).run_config
    elif start.init_from is not None:
        base, why = _fine_tuning(start, peek(argv, ("adapter", "max_steps", "max_minutes")))
    else:
        if not start.preset and not start.config:
            start = dataclasses.replace(start, preset="stories" if has_gpu else "stories-cpu")
            why = f"preset {start.preset}, because there is {'a' if has_gpu else 'no'} GPU (--preset chooses another)"
        given = peek(argv, ("n_embd", "n_head", "learning_rate", "dataset"))
        base, rate = _by_width(start, _preset_and_file(start), given)
        why = "; ".join(sentence for sentence in (why, rate) if sentence) or None
    default = dataclasses.replace(start, run=base)
    return parse(TrainCommand, argv, prog=prog, default=default, values_from=values_from), why


def parse_early(argv: Sequence[str], prog: str) -> None:
    """Read the command line before a framework is imported, for its mistakes or its help.

    Which preset would run without --preset is then known as far as it can be without a framework. What the
    other twin's launcher has started is refused.
    """
    fetches = any("hf:" in word for word in argv) and not asked(argv)  # which shows progress: later
    if not fetches:
        parse_training(argv, prog=prog, has_gpu=probably_has_gpu())
    check_launcher(prog)


def _by_width(start: TrainCommand, base: RunConfig, given: Mapping[str, str]) -> tuple[RunConfig, str | None]:
    """`base` with what follows from the width where nothing says otherwise, and a sentence on it.

    A preset's learning rate is tuned to its own text (1e-2 for the stories); another text gets at most the rate that
    suits the width.
    """
    preset = RunConfig() if start.preset is None else load_preset(start.preset)
    if start.config is None:
        base = scaled(start.preset, base, given)
    rate = rate_for(width_of(base, given))
    own_text = given.get("dataset", base.data.dataset) != preset.data.dataset
    untouched = "learning_rate" not in given and base.optim.learning_rate == preset.optim.learning_rate
    if start.preset is None or not own_text or not untouched or base.optim.learning_rate <= rate:
        return base, None
    return with_rate(base, rate), (
        f"peak learning rate {rate:g}, by the width: the preset's {base.optim.learning_rate:g} is for its own text "
        "(--learning-rate chooses another)"
    )


def _preset_and_file(start: TrainCommand) -> RunConfig:
    base = load_preset(start.preset) if start.preset else RunConfig()
    return base if start.config is None else load_toml(start.config, base)


def _fine_tuning(start: TrainCommand, given: Mapping[str, str]) -> tuple[RunConfig, str]:
    """The configuration that weights of another run are trained on with, and a sentence on its learning rate.

    What pre-training takes would undo what was learnt: at the base's own peak rate a finished model ends worse than it
    began. So the peak is a tenth of the base's, after a short warm-up, unless a file or a flag says otherwise.
    For a new adapter, which changes little by a step, it is the base's.

    Args:
        given: flags that decide on it.
    """
    assert start.init_from is not None
    source = described(find_checkpoint(start.init_from, prefer="best")).run_config
    named = start.preset is not None or start.config is not None
    # Without a preset or file the run goes on as its base did, where this machine chooses.
    base = _preset_and_file(start) if named else source
    train = base.train if named else dataclasses.replace(base.train, device="auto", dtype="auto", compile=False)
    if not named and "max_steps" in given and "max_minutes" not in given:  # steps that are asked for are those done
        train = dataclasses.replace(train, max_minutes=0)
    adapts = given.get("adapter", base.adapter.adapter if named else "none") != "none"
    preset = load_preset(start.preset) if start.preset else RunConfig()
    optim, tuned = base.optim, start.preset is not None and is_for_fine_tuning(start.preset) and not adapts
    if not named or (optim.learning_rate == preset.optim.learning_rate and not tuned):  # no file has chosen it
        share = FINE_TUNING_SHARE * (ADAPTER_RATE if adapts and not source.adapter.adapts else 1)
        peak = share * min(source.optim.learning_rate, optim.learning_rate)
        optim = dataclasses.replace(
            optim,
            learning_rate=peak,
            min_lr=min(optim.min_lr, FINE_TUNING_SHARE * peak),
            warmup_steps=min(optim.warmup_steps, max(10, train.max_steps // 20)),
        )
    model = dataclasses.replace(
        source.model,
        dropout=base.model.dropout,
        dropout_rng=base.model.dropout_rng,
        block_size=min(base.model.block_size, source.model.block_size),
    )
    why = (
        f"fine-tuning {start.init_from}: peak learning rate {optim.learning_rate:g} unless --learning-rate says "
        f"otherwise (its own was {source.optim.learning_rate:g})"
    )
    adapter = base.adapter if base.adapter.adapts else source.adapter
    return dataclasses.replace(base, model=model, optim=optim, train=train, adapter=adapter), why


def _with_local_runs(argv: Sequence[str]) -> list[str]:
    """The arguments with a run of this machine for an `--init-from hf:OWNER/NAME`, which is fetched if need be.

    For a page of help nothing is fetched: what a model that is not here would bring is left out.
    """
    words = [word for given in argv for word in (given.split("=", 1) if given.startswith("--init-from=") else [given])]
    for i, word in enumerate(words[:-1]):
        if word in ("--init-from", "--init_from"):
            if asked(argv) and not is_local(Path(words[i + 1])):
                return words[:i] + words[i + 2 :]
            words[i + 1] = str(local_run(Path(words[i + 1])))
    return words


def _with_newest_run(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """The arguments with the newest run behind a `--resume` that names none, and a sentence on which it is."""
    words = list(argv)
    for i, word in enumerate(words):
        if word == "--resume" and (i + 1 == len(words) or words[i + 1].startswith("--")):
            run = newest_run()
            return [*words[: i + 1], str(run), *words[i + 1 :]], f"resuming the newest run, {run}"
    return words, None


def _starting_point(argv: Sequence[str]) -> TrainCommand:
    """The flags that decide what the other flags' defaults are."""
    found = peek(argv, ("preset", "config", "resume", "init_from", "out", "name"))
    paths = {key: Path(value) for key, value in found.items() if key not in ("preset", "name")}
    return TrainCommand(preset=found.get("preset"), name=found.get("name"), **paths)  # type: ignore[arg-type]
