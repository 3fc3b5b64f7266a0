"""`evaluate --tasks`: what cannot be asked is told in a line, before a model is loaded; ties are counted."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from gpt_common.errors import UserError
from gpt_common.judging.tasks import Figure, TaskMeasure, TaskResult
from tests.twins import TWINS, tiny, train

ASKED: Any = None  # of no model: a task is looked for before there is one


def write_task(folder: Path, name: str = "own", **changes: str) -> Path:
    rows = [{"q": "The ", "c": ["frog", "hen", "frog"], "a": i % 3} for i in range(12)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    fields = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": f"{{data_files: {{test: {folder}/rows.jsonl}}}}",
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": '"{{q}}"',
        "doc_to_choice": '"{{c}}"',
        "doc_to_target": '"{{a}}"',
        "metric_list": "[{metric: acc}, {metric: acc_norm}]",
    } | changes
    (folder / f"{name}.yaml").write_text(
        "".join(f"{key}: {value}\n" for key, value in fields.items()), encoding="utf-8"
    )
    return folder


def measure(names: str, folder: Path | None = None) -> TaskMeasure:
    return TaskMeasure(names, folder, 0, None)


def said(names: str, folder: Path | None = None) -> str:
    with pytest.raises(UserError) as error:
        measure(names, folder).prepare(ASKED)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    return str(error.value)


def test_a_task_that_is_none(tmp_path: Path) -> None:
    assert "no task 'helaswag'" in (error := said("helaswag"))
    assert "hellaswag" in error
    assert "names none" in said(" , ")
    assert "is no folder" in said("own", tmp_path / "nowhere")
    (tmp_path / "own.yaml").write_text("task: own\n  output_type: [\n", encoding="utf-8")
    assert "own.yaml cannot be read" in said("own", tmp_path)


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert "'.[evaluation]'" in said("own", write_task(tmp_path))


def test_without_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = write_task(tmp_path, "gone", dataset_kwargs="{data_files: {test: /nowhere/at/all.jsonl}}")
    assert "data of task 'gone' cannot be had" in said("gone", missing)

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("couldn't reach it")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    error = said("far", write_task(tmp_path, "far", dataset_path="some/where", dataset_kwargs="{}"))
    assert "data of task 'far' cannot be had (couldn't reach it)" in error


def test_a_task_file_that_is_no_good(tmp_path: Path) -> None:
    assert "cannot be loaded" in said("bad", write_task(tmp_path, "bad", output_type="no_such_type"))


@pytest.mark.parametrize("twin", TWINS)
def test_the_command_tells_figures_ties_and_what_stands_before(
    twin: str, tmp_path: Path, stories_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train("torch_gpt", *tiny(stories_dir, "--out", str(run), "--max-steps", "2"))
    capsys.readouterr()
    evaluate = importlib.import_module(f"{twin}.evaluate").main
    folder = str(write_task(tmp_path))
    evaluate([str(run), "--tasks", "own", "--include-path", folder, "--against", str(run), "--limit", "11"])
    shown = capsys.readouterr()
    assert "behind '\\n'" in shown.out, "characters have no end of text"
    rows = [line.split() for line in shown.out.splitlines() if line.startswith("  own ")]
    assert [(row[1], row[-1]) for row in rows] == [("acc", "11"), ("acc_norm", "11")] * 2
    assert "own, acc: +0.0000 (95 %: +0.0000 to +0.0000); 0 won, 0 lost" in shown.out
    assert max(len(line) for line in shown.out.splitlines() if line.startswith("  ")) <= 80
    kept = json.loads((run / "evaluation" / "tasks.json").read_text())
    assert kept["ties"]["own"] in (0, 11), "the frog twice: if the frog is likelier, that is a tie each time"
    assert "it/s" not in shown.err, "bars of others"


def test_a_tie_of_the_best_is_told() -> None:
    result = TaskResult([Figure("own", "acc", 0.5, math.nan, 10)], {}, {"own": 3}, "'\\n'")
    assert "  own: 3 ties between the best choices, of which the first was taken" in list(result.lines())
