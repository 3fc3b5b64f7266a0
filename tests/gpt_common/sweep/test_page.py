"""The table and the page of a sweep tell of every run, whatever became of it."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from gpt_common.errors import UserError
from gpt_common.sweep.definition import Sweep, read_sweep
from gpt_common.sweep.page import PAGE, numeric, write_sweep
from gpt_common.sweep.processes import LOGS
from gpt_common.sweep.table import best_of, fields_of, print_sweep, rows_of
from tests.gpt_common.sweep.test_sweep import write
from tests.gpt_common.training.made_up import evaluation, make_run, step

GRID = """preset = "stories-cpu"
[fixed]
max_steps = 40
[grid]
learning_rate = [1e-3, 1e-2, 1e-1]
seed = [1, 2]
optimizer = ["adamw"]
"""


def sweep_of(folder: Path, text: str = GRID) -> Sweep:
    return read_sweep(write(folder, text), out=folder / "runs")


def trained(sweep: Sweep, number: int, loss: float | None) -> None:
    """A run of it that ended with this loss; None: that has logged a step and no evaluation."""
    cell = sweep.cells[number]
    rows = [step(1), *([step(40), evaluation(40, loss)] if loss is not None else [])]
    make_run(sweep.folder_of(cell), rows, config=cell.config.with_vocabulary(54))


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Three runs that are done, one that has just begun and stopped, one that failed and one of another sweep."""
    sweep = sweep_of(tmp_path)
    for number, loss in enumerate((1.5, 1.4, 0.8, None)):
        trained(sweep, number, loss)
    (sweep.folder / LOGS).mkdir()
    (sweep.folder / LOGS / f"{sweep.cells[4].name}.log").write_text("a line\nerror: the loss is no number <b>\n")
    trained(sweep_of(tmp_path, GRID.replace("= 40", "= 41")), 5, 0.1)
    return sweep


def test_every_run_has_a_line_and_the_best_is_marked(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(sweep)
    assert [row.state for row in rows] == ["done", "done", "done", "stopped", "failed", "refused"]
    assert fields_of(sweep) == ["learning_rate", "seed"], "what all have alike tells none from another"
    best = best_of(rows)
    assert best is not None
    assert best.cell is sweep.cells[2], "a run of another sweep is not the best of this one"
    print_sweep(sweep)
    out = capsys.readouterr().out
    assert "0.8000*" in out
    assert f"* best: {best.cell.name}" in out
    assert "failed: the loss is no number" in " ".join(out.split())
    assert "its train.max_steps is 41, the sweep's 40" in " ".join(out.split())


def test_the_page_has_all_of_them(sweep: Sweep) -> None:
    page = write_sweep(sweep).read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "Best loss over what was changed", "Runs, the best first", "Loss over steps",
    ]  # fmt: skip
    assert page.count("<tr>") == 1 + len(sweep.cells)
    assert "the loss is no number &lt;b&gt;" in page, "and is words, whatever stands in it"
    assert "<title>learning_rate-0.01_seed-1_optimizer-adamw: 0.8000</title>" in page
    assert re.search(r"<b>0.8000</b>", page)
    assert numeric(fields_of(sweep), [row for row in rows_of(sweep) if not math.isnan(row.best)]) == ["learning_rate"]


def test_a_page_of_one_run_and_of_none(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    with pytest.raises(UserError, match=r"no run of .* has begun"):
        write_sweep(sweep)
    trained(sweep, 0, None)
    with pytest.raises(UserError, match="was evaluated yet"):
        write_sweep(sweep)
    trained(sweep, 1, 1.5)
    assert write_sweep(sweep) == sweep.folder / PAGE
    page = (sweep.folder / PAGE).read_text(encoding="utf-8")
    assert "Best loss over" not in page
    assert best_of(rows_of(sweep)) is None


def test_losses_of_different_texts_have_no_best(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, '[grid]\ndataset = ["a", "b"]\n')
    for number, cell in enumerate(sweep.cells):
        rows = [step(1), evaluation(cell.config.train.max_steps, 1.0 + number)]
        make_run(sweep.folder_of(cell), rows, config=cell.config.with_vocabulary(54), dataset="ab"[number])
    assert best_of(rows_of(sweep)) is None
    assert write_sweep(sweep).exists()


def test_a_table_of_many_fields_keeps_to_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = "n_layer = [2, 3]\nlearning_rate = [1e-3, 1e-4]\nbeta2 = [0.99, 0.95]\nweight_decay = [0.1, 0.0]\n"
    print_sweep(sweep_of(tmp_path, f"[grid]\nseed = [1, 2]\n{fields}grad_clip = [1.0, 2.0]\n"))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "seed=1 n_layer=2" in lines[1], "words are whole"
