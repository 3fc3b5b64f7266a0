"""LoRA of ours beside peft's and mlx-lm's: equal work or no figure. Nothing here is timed."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("peft")
pytest.importorskip("mlx_lm")

# isort: split
from benchmarks.studies import adapters, turns
from benchmarks.studies.adapter_peers import peft, work_as_mlx_lm, write_for_peers
from benchmarks.studies.adapters import (
    LARGEST_DIFFERENCE,
    PACKED,
    STEPS,
    AdaptersStudy,
    answer_tokens,
    chosen_sides,
    compare,
    last_answers,
    main,
    ours,
    row,
    the_work,
)
from gpt_common.data.batches import Examples
from gpt_common.data.conversations.preparing import prepare_conversations
from gpt_common.errors import UserError, WorkFailed

# peft 0.21 asks transformers 5 by a name that is to go.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
SHAPE = """
[model]
n_layer = 2
n_head = 2
n_kv_head = 1
n_embd = 16
attention = "grouped_query"
norm = "rmsnorm"
positions = "rope"
feed_forward = "swiglu"
"""
ROUNDING = 1e-5
"""Nats per token in 30 steps of float32; the mutants below are off by 1e-3 and more."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shape, conversations of two turns and different lengths, and base and adapter for the peers."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "small.toml").write_text(SHAPE)
    choose = np.random.default_rng(1)
    words = lambda: " ".join(choose.choice(["ant", "bee", "cat", "dog"], choose.integers(1, 5)))  # noqa: E731
    roles = ("user", "assistant", "user", "assistant")
    talks = [{"messages": [{"role": role, "content": words()} for role in roles]} for _ in range(60)]
    (folder / "talk.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    prepare_conversations(
        [folder / "talk.jsonl"], "talk", folder / "data", "char", on_progress=lambda *_: None, say=lambda _: None
    )
    write_for_peers(folder, the_work(asked(folder))[0], ["peft", "mlx-lm"])
    return folder


def asked(place: Path, **fields: Any) -> AdaptersStudy:
    return AdaptersStudy(
        config=place / "small.toml", dataset="talk", data_dir=place / "data", batch_size=3, rank=4, **fields
    )


def losses_of_peft(place: Path) -> list[float]:
    config, batches = the_work(asked(place))
    step = peft(place, config)
    return [step(batch) for batch in batches]


def losses_of_mlx_lm(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[float]:
    trainer: Any = import_module("mlx_lm.tuner.trainer")
    monkeypatch.setattr(trainer, "TrainUI", trainer.TrainUI)  # put back when the test ends
    monkeypatch.setattr(sys, "stdin", io.StringIO("0.001\n"))
    work_as_mlx_lm(place, *the_work(asked(place)))
    proof, seconds = capsys.readouterr().out.splitlines()
    assert float(seconds) > 0
    found: list[float] = json.loads(proof)
    return found


@pytest.fixture(scope="module")
def of_torch(place: Path) -> list[float]:
    config, batches = the_work(asked(place))
    step = ours("torch", config)
    return [step(batch) for batch in batches]


def test_peft_does_the_same_and_another_scale_is_seen(place: Path, of_torch: list[float]) -> None:
    assert len(of_torch) == STEPS
    assert np.mean(of_torch[-5:]) < np.mean(of_torch[:5]) - 0.04
    assert compare({"torch": of_torch, "peft": losses_of_peft(place)}, "peft") < ROUNDING
    path = place / "peft-adapter" / "adapter_config.json"
    kept = path.read_text()
    path.write_text(json.dumps({**json.loads(kept), "lora_alpha": 17}))
    try:
        with pytest.raises(WorkFailed, match=r"peft does other work than torch: at step .*no figure"):
            compare({"torch": of_torch, "peft": losses_of_peft(place)}, "peft")
    finally:
        path.write_text(kept)


def test_mlx_lm_does_the_same_and_a_counted_pad_is_seen(
    place: Path, of_torch: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlx.core as mx

    trainer: Any = import_module("mlx_lm.tuner.trainer")
    config, batches = the_work(asked(place))
    step = ours("mlx", config)
    proofs = {"torch": of_torch, "mlx": [step(batch) for batch in batches]}
    assert compare(proofs, "mlx") < ROUNDING
    assert compare(proofs | {"mlx-lm": losses_of_mlx_lm(place, monkeypatch, capsys)}, "mlx-lm") < ROUNDING
    # As its own batches have it: the length, and not the last place that counts.
    right = trainer.default_loss
    monkeypatch.setattr(trainer.train, "__defaults__", tuple(
        (lambda model, batch, lengths: right(model, batch, lengths + mx.array([[0, 1]]))) if one is right else one
        for one in trainer.train.__defaults__ or ()
    ))  # fmt: skip
    with pytest.raises(WorkFailed, match="mlx-lm does other work than torch"):
        compare(proofs | {"mlx-lm": losses_of_mlx_lm(place, monkeypatch, capsys)}, "mlx-lm")


def test_the_command_shows_equal_work_and_takes_turns(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURNS", 1)
    flags = f"--sides mlx,mlx-lm --config {place}/small.toml --dataset talk --data-dir {place}/data --batch-size 3"
    path = tmp_path / "figures.json"
    main([*flags.split(), "--packed", "--rounds", "1", "--seconds", "0.01", "--json", str(path)])
    found = json.loads(path.read_text())
    assert set(found["seconds"]) == {"mlx", "mlx-lm", f"mlx{PACKED}"}
    assert 0 < found["apart"]["mlx-lm"] <= LARGEST_DIFFERENCE
    assert set(found["ratios"]) == {"mlx / mlx-lm"}
    assert found["ratios"]["mlx / mlx-lm"]["ratios"] == [found["seconds"]["mlx-lm"][0] / found["seconds"]["mlx"][0]]
    assert found["answer_tokens"][f"mlx{PACKED}"] > found["answer_tokens"]["mlx"] == found["answer_tokens"]["mlx-lm"]
    said = capfd.readouterr().out
    assert "answer tokens/s, 30 losses within" in said
    assert "at least 1.3" in said
    assert "train_loss" not in said


def test_of_every_example_the_last_answer_counts() -> None:
    counted = np.array([0, 1, 1, 0, 1, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0], np.uint8)
    given = Examples(np.arange(15), counted, np.array([6, 8, 15]))
    assert last_answers(given).counted.tolist() == [0, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 1, 0]


def test_rows_are_as_long_as_the_longest_and_packing_changes_no_answer(place: Path) -> None:
    config, batches = the_work(asked(place))
    assert {batch.tokens.shape for batch in batches} == {(3, config.model.block_size)}
    packed = the_work(asked(place), packing=True)[1]
    assert packed[0].tokens.shape == batches[0].tokens.shape
    assert answer_tokens(packed) > answer_tokens(batches) > 3
    for batch in batches:
        assert batch.weights is not None
        assert (np.diff(batch.weights, axis=1, prepend=0) == 1).sum(axis=1).tolist() == [1, 1, 1], "one answer a row"


def test_a_line_of_the_table() -> None:
    found = {"ratios": [1.2, 1.4], "median": 1.3, "interval": None}
    assert "at least 1.3: met" in row("mlx", "mlx-lm", found)
    assert "at least 1.0: not met" in row("torch", "peft", {**found, "median": 0.99})


def test_mistakes_are_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen_sides(AdaptersStudy(packed=True)) == ["torch", "peft", "mlx", "mlx-lm", "torch-packed", "mlx-packed"]
    for command, message in (
        (AdaptersStudy(sides="torch,petf"), "did you mean 'peft'"),
        (AdaptersStudy(sides="torch,mlx"), "name torch and peft"),
        (AdaptersStudy(sides="peft,mlx-lm"), "name torch and peft"),
    ):
        with pytest.raises(UserError, match=message):
            chosen_sides(command)
    monkeypatch.setattr(adapters, "find_spec", lambda package: None if package == "mlx_lm" else package)
    with pytest.raises(UserError, match=r"mlx-lm needs the package mlx_lm: pip install -e '.\[dev\]'"):
        chosen_sides(AdaptersStudy())
    with pytest.raises(UserError, match="batch-size is 0"):
        AdaptersStudy(batch_size=0)
    experts = 'feed_forward = "moe"\nn_expert = 4\nexperts_per_token = 2\nexpert_width = 8\n'
    (place / "experts.toml").write_text(f"[model]\n{experts}")
    with pytest.raises(UserError, match="experts are adapted in another way"):
        the_work(dataclasses.replace(asked(place), config=place / "experts.toml"))
