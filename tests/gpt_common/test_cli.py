"""The command line: help that tells the truth, other trainers' words, and suggestions that do not mislead."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from benchmarks.command import Benchmark
from benchmarks.plan import Plan
from convert.conversion import Mlx2torch, Torch2mlx
from convert.difference import Diff
from convert.inspection import Inspect
from convert.parity.command import ParityCommand
from gpt_common import foreign, manual
from gpt_common.cli import flag_names, in_our_words, parse
from gpt_common.commands import SampleCommand, TrainCommand
from gpt_common.config import RunConfig, load_preset, preset_names
from gpt_common.data.__main__ import List, Prepare
from gpt_common.errors import UserError, nearest
from gpt_common.training.command_line import parse_training
from gpt_common.width import heads_for, rate_for

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "-m torch_gpt.train": TrainCommand,
    "-m mlx_gpt.train": TrainCommand,
    "-m torch_gpt.sample": SampleCommand,
    "-m mlx_gpt.sample": SampleCommand,
    "-m gpt_common.data prepare": Prepare,
    "-m gpt_common.data list": List,
    "-m convert torch2mlx": Torch2mlx,
    "-m convert mlx2torch": Mlx2torch,
    "-m convert inspect": Inspect,
    "-m convert diff": Diff,
    "-m convert parity": ParityCommand,
    "benchmarks/run.py": Benchmark,
    "benchmarks/plan.py": Plan,
}


def told(capsys: pytest.CaptureFixture[str], *argv: str, has_gpu: bool = False) -> str:
    """What the training command prints, which is a kind of help."""
    with pytest.raises(SystemExit) as end:
        parse_training(argv, prog="python -m torch_gpt.train", has_gpu=has_gpu)
    assert not end.value.code
    return capsys.readouterr().out


# --- help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_screen_and_says_what_each_flag_does(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    kind = COMMANDS[command]
    text = manual.page(kind, f"python {command}")
    assert len(text.splitlines()) < 60
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert "{None}" not in text
    assert all(re.search(r"^  \S", line) is None or len(line.split()) > 1 for line in text.splitlines())
    everything = manual.page(kind, f"python {command}", everything=True)
    positional = {"--src", "--a", "--b", "--corpus"}
    shown = re.findall(r"^  (?:-\w, )?(--[\w-]+)", everything, re.MULTILINE)
    assert sorted(shown) == sorted(set(flag_names(kind)) - positional)


def test_no_flag_is_without_a_word() -> None:
    for kind in COMMANDS.values():
        for field in dataclasses.fields(kind):
            if field.default_factory is not RunConfig:
                assert manual._docstrings(kind).get(field.name), f"{kind.__name__}.{field.name}"


@pytest.mark.parametrize("name", preset_names())
def test_defaults_are_those_of_the_preset_that_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_preset(name)
    out = told(capsys, "--preset", name, "--help")
    assert f"from preset {name}" in out
    assert re.search(rf"--learning-rate X .*\[{config.optim.learning_rate:g}\]", out)
    assert re.search(rf"--max-steps N .*\[{config.train.max_steps}\]", out)
    assert re.search(rf"--n-layer N .*\[{config.model.n_layer}\]", out)
    assert f"[{config.data.dataset}]" in out


def test_without_a_preset_they_are_those_of_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    small, large = told(capsys, "--help"), told(capsys, "--help", has_gpu=True)
    assert "preset stories-cpu, which this machine would take" in " ".join(small.split())
    assert re.search(r"--n-embd N .*\[64\]", small)
    assert re.search(r"--n-embd N .*\[256\]", large)


def test_a_file_and_a_width_change_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.toml").write_text("[model]\nn_layer = 7\n")
    assert re.search(r"--n-layer N .*\[7\]", told(capsys, "--config", str(tmp_path / "mine.toml"), "--help"))
    wide = told(capsys, "--preset", "tinystories", "--n-embd", "512", "--help")
    assert re.search(r"--n-head N .*\[8\]", wide)
    assert f"[{rate_for(512):g}]" in wide


def test_sections_come_in_the_order_of_need(capsys: pytest.CaptureFixture[str]) -> None:
    out = told(capsys, "--help-all")
    titles = ["--preset", "\ndata\n", "\nsize\n", "\nsteps\n", "\nrate\n", "\nlog\n", "\nmodel families\n"]
    places = [out.index(title) for title in titles]
    assert places == sorted(places)
    assert "--experts-per-token" in out
    assert "--experts-per-token" not in told(capsys, "--help")


def test_presets_are_listed_by_group_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(name for names in manual.PRESETS.values() for name in names) == preset_names()
    short, listed = told(capsys, "--help"), told(capsys, "--presets")
    for group, names in manual.PRESETS.items():
        assert f"{group}: {', '.join(names)}" in short
        assert f"\n{group}\n" in listed
        assert all(re.search(rf"^  {name}\s+\S", listed, re.MULTILINE) for name in names)


@pytest.mark.parametrize("command", ["-m torch_gpt.train", "-m mlx_gpt.sample", "-m convert", "benchmarks/plan.py"])
@pytest.mark.parametrize("flag", ["--help", "--help-all"])
def test_a_pipe_that_closes_is_not_mentioned(command: str, flag: str) -> None:
    line = f"{sys.executable} {command} {flag} | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python")


def test_help_takes_less_than_half_a_second_of_work() -> None:
    import resource

    def work() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    taken = []
    for _ in range(3):
        before = work()
        subprocess.run([sys.executable, "-m", "torch_gpt.train", "--help"], cwd=ROOT, capture_output=True, check=True)
        taken.append(work() - before)
    assert min(taken) < 0.5


# --- other trainers' words

KINDS: dict[str, Any] = {"max-steps": TrainCommand, "max-new-tokens": SampleCommand, "bpe-vocab-size": Prepare}
ENTRIES = [(anchor, name, entry) for anchor, table in foreign.TABLES.items() for name, entry in table.items()]
SAMPLES = {int: "3", float: "0.5", str: "word", Path: "some/path"}


def default_of(kind: Any, flag: str) -> tuple[Any, Any]:
    """Type and default of the field behind a flag, wherever it is."""
    homes = [kind, *(section.default_factory for section in dataclasses.fields(RunConfig))]
    for home in homes:
        for field in dataclasses.fields(home):
            if field.name == flag.replace("-", "_"):
                return field.type, field.default
    raise AssertionError(flag)


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
    "word", ["--clip-skip", "--lora-rank", "--push-to-hub", "--beams", "--gpus", "--local-rank", "--xyz"]
)
def test_an_unknown_flag_far_from_all_is_not_explained_wrongly(word: str) -> None:
    with pytest.raises(UserError, match=rf"unknown argument '{word}': see --help$"):
        parse(TrainCommand, [word, "1"], prog="train")


# --- what follows from the width


@pytest.mark.parametrize(("width", "heads"), [(64, 4), (128, 4), (256, 8), (512, 8), (768, 12), (384, 6), (7, 1)])
def test_heads_follow_the_width(width: int, heads: int) -> None:
    assert heads_for(width) == heads
    command, _ = parse_training(["--preset", "tinystories", "--n-embd", str(width)], prog="train", has_gpu=False)
    model, optim = command.run.model, command.run.optim
    assert (model.n_embd, model.n_head, optim.learning_rate) == (width, heads, rate_for(width))
    assert optim.min_lr <= optim.learning_rate / 10


def test_what_is_said_is_not_decided() -> None:
    flags = ["--preset", "tinystories", "--n-embd", "96", "--n-head", "2", "--learning-rate", "1e-5", "--n-layer", "12"]
    run = parse_training(flags, prog="train", has_gpu=False)[0].run
    assert (run.model.n_head, run.optim.learning_rate, run.model.n_layer) == (2, 1e-5, 12)


@pytest.mark.parametrize(("width", "rate"), [(32, 0.01), (64, 0.0063), (128, 0.0031), (256, 0.0016)])
def test_a_text_of_ones_own_does_not_inherit_an_extreme_rate(width: int, rate: float) -> None:
    flags = ["--preset", "stories-cpu", "--dataset", "mine", "--n-embd", str(width)]
    command, why = parse_training(flags, prog="train", has_gpu=False)
    assert command.run.optim.learning_rate == rate
    assert (why is None) == (rate == 0.01)
    assert why is None or "by the width" in why
    told_so, why = parse_training([*flags, "--learning-rate", "0.02"], prog="train", has_gpu=False)
    assert (told_so.run.optim.learning_rate, why) == (0.02, None)


def test_presets_for_texts_of_ones_own_keep_their_rates(tmp_path: Path) -> None:
    for name in ("gpt2", "custom-llm-1b", "smollm-135m"):
        run = parse_training(["--preset", name, "--dataset", "mine"], prog="train", has_gpu=False)[0].run
        assert run.optim.learning_rate <= load_preset(name).optim.learning_rate
    (tmp_path / "mine.toml").write_text("[data]\ndataset = 'mine'\n[optim]\nlearning_rate = 0.02\n")
    flags = ["--preset", "stories-cpu", "--config", str(tmp_path / "mine.toml")]
    assert parse_training(flags, prog="train", has_gpu=False)[0].run.optim.learning_rate == 0.02


# --- extras


def test_an_extra_that_an_error_names_holds_what_is_missing() -> None:
    """Of every function that says `pip install '.[EXTRA]'`: the packages that it names or imports."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def packages(lines: list[str]) -> set[str]:
        return {re.split(r"[\[<>=;! ]", line)[0].lower() for line in lines}

    base = packages(project["dependencies"])
    extras = {name: packages(lines) for name, lines in project["optional-dependencies"].items()}
    known = base.union(*extras.values())
    found = 0
    for package in ("gpt_common", "mlx_gpt", "torch_gpt", "convert", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(function, ast.FunctionDef) or "pip install" not in (text := ast.unparse(function)):
                    continue
                for extra in re.findall(r"pip install[^\n]*?\[(\w+)\]", text):
                    found += 1
                    assert extra in extras, f"{path}: no extra {extra}"
                    named = {word.lower() for word in re.findall(r"[\w-]+", text)} & (known - {"torch", "mlx", "mlx-torch-gpt"})
                    assert named
                    assert named <= extras[extra] | base, f"{path}: {named}"
    assert found
