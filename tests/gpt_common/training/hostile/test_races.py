"""Two processes for one run: no loss, and the second gets the next name or one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpt_common.training import opening
from gpt_common.training.folder import take_up
from tests.gpt_common.training.hostile.sound import checkpoint_of, make_corpus, make_sound
from tests.twins import ROOT, fails

PAIRS = {"next": 60, "named": 50, "failed": 40, "resume": 50}
SECOND = {
    "named": "is there already: another process begins a run in it|already holds a run|is no empty folder",
    "resume": "is being trained by another process",
}


def races(kind: str, folder: Path) -> list[dict[str, Any]]:
    """What became of every pair."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpt_common.training.hostile.racing", kind, str(PAIRS[kind]), str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == PAIRS[kind]
    return found


def test_there_are_two_hundred_pairs() -> None:
    assert sum(PAIRS.values()) >= 200


def test_new_runs_get_names_of_their_own(tmp_path: Path) -> None:
    for found in races("next", tmp_path):
        assert found["codes"] == [0, 0, 0], found
        assert found["said"] == [["held", "run", "True"], ["held", "run-2", "True"]]
        assert found["left"] == ["run", "run-2"]


def test_a_start_that_fails_takes_no_other_along(tmp_path: Path) -> None:
    """Of two that fail at once the second is refused, or begins when the first has gone: alone either way."""
    for found in races("failed", tmp_path):
        assert found["codes"] == [0, 0, 0], found
        held = [said for said in found["said"] if said[0] == "held"]
        assert 1 <= len(held) <= 2
        assert all(
            any(words in said[1] for words in SECOND["named"].split("|")) for said in found["said"] if said not in held
        ), found
        assert found["left"] == []


@pytest.mark.parametrize("kind", ["named", "resume"])
def test_one_of_two_gets_the_folder_and_the_other_one_line(kind: str, tmp_path: Path) -> None:
    for found in races(kind, tmp_path):
        assert found["codes"] == [0, 0, 0], found
        error, held = found["said"]
        assert held == ["held", "run", "True"]
        assert error[0] == "error"
        assert any(words in error[1] for words in SECOND[kind].split("|")), error
        assert "\n" not in error[1]
        assert found["left"] == ["run"]


def test_a_run_that_went_on_before_it_was_held_is_not_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between reading `latest` and holding the folder another process may have saved a later checkpoint."""
    run = make_sound(tmp_path / "run", make_corpus(tmp_path / "data"))

    def meanwhile(folder: Path) -> Any:
        later = run / "checkpoints" / "step-000004"
        checkpoint_of(run).rename(later)
        (run / "checkpoints" / "latest").write_text("step-000004\n")
        return take_up(folder)

    monkeypatch.setattr(opening, "take_up", meanwhile)
    capsys.readouterr()
    assert "was taken further by another process just now" in fails(capsys, "torch_gpt", "--resume", run)
    take_up(run).release()  # and it is not held any more
