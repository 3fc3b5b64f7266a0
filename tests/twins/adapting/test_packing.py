"""Examples that share a row are learnt as if each stood alone: attention, positions, loss and gradient."""

from __future__ import annotations

import dataclasses
import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from gpt_common.config import ModelConfig
from gpt_common.data.batches import Examples, NumpyBatch, Rows, estimated_on, training_batch
from gpt_common.data.conversations.preparing import prepare_conversations
from tests.twins import TWINS, tiny, train
from tests.twins.steps import FAMILIES, GPT2, LLAMA, SIZE, T, Trained, V, apart

LEARNED_AND_ROTARY = ModelConfig(**SIZE, positions="both")
FLOAT32 = 2e-6
"""Sums of some hundred float32 terms in another order; each mutant below is off by 1e-3 or more."""
families = pytest.mark.parametrize("family", [*FAMILIES, "both positions"])
both = pytest.mark.parametrize("twin", TWINS)


def family_of(name: str) -> ModelConfig:
    return FAMILIES.get(name, LEARNED_AND_ROTARY)


def examples(seed: int = 0, count: int = 9) -> Examples:
    """Of 3 to 7 tokens, of which those behind the first two count or not by chance, and the last does."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(3, 8, count)
    counted = [np.r_[0, draw.random(n - 2) < 0.5, 1] for n in lengths]
    tokens = draw.integers(0, V, lengths.sum()).astype(np.uint16)
    return Examples(tokens, np.concatenate(counted).astype(np.uint8), np.cumsum(lengths))


def packed_and_alone() -> tuple[list[NumpyBatch], list[NumpyBatch]]:
    """One step each: the same examples in shared rows, in two micro-batches, and one to a row, in three."""
    given = examples()
    packed, alone = Rows(given, T, packing=True), Rows(given, T, packing=False)
    assert len(packed) < len(alone) == 9
    half = len(packed) // 2
    rows = [list(range(half)), list(range(half, len(packed)))]
    return [packed.batch(part) for part in rows], [alone.batch(list(range(i, i + 3))) for i in (0, 3, 6)]


def test_an_estimate_is_on_what_counts() -> None:
    rows = Rows(examples(), T, packing=True)
    assert estimated_on(rows, block_size=T, batch_size=2, batches=99) == examples().counted.sum()
    assert estimated_on(np.arange(99), block_size=T, batch_size=2, batches=3) == 6 * T
    assert estimated_on(np.arange(99), block_size=T, batch_size=2, batches=99) == 99


@both
@families
def test_packed_rows_teach_what_single_examples_teach(twin: str, family: str) -> None:
    packed, alone = packed_and_alone()
    model = family_of(family)
    if model.feed_forward == "moe":  # what fills a row is routed too: its load is another, loss and gradient are not
        model = dataclasses.replace(model, balancing="none")
    loss, gradient = Trained(twin, model).gradients(*packed)
    expected, wanted = Trained(twin, model).gradients(*alone)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert apart(wanted, gradient) < FLOAT32


@both
def test_under_shared_dropout_and_with_checkpoints_too(twin: str) -> None:
    """The mask of the path that drops is another one; a rate too small to drop anything shows it."""
    packed, alone = packed_and_alone()
    dropping = dataclasses.replace(GPT2, dropout=1e-9, dropout_rng="shared")
    expected = Trained(twin, GPT2).gradients(*alone)[0]
    assert Trained(twin, dropping).gradients(*packed)[0] == pytest.approx(expected, rel=1e-6)
    trained = Trained(twin, GPT2)
    trained.model.gradient_checkpointing = True
    assert trained.gradients(*packed)[0] == pytest.approx(expected, rel=1e-6)


@families
def test_the_twins_agree_on_packed_rows(family: str) -> None:
    packed, _ = packed_and_alone()
    (one, mine), (other, theirs) = (Trained(twin, family_of(family)).gradients(*packed) for twin in TWINS)
    assert one == pytest.approx(other, rel=1e-6)
    assert apart(mine, theirs) < 5 * FLOAT32


@both
@pytest.mark.parametrize("position", [2, 5])
def test_no_example_feels_its_neighbour(twin: str, position: int) -> None:
    """Another token in one example changes the loss there, and not one bit of the loss of all others."""
    packed, _ = packed_and_alone()
    batch = packed[0]
    assert batch.weights is not None
    assert batch.starts is not None
    mine = batch.starts[0] == batch.starts[0, position]
    others = batch.weights.copy()
    others[0, mine] = 0
    tokens = batch.tokens.copy()
    tokens[0, position] = (tokens[0, position] + 1) % V
    probe = Trained(twin, LLAMA).probe
    with_others = dataclasses.replace(batch, weights=others)
    assert probe.loss(with_others) == probe.loss(dataclasses.replace(with_others, tokens=tokens))
    assert probe.loss(batch) != probe.loss(dataclasses.replace(batch, tokens=tokens))


@both
@pytest.mark.parametrize("family", ["gpt2", "both positions"])
def test_what_is_wrong_with_packing_is_seen(twin: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours that see each other, positions that go on, padding that counts, a mean of means, a boundary off."""
    packed, alone = packed_and_alone()
    model = family_of(family)
    expected = Trained(twin, model).gradients(*alone)[0]

    def seen() -> bool:
        return abs(Trained(twin, model).gradients(*packed)[0] - expected) > 1e-3

    assert not seen()
    module = import_module(f"{twin}.model")
    with monkeypatch.context() as patch:
        right = module.within_examples
        patch.setattr(module, "within_examples", lambda starts: right(0 * starts))
        assert seen(), "a neighbour is seen"
    with monkeypatch.context() as patch:
        right_positions = module.restarted
        patch.setattr(module, "restarted", lambda starts: right_positions(0 * starts))
        assert seen(), "positions go on"
    for wrong in ("padding", "boundary"):
        for i, batch in enumerate(packed):
            assert batch.weights is not None
            assert batch.starts is not None
            if wrong == "padding":
                last = batch.starts == batch.starts[:, -1:]
                weights = np.where(last & (batch.weights[:, -1:] == 0), np.float32(1), batch.weights)
            else:
                weights = np.roll(batch.weights, -1, axis=1)
            packed[i] = dataclasses.replace(batch, weights=weights)
        assert seen(), wrong
        packed = packed_and_alone()[0]
    with monkeypatch.context() as patch:
        train = import_module(f"{twin}.train")
        patch.setattr(train, "positions", lambda _: 1.0)
        assert seen(), "a mean of means"


@both
@families
def test_one_to_a_row_needs_no_mask_and_does_not_feel_what_fills_it(twin: str, family: str) -> None:
    """Rows that say where their example begins give the same; other ids behind it change not one bit."""
    _, alone = packed_and_alone()
    model = family_of(family)
    if model.feed_forward == "moe":  # what fills a row is routed too
        model = dataclasses.replace(model, balancing="none")
    probe = Trained(twin, model).probe
    for batch in alone:
        assert batch.starts is None
        assert batch.weights is not None
        behind = np.cumsum(batch.weights[:, ::-1], axis=1)[:, ::-1] == 0
        told = np.where(behind, np.int32(T), np.int32(0)).astype(np.int32)
        told[behind] = np.repeat((~behind).sum(axis=1), behind.sum(axis=1))
        other = np.where(behind, (batch.tokens + 1) % V, batch.tokens).astype(np.int32)
        assert behind.any()
        assert probe.loss(batch) == pytest.approx(probe.loss(dataclasses.replace(batch, starts=told)), rel=1e-6)
        assert probe.loss(batch) == probe.loss(dataclasses.replace(batch, tokens=other))


@both
def test_a_run_of_one_example_to_a_row_passes_its_gates(
    twin: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    talk = tmp_path / "talk.jsonl"
    talk.write_text(
        "".join(json.dumps({"prompt": "who", "completion": f"{a * n} cat"}) + "\n" for n, a in enumerate("abcdefgh"))
    )
    prepare_conversations([talk], "talk", tmp_path / "data", "char", on_progress=lambda *_: None)
    given = ["--dataset", "talk", "--block-size", "48", "--no-packing", "--health-gates", "full", "--max-steps", "2"]
    train(twin, *tiny(tmp_path / "data", *given), "--out", tmp_path / "run")
    said = " ".join(capfd.readouterr().out.split())
    assert "one example to a row" in said
    assert "the training batches are of the training split" in said


def test_every_row_comes_once_before_any_comes_again() -> None:
    """Whatever the step, micro-step and rank; and the order depends on nothing but these and the seed."""
    rows = Rows(examples(count=40), T, packing=True)

    def drawn(seed: int, step: int, micro_step: int, rank: int) -> NumpyBatch:
        sizes = {"block_size": T, "batch_size": 1, "micro_steps": 2, "ranks": 2}
        return training_batch(rows, seed=seed, step=step, micro_step=micro_step, rank=rank, **sizes)

    def turn(seed: int, first: int) -> list[bytes]:
        numbers = range(first, first + len(rows))
        return [drawn(seed, n // 4, n // 2 % 2, n % 2).tokens.tobytes() for n in numbers]

    assert sorted(turn(1, 0)) == sorted(rows.batch([i]).tokens.tobytes() for i in range(len(rows)))
    assert sorted(turn(1, len(rows))) == sorted(turn(1, 0))
    assert turn(1, len(rows)) != turn(1, 0) == turn(1, 0) != turn(2, 0)
