"""`evaluate --probes --memorisation` on a run: both twins print the same, and leave it where its page finds it."""

from __future__ import annotations

import json
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from gpt_common.judging import command, memorisation
from gpt_common.judging.probes.measure import ProbesMeasure
from tests.twins import TWINS, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, stories_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    flags = (
        "--preset stories-cpu --block-size 96 --n-layer 1 --n-embd 16 --max-steps 2 --eval-batches 1 --sample-tokens 5"
    )
    flags += " --warmup-steps 1 --device cpu"
    train("torch_gpt", *flags.split(), "--data-dir", str(stories_dir), "--out", folder)
    return folder


def test_both_twins_say_the_same_and_the_page_shows_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "ProbesMeasure", partial(ProbesMeasure, items=3, stories=3))
    monkeypatch.setattr(memorisation, "SAMPLES", 2)
    monkeypatch.setattr(memorisation, "SAMPLE_TOKENS", 30)
    said: list[str] = []
    kept: list[dict[str, Any]] = []
    for twin in TWINS:
        import_module(f"{twin}.evaluate").main([str(run), "--probes", "--memorisation", "--device", "cpu"])
        said.append(capsys.readouterr().out)
        kept.append(json.loads((run / "evaluation" / "probes.json").read_text()))
        assert json.loads((run / "evaluation" / "memorisation.json").read_text())["leak"]["is_leak"] is False
    assert said[0] == said[1]
    assert all(len(line) <= 80 for line in said[0].splitlines() if str(run) not in line)
    for mine, theirs in zip(kept[0]["calibration"]["bins"], kept[1]["calibration"]["bins"], strict=True):
        assert mine["count"] == theirs["count"]
        assert mine["true"] == pytest.approx(theirs["true"], abs=1e-5)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "What it knows of the stories" in page
    assert 'id="probes' in page
