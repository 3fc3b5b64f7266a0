"""The command itself, with real workers on a tiny model. What they time is not looked at, only that it is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measuring import overhead
from benchmarks.measuring.backends import BACKENDS, Backend
from benchmarks.measuring.checks import other_work
from benchmarks.measuring.generation import measure_generation
from benchmarks.measuring.work import Absent, Batcher, Work
from benchmarks.measuring.worker import open_work
from benchmarks.readings import Compilation, Overhead
from benchmarks.results import read_result
from gpt_common.config import ModelConfig, RunConfig, TrainConfig

ROOT = Path(__file__).parents[2]
ABSENT = "cuda" if sys.platform == "darwin" else "mps"
CONFIG = RunConfig(
    model=ModelConfig(
        vocab_size=33, block_size=12, n_layer=2, n_head=2, n_embd=16, feed_forward="gelu_tanh", bias=True
    ),
    train=TrainConfig(batch_size=3, dtype="float32"),
)
PEERS = {
    "transformers": Backend("transformers-cpu", "torch", "cpu", peer="transformers"),
    "mlx-lm": Backend("mlx-lm-cpu", "mlx", "cpu", peer="mlx-lm"),
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/run.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)


def test_help_and_the_whole_parent_load_no_framework() -> None:
    code = """
import sys
import benchmarks.run, benchmarks.benchmark, benchmarks.report.compare, benchmarks.report.writing
try:
    benchmarks.run.main(["--help"])
finally:
    loaded = {"torch", "mlx", "transformers", "mlx_lm"} & {name.partition(".")[0] for name in sys.modules}
    sys.exit(f"loaded: {loaded}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--backends" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backends", "mxl"], "no backend 'mxl': did you mean 'mlx'?"),
        (["--backend", "mlx"], "did you mean '--backends'?"),
        (["--rounds", "0"], "rounds is 0: it must be at least 1"),
        (["--preset", "nope"], "no preset 'nope'"),
        (["--device", "cpu"], "--device and --compile are decided by the backends"),
        (["--adapter", "lora"], "benchmarks/studies/adapters.py times LoRA"),
        (["--compare", "none.json", "none.json"], "cannot read none.json: No such file or directory"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_command_measures_what_is_here_and_says_why_the_rest_is_not(tmp_path: Path) -> None:
    done = run(
        *("--backends", f"{ABSENT},mlx-cpu,cpu", "--no-parity", "--no-energy"),
        *("--rounds", "1", "--seconds", "0.05", "--cooldown", "0", "--out", str(tmp_path)),
        *("--n-layer", "1", "--n-head", "1", "--n-embd", "16", "--block-size", "8", "--batch-size", "2"),
    )
    assert done.returncode == 0, done.stderr
    (path,) = [p for p in tmp_path.glob("*.json") if "parity" not in p.name]
    result = read_result(path)
    rows = {row.label: row for row in result.cases[0].rows}
    assert {label: row.status for label, row in rows.items()} == {
        ABSENT: "absent",
        "mlx-cpu": "measured",
        "cpu": "measured",
        "mlx-cpu again": "measured",
    }
    assert ABSENT in str(rows[ABSENT].reason)
    assert rows["cpu"].verified == "unverified"
    losses = [row.processes[0].losses for row in rows.values() if row.processes]
    assert all(other_work(found, losses[0], "float32") is None for found in losses)
    assert not any(comparison.claimed for comparison in result.cases[0].comparisons)
    assert path.with_suffix(".html").exists()
    assert f"{ABSENT}: absent" in done.stdout


def test_nothing_here_is_an_error_with_the_reason(tmp_path: Path) -> None:
    done = run("--backends", ABSENT, "--no-parity", "--no-energy", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "nothing could be measured" in done.stderr
    assert ABSENT in done.stderr
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["cases"][0]["rows"][0]["status"] == "absent"


# --- the works, in this process


def first_losses(work: Work) -> list[float]:
    losses = []
    for step, batches in Batcher(CONFIG).take(4):
        work.step(batches, step, 1e-3)
        work.wait()
        losses.append(work.loss())
    return losses


@pytest.mark.parity
def test_all_do_the_same_work_and_write_the_same_text() -> None:
    """Ours and the published implementations, from the same weights and batches."""
    works = {name: open_work(BACKENDS[name], CONFIG) for name in ("cpu", "mlx-cpu")}
    works |= {name: open_work(backend, CONFIG) for name, backend in PEERS.items()}
    losses = {name: first_losses(work) for name, work in works.items()}
    for name, found in losses.items():
        assert found == pytest.approx(losses["cpu"], rel=2e-5), name
    texts = {measure_generation(work, CONFIG, lambda *_: None).greedy_sha256 for work in works.values()}
    assert len(texts) == 1


def test_forcing_finds_nothing_left_after_waiting() -> None:
    for name in ("cpu", "mlx-cpu"):
        work = open_work(BACKENDS[name], CONFIG)
        first_losses(work)
        assert work.force() == work.force()
        queue = work.product(8)
        queue()
        work.wait()


def test_what_a_backend_cannot_do_is_absent_with_the_reason() -> None:
    with pytest.raises(Absent, match=ABSENT):
        open_work(BACKENDS[ABSENT], CONFIG)
    dropping = RunConfig(model=ModelConfig(vocab_size=9, dropout=0.1), train=CONFIG.train)
    with pytest.raises(Absent, match="--dropout 0"):
        open_work(PEERS["mlx-lm"], dropping)


def test_compilation_is_counted() -> None:
    assert open_work(BACKENDS["cpu"], CONFIG).compilation() is None
    work = open_work(Backend("mlx-compiled", "mlx", "cpu", compiled=True), CONFIG)
    assert work.compilation() == Compilation(seconds=None, graphs=1, graph_breaks=0, recompiles=0)


@pytest.mark.parametrize("name", ["cpu", "mlx-cpu"])
def test_the_trainers_loop_is_set_beside_bare_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "SECONDS", 0.0)
    before = dict(os.environ)
    found: Overhead = overhead.measure_overhead(open_work, BACKENDS[name], CONFIG, lambda *_: None)
    assert len(found.loop_seconds) == len(found.bare_seconds) == overhead.GROUPS
    assert all(seconds > 0 for seconds in found.loop_seconds + found.bare_seconds)
    assert set(found.parts_seconds) == {"batches", "stepped", "record"}
    assert dict(os.environ) == before


def test_overhead_is_the_ratio_of_loop_and_bare_step() -> None:
    """A spike in one block of a group does not move the group's median."""
    blocks = [(0.202, 0.2)] * 40
    blocks[7] = (2.0, 0.2)
    found = overhead.overhead_of(blocks, {})
    assert found.ratio == pytest.approx(1.01)
    assert found.low == pytest.approx(1.01)
    assert found.high == pytest.approx(1.01)
