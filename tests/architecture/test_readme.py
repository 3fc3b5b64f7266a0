"""The README promises commands and files: they must exist, and its test command must be the one that CI runs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = (
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *ROOT.glob(".github/*/*.yml"),
    *ROOT.glob("**/presets/*.toml"),
)
COMMAND = re.compile(
    r"python (-m (?:mlx_gpt|torch_gpt|gpt_common|convert|benchmarks)[\w.]*|benchmarks/[\w/]+\.py)([^`|#,)\n]*)"
)
PACKAGES = ("gpt_common", "mlx_gpt", "torch_gpt", "convert", "benchmarks")


def test_every_module_and_script_that_is_named_exists() -> None:
    modules = set(re.findall(r"python -m ([\w.]+)", README)) - {"venv", "pytest"}
    named = {"mlx_gpt.train", "torch_gpt.train", "mlx_gpt.sample", "convert", "gpt_common.data", "gpt_common.runs"}
    assert named <= modules
    assert all(find_spec(module) for module in modules)
    scripts = set(re.findall(r"python (benchmarks/[\w/]+\.py)", README))
    assert {"benchmarks/run.py", "benchmarks/plan.py"} <= scripts
    assert all((ROOT / script).is_file() for script in scripts)


def test_the_check_runs_the_readmes_test_command() -> None:
    command = "python -m pytest -n auto"
    assert command in README
    assert command in (ROOT / "check").read_text(encoding="utf-8")
    assert "./check" in (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert ".ci/run" in (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")


WITH_SUBCOMMANDS = (
    "-m convert",
    "-m gpt_common.data",
    "-m gpt_common.runs",
    "-m gpt_common.sweep",
    "benchmarks/scale.py",
)


def documented_flags() -> dict[str, dict[str, str]]:
    """Command without its arguments -> flag -> a document that shows it."""
    found: dict[str, dict[str, str]] = {}
    for document in DOCUMENTS:
        for command, arguments in COMMAND.findall(document.read_text(encoding="utf-8")):
            words = arguments.split()
            if command in WITH_SUBCOMMANDS and words:
                command = f"{command} {words[0]}"
            for flag in (word for word in words if word.startswith("--")):
                found.setdefault(command, {})[flag.partition("=")[0].rstrip(".,;:")] = document.name
    return found


FLAGS = documented_flags()


@pytest.mark.parametrize("command", FLAGS)
def test_every_flag_that_a_document_shows_exists(command: str) -> None:
    assert {"-m mlx_gpt.train", "-m convert parity", "-m gpt_common.data prepare", "benchmarks/run.py"} <= FLAGS.keys()
    done = subprocess.run(
        [sys.executable, *command.split(), "--help-all"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    offered = set(re.findall(r"--[\w-]+", done.stdout))
    assert not {flag: document for flag, document in FLAGS[command].items() if flag not in offered}


def test_every_file_that_a_document_names_exists() -> None:
    for document in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        text = document.read_text(encoding="utf-8")
        places = {ROOT: re.findall(r"\b((?:tests|benchmarks|convert|docs|\w+_(?:gpt|common))/[\w./-]+\.\w+)", text)}
        places[document.parent] = re.findall(r"\]\(([\w./-]+)\)", text)
        for folder, names in places.items():
            assert not [name for name in names if not (folder / name).exists()], document


def test_it_can_be_read_in_one_go() -> None:
    assert len(README.splitlines()) <= 170
    for picture in re.findall(r"!\[.+\]\((.+)\)", README):
        assert (ROOT / picture).stat().st_size < 150_000


def test_the_tree_names_every_package_with_its_purpose() -> None:
    section = README[README.index("## The tree") : README.index("## Results")]
    lines = [line for line in section.splitlines() if line.startswith("    ")]
    assert len(lines) <= 14
    names = [line.split()[0] for line in lines]
    assert {f"{package}/" for package in PACKAGES} <= set(names)
    assert all(len(line.split()) > 2 for line in lines)
    folder = ROOT
    for line, name in zip(lines, names, strict=True):
        if not line.startswith("      "):
            folder = ROOT / name
        assert (folder if not line.startswith("      ") else folder / name).exists(), name


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_says_what_it_is(package: str) -> None:
    """Docstrings on modules and on their public classes and functions."""
    for path in (ROOT / package).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if not tree.body:
            continue
        assert ast.get_docstring(tree), f"{path} has no docstring"
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                if any(isinstance(mark, ast.Name) and mark.id == "overload" for mark in node.decorator_list):
                    continue  # a signature of the function that follows
                assert ast.get_docstring(node), f"{path}: {node.name} has no docstring"


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "gpt_common.data", "--help"],
        ["-m", "gpt_common.runs", "compare", "--help"],
        ["-m", "convert", "--help"],
        ["-m", "convert", "import", "--help"],
        ["-m", "convert", "torch2mlx", "--help"],
        ["-m", "convert", "parity", "--help"],
        ["benchmarks/run.py", "--help"],
        ["benchmarks/plan.py", "--help"],
        ["benchmarks/selftest.py", "--help"],
        ["benchmarks/studies/cache.py", "--help"],
    ],
    ids=lambda command: " ".join(command),
)
def test_help_is_answered_without_a_framework(command: list[str]) -> None:
    words = command[1:] if command[0] == "-m" else command
    runner = "run_module" if command[0] == "-m" else "run_path"
    code = f"""
import runpy, sys
sys.path.insert(0, ".")
sys.argv = {words!r}
try:
    runpy.{runner}({words[0]!r}, run_name="__main__"{", alter_sys=True" if runner == "run_module" else ""})
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {{"torch", "mlx", "transformers", "matplotlib", "safetensors"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--" in done.stdout
