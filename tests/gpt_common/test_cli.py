"""Help that tells the truth, what follows from the width, and extras that hold what an error says they do."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from benchmarks import scale
from benchmarks.command import Benchmark
from benchmarks.plan import Plan
from convert.adapters.fuse import Fuse
from convert.conversion import Export, Import, Mlx2torch, Torch2mlx
from convert.difference import Diff
from convert.inspection import Inspect
from convert.parity.command import ParityCommand
from convert.quantising.command import Quantise
from gpt_common import manual
from gpt_common.cli import flag_names
from gpt_common.commands import SampleCommand, TrainCommand
from gpt_common.config import RunConfig, load_preset, preset_names
from gpt_common.data.__main__ import Extraction, List, Prepare
from gpt_common.judging.command import EvaluateCommand
from gpt_common.network.width import heads_for, rate_for
from gpt_common.serving.command import ServeCommand
from gpt_common.sweep import command as sweeping
from gpt_common.training.command_line import parse_training

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "-m torch_gpt.train": TrainCommand,
    "-m mlx_gpt.train": TrainCommand,
    "-m torch_gpt.sample": SampleCommand,
    "-m mlx_gpt.sample": SampleCommand,
    "-m torch_gpt.serve": ServeCommand,
    "-m mlx_gpt.serve": ServeCommand,
    "-m torch_gpt.evaluate": EvaluateCommand,
    "-m mlx_gpt.evaluate": EvaluateCommand,
    "-m gpt_common.data prepare": Prepare,
    "-m gpt_common.data extraction": Extraction,
    "-m gpt_common.sweep run": sweeping.Run,
    "-m gpt_common.sweep list": sweeping.Which,
    "-m gpt_common.data list": List,
    "-m convert import": Import,
    "-m convert export": Export,
    "-m convert torch2mlx": Torch2mlx,
    "-m convert mlx2torch": Mlx2torch,
    "-m convert inspect": Inspect,
    "-m convert diff": Diff,
    "-m convert parity": ParityCommand,
    "-m convert quantise": Quantise,
    "-m convert fuse": Fuse,
    "benchmarks/run.py": Benchmark,
    "benchmarks/plan.py": Plan,
    "benchmarks/scale.py run": scale.Run,
    "benchmarks/scale.py fit": scale.FitCommand,
    "benchmarks/scale.py plan": scale.Plan,
    "benchmarks/scale.py page": scale.Page,
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
    positional = {"--src", "--a", "--b", "--corpus", "--file"}
    shown = re.findall(r"^  (?:-\w, )?(--[\w-]+)", everything, re.MULTILINE)
    assert sorted(shown) == sorted(set(flag_names(kind)) - positional)


@pytest.mark.parametrize(
    "program",
    [
        "convert.__main__",
        "gpt_common.data.__main__",
        "gpt_common.runs",
        "gpt_common.sweep.__main__",
        "benchmarks.scale",
    ],
)
def test_the_list_of_commands_fits_a_screen(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module(program).main(["--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


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
                    named = {word.lower() for word in re.findall(r"[\w-]+", text)} & (
                        known - {"torch", "mlx", "mlx-torch-gpt"}
                    )
                    assert named
                    assert named <= extras[extra] | base, f"{path}: {named}"
    assert found
