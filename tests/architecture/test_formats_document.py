"""docs/formats.md names every field that a real run writes, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gpt_common.machine.power_samples import Energy
from gpt_common.training.log.runlog import RunLog
from tests.twins import ROOT, train

DOCUMENT = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")


def described(header: str, section: str = "") -> set[str]:
    """The fields in the first column of the table that begins with `header`, after the heading `section`."""
    lines = iter(DOCUMENT[DOCUMENT.index(section) :].splitlines())
    assert any(line.startswith(f"| {header} |") for line in lines), f"no table '{header}'"
    next(lines)
    fields = set()
    for line in lines:
        if not line.startswith("|"):
            break
        fields |= set(re.findall(r"`(\w+)`", line.split("|")[1]))
    return fields


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, stories_dir: Path) -> dict[str, Path]:
    """A run that was stopped and resumed, and one with experts."""
    folder = tmp_path_factory.mktemp("runs")
    flags = [
        "--block-size",
        "32",
        "--batch-size",
        "4",
        "--eval-batches",
        "1",
        "--sample-tokens",
        "5",
        "--device",
        "cpu",
    ]
    flags += ["--warmup-steps", "1", "--max-steps", "2", "--log-interval", "1", "--data-dir", str(stories_dir)]
    train("torch_gpt", "--preset", "stories-cpu", "--out", folder / "gpt2", "--stop-at", "1", *flags)
    train("torch_gpt", "--resume", folder / "gpt2")
    train("torch_gpt", "--preset", "custom-llm-tiny", "--out", folder / "experts", *flags)
    return {name: folder / name for name in ("gpt2", "experts")}


def test_the_files_of_a_run(runs: dict[str, Path]) -> None:
    tree = DOCUMENT[DOCUMENT.index("runs/NAME/") : DOCUMENT.index("Either twin")]
    for path in runs["gpt2"].iterdir():
        assert path.name in tree
    checkpoint = DOCUMENT[DOCUMENT.index("## A checkpoint") : DOCUMENT.index("### state.json")]
    for path in (runs["gpt2"] / "checkpoints" / "step-000002").iterdir():
        assert path.name in checkpoint


def test_the_fields_of_metrics(runs: dict[str, Path], tmp_path: Path) -> None:
    steps = [row for name in runs for row in rows(runs[name]) if "loss" in row]
    of_ranks = {"tps_per_rank", "dt_ranks", "slowest_rank", "dt_behind", "efficiency"}  # tests/twins/ranks has them
    of_one = described("field of a step") - of_ranks
    assert [set(row) for row in steps[:2]] == [of_one - {"expert_load"}] * 2
    assert [set(row) for row in steps[2:]] == [of_one] * 2
    evaluations = [row for row in rows(runs["gpt2"]) if "val_loss" in row]
    assert evaluations
    assert all(set(row) == described("field of an evaluation") for row in evaluations)
    events = [set(row) for row in rows(runs["gpt2"]) if "event" in row]
    start = described("field of a start")
    assert events == [start, described("field of an event"), start]
    with RunLog(tmp_path, max_steps=1, first_step=0, trackers=(), config={}, run_name="run") as log:
        log.warn("the loss rises")
        log.energy(1, Energy(35.0, 1.0, None, "macmon", "the chip"))
    assert [set(row) for row in rows(tmp_path)] == [described("field of an alarm"), described("field of an energy")]


def test_the_fields_of_the_json_files(runs: dict[str, Path], stories_dir: Path) -> None:
    state = json.loads((runs["gpt2"] / "checkpoints" / "step-000002" / "state.json").read_text(encoding="utf-8"))
    assert set(state) == described("field", "### state.json")
    assert set(state["config"]) == {"model", "optim", "data", "train", "adapter"}
    about = json.loads((runs["gpt2"] / "run.json").read_text(encoding="utf-8"))
    assert set(about) == described("field", "### run.json")
    assert [set(session) for session in about["sessions"]] == [described("field of a session")] * 2
    meta = json.loads((stories_dir / "stories" / "meta.json").read_text(encoding="utf-8"))
    assert set(meta) == described("field", "### meta.json")
