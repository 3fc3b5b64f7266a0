"""What the README tells a person to type: here it is parsed, in CI it is run, and by hand too (`-m slow`)."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_common.cli import parse
from gpt_common.commands import TrainCommand
from gpt_common.config import preset_names
from tests.architecture.walk_readme import BY_CHECK, ROOT, commands

COMMANDS = [part for command in commands() for part in command.split(" && ")]
TRAINING = [command for command in COMMANDS if "_gpt.train" in command and command.startswith("python")]
SUBJECTS = (
    "mlx_gpt.train",
    "torch_gpt.train",
    "--resume",
    "--init-from",
    "mlx_gpt.sample",
    "gpt_common.data prepare",
    "gpt_common.runs compare",
    "from mlx_gpt import",
    "convert import",
    "convert export",
    "convert inspect",
    "convert diff",
    "convert parity",
    "benchmarks/run.py",
    "benchmarks/plan.py",
)


def test_every_subject_has_a_command_that_is_walked() -> None:
    assert not [subject for subject in SUBJECTS if not any(subject in command for command in COMMANDS)]
    assert len(TRAINING) > 8


def test_ci_walks_them_all_and_runs_the_one_that_is_left_out() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "python tests/architecture/walk_readme.py" in workflow
    assert BY_CHECK in COMMANDS
    assert BY_CHECK in (ROOT / "check").read_text(encoding="utf-8")
    assert ".ci/run" in workflow


@pytest.mark.parametrize("command", TRAINING)
def test_a_training_command_is_parsed(command: str) -> None:
    words = shlex.split(command, comments=True)
    found = parse(TrainCommand, words[3:], prog=" ".join(words[:3]))
    assert found.preset is None or found.preset in preset_names()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_readme_walks(tmp_path: Path) -> None:
    """In this environment, with a Ctrl-C for what takes longer than a minute."""
    walk = [sys.executable, "tests/architecture/walk_readme.py", "--installed", "--limit", "60"]
    with (tmp_path / "walk.txt").open("w") as log:
        done = subprocess.run(walk, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False, timeout=3600)
    assert done.returncode == 0, (tmp_path / "walk.txt").read_text()[-3000:]
