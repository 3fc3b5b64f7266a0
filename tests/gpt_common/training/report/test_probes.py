"""The section of a run's page that tells what probes found: whole, harmless, and absent where nobody asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpt_common.errors import UserError
from gpt_common.training.report.page import render_report
from gpt_common.training.report.past import read_run
from gpt_common.training.report.probes import PROBES, read_probes
from tests.gpt_common.training.made_up import evaluation, make_run, step

FOUND: dict[str, Any] = {
    "checkpoint": "step-000002",
    "note": None,
    "loss": {"loss": 0.12, "lowest": 0.08, "error": 0.001, "characters": 100, "by_letters": 3.1},
    "agreement": [
        {"kind": "name", "right": 0.75, "error": 0.04, "chance": 0.07, "items": 100, "ties": 0, "probability": 0.7},
        {"kind": "colour", "right": None, "error": None, "chance": None, "items": 0, "ties": 0, "probability": None},
    ],
    "pairs": [
        {"group": "likelier", "right": 0.8, "pairs": 100},
        {"group": "even", "right": None, "pairs": 100},
    ],
    "calibration": {
        "bins": [{"predicted": 0.1, "true": 0.12, "count": 5}, {"predicted": 0.9, "true": 0.8, "count": 5}],
        "scale": 1.31,
        "scale_interval": [1.2, 1.4],
        "divergence": 0.05,
        "expected_calibration_error": 0.02,
        "verdict": "overconfident",
        "in_words": "overconfident: its logits are about 1.3 times too large",
    },
    "questions": {"new phrasings": [40, 50]},
}


def probed_run(folder: Path, found: Any) -> Path:
    run = make_run(folder, [step(1), evaluation(1, 1.0)])
    (run / PROBES).parent.mkdir()
    (run / PROBES).write_text(found if isinstance(found, str) else json.dumps(found))
    return run


def test_the_page_tells_what_was_found(tmp_path: Path) -> None:
    page = render_report(read_run(probed_run(tmp_path / "run", FOUND)))
    assert "<h2>What it knows of the stories</h2>" in page
    assert "Overconfident: its logits are about 1.3 times too large." in page
    assert "1.31 (1.20 to 1.40)" in page
    assert "40 of 50" in page
    assert "true probability, by what it says" in page
    assert ">name</text>" in page
    assert ">colour</text>" not in page, "nothing was in sight"
    assert "Checkpoint step-000002" in page


def test_a_page_without_probes_has_no_such_section(tmp_path: Path) -> None:
    assert "What it knows" not in render_report(read_run(make_run(tmp_path / "run", [step(1), evaluation(1, 1.0)])))


def test_what_could_not_be_asked_is_said_and_nothing_is_drawn(tmp_path: Path) -> None:
    found = {**FOUND, "note": "cannot <write> 'x'", "agreement": [], "pairs": [], "calibration": None, "loss": None}
    page = render_report(read_run(probed_run(tmp_path / "run", {**found, "questions": None})))
    assert "Cannot &lt;write&gt;" in page
    assert 'id="probes' not in page


@pytest.mark.parametrize("text", ["{", "[]", "{}", json.dumps({**FOUND, "pairs": [1]}), '{"checkpoint": NaN}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    run = probed_run(tmp_path / "run", text)
    with pytest.raises(UserError, match=r"probes\.json is damaged") as error:
        read_probes(run)
    assert "\n" not in str(error.value)
