"""nanoGPT as a peer: what is taken for it, what is refused before anything is timed, and that it does our work."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.benchmark import worker_environment
from benchmarks.command import Benchmark
from benchmarks.measuring.backends import BACKENDS, Backend, choose_backends
from benchmarks.measuring.generation import measure_generation
from benchmarks.measuring.work import Batcher, Refused, Work
from benchmarks.measuring.worker import open_work
from benchmarks.nanogpt import check_nanogpt
from benchmarks.report.beside import beside_peers
from benchmarks.results import Settings, read_result
from gpt_common.config import ModelConfig, OptimConfig, RunConfig, TrainConfig, load_preset
from gpt_common.errors import UserError
from gpt_common.machine.provenance import git_state
from tests.benchmarks.nanogpt import write_nanogpt
from tests.benchmarks.recipes import make_result, make_session, worker

ROOT = Path(__file__).parents[2]
CONFIG = RunConfig(
    model=ModelConfig(vocab_size=33, block_size=12, n_layer=2, n_head=2, n_embd=16, feed_forward="gelu", bias=True),
    optim=OptimConfig(weight_decay=0.1, beta1=0.8),
    train=TrainConfig(batch_size=3, grad_accum_steps=2, dtype="float32"),
)


def open_nanogpt(folder: Path, config: RunConfig = CONFIG) -> Work:
    return open_work(Backend("nanogpt-cpu", "torch", "cpu", peer="nanogpt", source=str(folder)), config)


def changed(**fields: Any) -> RunConfig:
    """CONFIG with fields of whichever part has them."""
    parts = {part: getattr(CONFIG, part) for part in ("model", "optim", "train")}
    found = {
        part: dataclasses.replace(values, **{k: v for k, v in fields.items() if hasattr(values, k)})
        for part, values in parts.items()
    }
    return dataclasses.replace(CONFIG, **found)


def losses(work: Work, steps: int) -> list[float]:
    found = []
    for step, batches in Batcher(CONFIG).take(steps):
        work.step(batches, step, 1e-3)
        found.append(work.loss())
    return found


@pytest.mark.parametrize("bias", [True, False])
def test_it_does_our_steps_and_writes_our_text(tmp_path: Path, bias: bool) -> None:
    config = changed(bias=bias)
    theirs, ours = open_nanogpt(write_nanogpt(tmp_path), config), open_work(BACKENDS["cpu"], config)
    # A wrong decay or beta moves the last of them by more; at ten times the rate rounding alone grows to 2e-5.
    assert losses(theirs, 20) == pytest.approx(losses(ours, 20), abs=1e-5)
    texts = {measure_generation(work, config, lambda *_: None).greedy_sha256 for work in (theirs, ours)}
    assert len(texts) == 1
    assert "no clone, model.py's SHA-256" in theirs.description


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("/ q.shape[-1] ** 0.5", "/ q.shape[-1]", "does other work"),
        ("F.gelu(self.c_fc(x))", "F.relu(self.c_fc(x))", "does other work"),
        ("return logits, F.cross_entropy(", "return logits, float('nan') * F.cross_entropy(", "does other work"),
        ("import torch\n", "import torch\nraise RuntimeError('broken')\n", "RuntimeError: broken"),
        ("assert device_type", "assert not device_type", "AssertionError"),
        ('"wpe": nn.Embedding(c.block_size', '"wpe": nn.Embedding(1 + c.block_size', "size mismatch|RuntimeError"),
        ("self.ln_2, self.mlp =", "self.more = Norm(c.n_embd, c.bias)\n        self.ln_2, self.mlp =", "other weights"),
    ],
)
def test_another_model_is_refused_before_it_is_timed(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(Refused, match=message) as caught:
        open_nanogpt(write_nanogpt(tmp_path, (old, new)))
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_that_is_no_nanogpt_is_refused_unread(tmp_path: Path) -> None:
    good = write_nanogpt(tmp_path / "good")
    assert check_nanogpt("transformers, nanogpt", good, [CONFIG]) == str(good.resolve())
    assert check_nanogpt("transformers", None, [CONFIG]) == ""
    for peers, path, message in (
        ("nanogpt", None, "needs --nanogpt-path"),
        ("transformers", good, "is for --peers nanogpt"),
        ("nanogpt", tmp_path / "none", "cannot be read"),
        ("nanogpt", write_nanogpt(tmp_path / "a", ("class GPTConfig", "class Config")), "no class GPTConfig"),
        ("nanogpt", write_nanogpt(tmp_path / "b", ("configure_optimizers", "optimizers")), "no configure_optimizers"),
        ("nanogpt", write_nanogpt(tmp_path / "c", ("class GPTConfig:", "class GPTConfig")), "no Python"),
    ):
        with pytest.raises(UserError, match=message):
            check_nanogpt(peers, path, [CONFIG])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"positions": "rope"}, "positions is rope, and nanoGPT has only learned"),
        ({"feed_forward": "gelu_tanh"}, "feed_forward is gelu_tanh"),
        ({"norm_eps": 1e-6}, "norm_eps is 1e-06"),
        ({"tied_head": False}, "tied_head is False"),
        ({"dropout": 0.1, "dropout_rng": "shared"}, "dropout_rng is shared"),
        ({"optimizer": "muon"}, "optimizer is muon"),
        ({"dtype": "bfloat16"}, "dtype is bfloat16"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing is True"),
    ],
)
def test_what_it_cannot_be_is_named(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_nanogpt("nanogpt", write_nanogpt(tmp_path), [CONFIG, changed(**fields)])


@pytest.mark.parametrize("preset", ["llama-tiny", "deepseek-tiny", "custom-llm-tiny"])
def test_other_families_are_refused(tmp_path: Path, preset: str) -> None:
    with pytest.raises(UserError, match="nanoGPT has only"):
        check_nanogpt("nanogpt", write_nanogpt(tmp_path), [load_preset(preset)])


def test_its_commit_is_told(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    folder = write_nanogpt(tmp_path / "clone")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"]):
        subprocess.run(
            ["git", "-C", str(folder), *words], check=True, env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
        )
    commit = git_state(folder)
    assert commit is not None
    assert len(commit) == 12
    assert commit in open_nanogpt(folder).description
    write_nanogpt(folder, ("number of parameters: some", "number of parameters: more"))
    assert git_state(folder) == f"{commit}-dirty"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/run.py", "--backends", "cpu", "--peers", "nanogpt", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)


SMALL = (
    *("--no-parity", "--no-energy", "--rounds", "1", "--seconds", "0.05", "--cooldown", "0", "--threads", "1"),
    *("--n-layer", "1", "--n-head", "1", "--n-embd", "16", "--block-size", "8", "--batch-size", "2", "--dropout", "0"),
)


def test_the_command_sets_it_beside_ours(tmp_path: Path) -> None:
    done = run("--nanogpt-path", str(write_nanogpt(tmp_path / "clone")), *SMALL, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "cpu / nanogpt-cpu: " in done.stdout
    (path,) = [p for p in (tmp_path / "out").glob("*.json") if "parity" not in p.name]
    result = read_result(path)
    rows = {row.label: row for row in result.cases[0].rows}
    assert (rows["nanogpt-cpu"].peer, rows["nanogpt-cpu"].verified) == ("nanogpt", "losses")
    assert "nanoGPT: no clone" in rows["nanogpt-cpu"].notes[0]
    assert re.search(r"nanoGPT \(no clone.* 1 (passive )?thread\b", str(rows["nanogpt-cpu"].description))
    assert result.environment.variables["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("import torch\n", "import torch\nraise RuntimeError('broken')\n", "RuntimeError: broken"),
        ("logits = self.lm_head(", "logits = 2 * self.lm_head(", "does other work"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    done = run("--nanogpt-path", str(write_nanogpt(tmp_path / "clone", (old, new))), *SMALL, "--out", str(tmp_path))
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*.json"))


def test_threads_are_those_of_every_library(tmp_path: Path) -> None:
    found = worker_environment(tmp_path, 2)
    assert {found[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")} == {"2"}
    assert "OMP_NUM_THREADS" not in worker_environment(tmp_path)
    with pytest.raises(UserError, match="threads is 0"):
        Benchmark(threads=0)


def test_a_peer_has_a_row_and_its_folder() -> None:
    (_, row) = choose_backends("cpu", "nanogpt", "somewhere")
    assert (row.name, row.source) == ("nanogpt-cpu", "somewhere")
    assert choose_backends("cpu", "transformers", "somewhere")[1].source == ""


def test_a_peer_that_refuses_later_is_rejected() -> None:
    """The model of the session is larger than the one that was looked at first."""
    made_up = worker()

    def refusing(job: dict[str, Any], *arguments: Any, **options: Any) -> dict[str, Any]:
        if job["backend"]["peer"]:
            return {"event": "refused", "reason": "other work"}
        return made_up(job, *arguments, **options)

    result = make_result(make_session(refusing, backends="mps", settings=Settings(rounds=2, cooldown=0.0)))
    row = next(row for row in result.cases[0].rows if row.peer)
    assert (row.status, row.reason, row.summary) == ("rejected", "other work", None)


def test_ratios_to_peers_are_ours_over_theirs() -> None:
    result = make_result(backends="mps,mlx", settings=Settings(rounds=6, cooldown=0.0))
    (line,) = beside_peers(result.cases[0])  # mlx is another framework
    # 10.5 of 13.0 ms; processes differ by 1 %.
    assert line.startswith("mps / transformers-mps: 0.8")
    assert "95 % interval 0.7" in line or "95 % interval 0.8" in line


def test_a_peer_with_nothing_to_compare_is_not_verified() -> None:
    result = make_result(backends="mps", absent=("mps",), settings=Settings(rounds=1, cooldown=0.0))
    row = next(row for row in result.cases[0].rows if row.peer)
    assert (row.status, row.verified) == ("measured", "unverified")
