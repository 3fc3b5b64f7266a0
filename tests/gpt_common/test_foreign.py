"""Other trainers' names for our flags, and suggestions that do not mislead."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.plan import Plan
from gpt_common import foreign
from gpt_common.cli import flag_names, in_our_words, parse
from gpt_common.commands import SampleCommand, TrainCommand
from gpt_common.data.__main__ import Prepare
from gpt_common.errors import UserError, nearest
from gpt_common.training.command_line import parse_training

KINDS: dict[str, Any] = {"max-steps": TrainCommand, "max-new-tokens": SampleCommand, "bpe-vocab-size": Prepare}
ENTRIES = [(anchor, name, entry) for anchor, table in foreign.TABLES.items() for name, entry in table.items()]


def value_of(command: Any, flag: str) -> Any:
    """What a command says of a flag, wherever its field is."""
    name = flag.replace("-", "_")
    if hasattr(command, name):
        return getattr(command, name)
    run = command.run
    return next(getattr(part, name) for part in (run.model, run.optim, run.data, run.train) if hasattr(part, name))


@pytest.mark.parametrize(("anchor", "name", "entry"), ENTRIES, ids=[name for _, name, _ in ENTRIES])
def test_every_foreign_name_is_a_flag_or_a_sentence(anchor: str, name: str, entry: foreign.Entry) -> None:
    kind = KINDS[anchor]
    flags = flag_names(kind)
    assert f"--{name}" not in flags, "our own flag wins: the entry would never be seen"
    for typed in (f"--{name}", f"--{name.replace('-', '_')}"):
        if isinstance(entry, str):
            with pytest.raises(UserError) as error:
                parse(kind, [typed, "1"], prog="x")
            assert str(error.value).startswith(f"{typed}: ")
            assert set(re.findall(r"--[a-z][\w-]*", entry)) <= set(flags), "advice must name flags that there are"
        elif isinstance(entry, foreign.Switch):
            assert in_our_words(kind, [typed]) == list(entry.on)
            assert in_our_words(kind, [f"{typed}=True"]) == list(entry.on)
            assert in_our_words(kind, [typed, "False"]) == list(entry.off)
            for words in (entry.on, entry.off):
                parse(kind, list(words), prog="x")
        else:
            assert f"--{entry.flag}" in flags
            for theirs, ours in entry.values.items():
                assert value_of(parse(kind, [typed, theirs], prog="x"), entry.flag) == ours
            for theirs, what in entry.refused.items():
                with pytest.raises(UserError, match=re.escape(what)):
                    parse(kind, [typed, theirs], prog="x")


@pytest.mark.parametrize(
    ("typed", "flag", "value"),
    [
        ("--lr 3e-4", "learning-rate", 3e-4),
        ("--lr=3e-4", "learning-rate", 3e-4),
        ("--iters 50", "max-steps", 50),
        ("--max_iters=50", "max-steps", 50),
        ("--n_layer 3", "n-layer", 3),
        ("--n_layer=3", "n-layer", 3),
        ("--compile=False", "compile", False),
        ("--compile=True", "compile", True),
        ("--compile True", "compile", True),
        ("--wandb_log=True", "trackers", ("wandb",)),
        ("--wandb_log=False", "trackers", ()),
        ("--eval_iters=7", "eval-batches", 7),
        ("--gradient_accumulation_steps=4", "grad-accum-steps", 4),
        ("--block_size=32", "block-size", 32),
        ("--per_device_train_batch_size 6", "batch-size", 6),
        ("--warmup_iters=9", "warmup-steps", 9),
        ("--lr_decay_iters=90", "decay-steps", 90),
        ("--decay_lr=False", "schedule", "constant"),
        ("--bias=True", "bias", True),
        ("--tied_head=False", "tied-head", False),
        ("--tie_word_embeddings=false", "tied-head", False),
        ("--out_dir=here", "out", Path("here")),
        ("--model runs/base", "init-from", Path("runs/base")),
        ("--optim adamw_torch", "optimizer", "adamw"),
        ("--lr_scheduler_type constant_with_warmup", "schedule", "constant"),
        ("--report_to tensorboard wandb", "trackers", ("tensorboard", "wandb")),
        ("--bf16", "dtype", "bfloat16"),
    ],
)
def test_what_people_type_is_understood(typed: str, flag: str, value: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert value_of(parse(TrainCommand, typed.split(), prog="train"), flag) == value
    said = capsys.readouterr().err
    ours = typed.split("=")[0].split()[0].replace("_", "-") == f"--{flag}" and not typed.endswith(("True", "False"))
    assert (said == "") if ours else said.startswith("note: read --")
    assert said.count("\n") <= 1


def test_a_foreign_name_decides_folders_and_bases_too(tmp_path: Path) -> None:
    command, _ = parse_training(["--out_dir", str(tmp_path), "--run_name", "mine"], prog="train", has_gpu=False)
    assert (command.out, command.name) == (tmp_path, "mine")
    with pytest.raises(UserError, match="absent"):
        parse_training(["--model", str(tmp_path / "absent")], prog="train", has_gpu=False)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("--epochs 3", "--epochs: training is counted in steps: --max-steps"),
        ("--num_train_epochs=3", "--max-steps"),
        ("--always_save_checkpoint=True", "--checkpoint-interval"),
        ("--fp16", "--dtype bfloat16"),
        ("--dtype float16", "--dtype bfloat16"),
        ("--dtype=float16", "--dtype bfloat16"),
        ("--init_from=resume", "--resume"),
        ("--init-from scratch", "leave it out"),
        ("--compile=maybe", "neither true nor false"),
        ("--iters", "--max-steps needs a value"),
        ("--iters --lr 1", "--max-steps needs a value"),
        ("config/train_shakespeare_char.py", "--config FILE.toml"),
        ("stray", "unknown argument 'stray': see --help"),
    ],
)
def test_what_cannot_be_translated_says_what_to_do(typed: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        parse(TrainCommand, typed.split(), prog="train")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_benchmarks_and_plans_know_the_words_of_a_configuration_only() -> None:
    assert parse(Plan, ["--max_iters", "3"], prog="plan").run.train.max_steps == 3
    with pytest.raises(UserError, match="unknown argument '--model'"):
        parse(Plan, ["--model", "x"], prog="plan")


# --- suggestions


@pytest.mark.parametrize(
    ("word", "choices", "found"),
    [
        ("n_layr", ["n_layer", "n_head"], "n_layer"),
        ("gtp2", ["gpt2", "stories"], "gpt2"),
        ("mxl", ["mlx", "cpu"], "mlx"),
        ("storys", ["stories", "shakespeare"], "stories"),
        ("--data", ["--data-dir", "--seed"], "--data-dir"),
        ("--learningrate", ["--learning-rate"], "--learning-rate"),
        ("--lerning-rate", ["--learning-rate"], "--learning-rate"),
        ("--lr", ["--router", "--seed"], None),
        ("--epochs", ["--n-expert", "--prompts"], None),
        ("--iters", ["--bias", "--latest"], None),
        ("--wandb-log", ["--head-bias", "--n-layer"], None),
        ("linear", ["cosine", "wsd", "constant"], None),
        ("x", ["a", "b"], None),
    ],
)
def test_only_a_slip_of_the_pen_gets_a_suggestion(word: str, choices: list[str], found: str | None) -> None:
    said = nearest(word, choices)
    assert said == (f"choose from: {', '.join(sorted(choices))}" if found is None else f"did you mean '{found}'?")


@pytest.mark.parametrize(
    "word", ["--clip-skip", "--lora-plus", "--push-to-hub", "--beams", "--gpus", "--local-rank", "--xyz"]
)
def test_an_unknown_flag_far_from_all_is_not_explained_wrongly(word: str) -> None:
    with pytest.raises(UserError, match=rf"unknown argument '{word}': see --help$"):
        parse(TrainCommand, [word, "1"], prog="train")
