"""Many runs from one file: what it means, and that nothing is trained twice, lost, or taken for another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_common.config import RunConfig, to_dict
from gpt_common.errors import UserError
from gpt_common.sweep.definition import Sweep, read_sweep
from gpt_common.sweep.queue import Queue, state_of
from gpt_common.sweep.table import rows_of
from tests.twins import ROOT, tensors

FIXED = """preset = "stories-cpu"
[fixed]
n_layer = 1
n_embd = 32
n_head = 2
block_size = 32
batch_size = 4
max_steps = {steps}
warmup_steps = 2
eval_interval = 5
eval_batches = 1
checkpoint_interval = 5
sample_tokens = 0
report = false
health_gates = "off"
device = "cpu"
data_dir = "{data}"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "rates.toml"
    path.write_text(text, encoding="utf-8")
    return path


def small(folder: Path, data: Path, grid: str, steps: int = 10) -> Sweep:
    return read_sweep(write(folder, FIXED.format(steps=steps, data=data) + grid), out=folder / "runs")


def test_every_combination_and_single_runs(tmp_path: Path) -> None:
    text = 'preset = "stories-cpu"\n[fixed]\nmax_steps = 7\n[grid]\nlearning_rate = [1e-3, 2e-3]\nseed = [1, 2, 3]\n'
    sweep = read_sweep(write(tmp_path, text + "[[run]]\nn_layer = 2\nlearning_rate = 5e-3\n"))
    assert sweep.folder == Path("runs/rates")
    assert [cell.name for cell in sweep.cells][:2] == ["learning_rate-0.001_seed-1", "learning_rate-0.001_seed-2"]
    assert len(sweep.cells) == 7
    last = sweep.cells[-1]
    assert last.name == "n_layer-2_learning_rate-0.005"
    assert (last.config.model.n_layer, last.config.optim.learning_rate, last.config.train.max_steps) == (2, 5e-3, 7)
    assert len({cell.fingerprint for cell in sweep.cells}) == 7
    again = read_sweep(write(tmp_path, text + "[[run]]\nn_layer = 2\nlearning_rate = 5e-3\n"))
    assert [cell.fingerprint for cell in again.cells] == [cell.fingerprint for cell in sweep.cells]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no runs"),
        ("[grid", "not TOML"),
        ("[gird]\nseed = [1]", "unknown key 'gird': did you mean 'grid'"),
        ("[grid]\nseed = 1", "grid.seed is a list"),
        ("[grid]\nsede = [1]", "unknown field 'sede': did you mean 'seed'"),
        ('[grid]\nseed = ["a"]', "seed"),
        ("[grid]\nseed = [1, 1]", "two runs are seed-1"),
        ("[grid]\nseed = [1]\nn_head = [3]", "n_head"),
        ('twin = "jax_gpt"\n[grid]\nseed = [1]', "twin is 'jax_gpt'"),
        ("name = '../elsewhere'\n[grid]\nseed = [1]", "name is '../elsewhere'"),
        ("name = 5\n[grid]\nseed = [1]", "name is 5"),
        ("[train]\nmax_steps = 5\n[grid]\nseed = [1]", r"its fields stand in \[fixed\]"),
        ("max_steps = 5\n[grid]\nseed = [1]", r"unknown key 'max_steps'; a field stands in \[fixed\]"),
        ("[grid]\n'train.seed' = [1]", "unknown field 'train.seed': did you mean 'seed'"),
        (f"a = {'1' * 5000}", "not TOML"),
        ('preset = "stories-cup"\n[grid]\nseed = [1]', "stories-cpu"),
        ("[run]\nseed = 1", r"\[\[run\]\]"),
        (f"[grid]\nseed = {list(range(101))}\nlearning_rate = {[i / 1e4 for i in range(1, 101)]}", "10,100 runs"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_sweep(write(tmp_path, text))


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "none.toml", "No such file"), (tmp_path, "not a regular file")):
        with pytest.raises(UserError, match=f"cannot read {path}: {said}"):
            read_sweep(path)


def test_runs_have_names_that_folders_can_have(tmp_path: Path) -> None:
    near = read_sweep(write(tmp_path, "[grid]\nlearning_rate = [0.12345678, 0.12345679]\n")).cells
    assert [cell.name for cell in near] == ["learning_rate-0.12345678", "learning_rate-0.12345679"]
    many = {field: value for field, value in to_dict(RunConfig())["train"].items() if isinstance(value, int)}
    lines = "".join(f"{field} = [{str(value).lower()}]\n" for field, value in many.items() if field != "seed")
    long = read_sweep(write(tmp_path, f"[grid]\n{lines}seed = [1, 2]\n")).cells
    assert len({cell.name for cell in long}) == 2, "told apart by their last field all the same"
    assert max(len(f"{cell.name}.process".encode()) for cell in long) < 255
    texts = read_sweep(write(tmp_path, f"[grid]\ndataset = ['{'a' * 90}b', '{'a' * 90}c']\n")).cells
    assert len({cell.name for cell in texts}) == 2


def test_a_queue_trains_what_is_not_done_and_nothing_twice(tmp_path: Path, stories_dir: Path) -> None:
    sweep, heard = small(tmp_path, stories_dir, "[grid]\nseed = [1, 2]\n"), list[str]()
    assert Queue(sweep, jobs=2, threads=1, tell=heard.append).work()
    assert sum("is done: best validation loss" in line for line in heard) == 2
    when = [(sweep.folder_of(cell) / "metrics.jsonl").stat().st_mtime_ns for cell in sweep.cells]
    more = small(tmp_path, stories_dir, "[grid]\nseed = [1, 2, 3]\n")
    heard.clear()
    assert Queue(more, threads=1, tell=heard.append).work()
    assert [line.split()[0] for line in heard] == ["seed-3", "seed-3"], "the others are done"
    assert [(sweep.folder_of(cell) / "metrics.jsonl").stat().st_mtime_ns for cell in sweep.cells] == when
    longer = small(tmp_path, stories_dir, "[grid]\nseed = [1]\n", steps=20)
    with pytest.raises(UserError, match=r"holds another run: its train.max_steps is 10, the sweep's 20"):
        Queue(longer).work()


def test_a_run_that_fails_is_named_with_its_last_words(tmp_path: Path) -> None:
    sweep = small(tmp_path, tmp_path / "nowhere", '[grid]\nseed = [1]\ndataset = ["none-such"]\n')
    heard: list[str] = []
    queue = Queue(sweep, threads=1, tell=heard.append)
    assert not queue.work()
    assert list(queue.failed.values()) == [2]
    assert "none-such" in heard[-1]
    assert not list((tmp_path / "runs").glob("queue-*")), "nothing is left"
    assert not list((tmp_path / "runs").rglob("*.process"))
    assert rows_of(sweep)[0].state == "failed"
    assert "none-such" in rows_of(sweep)[0].why


def test_a_run_that_fails_at_its_last_step_is_not_done(tmp_path: Path, stories_dir: Path) -> None:
    grid = "[grid]\nlearning_rate = [1e30]\ngrad_clip = [0.0]\n"
    sweep = small(tmp_path, stories_dir, grid, steps=5)
    for again in (False, True):
        heard: list[str] = []
        queue = Queue(sweep, threads=1, tell=heard.append)
        assert not queue.work(), again
        assert list(queue.failed.values()) == [1]
        assert "the loss is nan" in heard[-1]
        [row] = rows_of(sweep)
        assert row.run is not None
        assert row.run.finished, "its last step is recorded"
        assert (row.state, state_of(sweep, sweep.cells[0])) == ("failed", "stopped")
        assert "the loss is nan" in row.why


def test_a_finished_run_is_what_the_trainer_alone_makes(tmp_path: Path, stories_dir: Path) -> None:
    sweep = small(tmp_path, stories_dir, "[grid]\nseed = [7]\n")
    assert Queue(sweep, threads=1, tell=lambda _: None).work()
    alone = tmp_path / "alone"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch_gpt.train",
            "--config",
            str(tmp_path / "runs/logs/seed-7.toml"),
            "--out",
            str(alone),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    mine, other = (tensors(folder, 10) for folder in (sweep.folder_of(sweep.cells[0]), alone))
    assert all((mine[name] == other[name]).all() for name in mine)
