"""Short windows in the first steps: as many tokens, the same in both twins, resumed to the bit, gates at the whole."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.config import ModelConfig, RunConfig, TrainConfig, from_dict
from gpt_common.data.batches import Batch, NumpyBatch, training_batch
from gpt_common.errors import UserError
from tests.twins import TWINS, fails, losses, tensors, tiny, train

both = pytest.mark.parametrize("twin", TWINS)
SHORT = ("--short-context", "8", "--short-context-steps", "6", "--max-steps", "12", "--log-interval", "1")
FLAGS = (*SHORT, "--checkpoint-interval", "4", "--eval-interval", "6", "--learning-rate", "1e-3")


@pytest.fixture(scope="module")
def runs(stories_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("short")
    for twin in TWINS:
        train(twin, *tiny(stories_dir, *FLAGS), "--out", folder / twin)
    return {twin: folder / twin for twin in TWINS}


def test_a_batch_has_as_many_tokens() -> None:
    config = RunConfig(
        model=ModelConfig(block_size=64), train=TrainConfig(batch_size=12, short_context=16, short_context_steps=3)
    )
    assert [config.windows(step) for step in (0, 2, 3, 1000)] == [(48, 16), (48, 16), (12, 64), (12, 64)]
    assert RunConfig().windows(0) == (12, 256)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="short_context 24 does not divide block_size 64"):
        RunConfig(model=ModelConfig(block_size=64), train=TrainConfig(short_context=24))
    with pytest.raises(UserError, match="add --short-context"):
        TrainConfig(short_context_steps=3)
    with pytest.raises(UserError, match="must not be negative"):
        TrainConfig(short_context=-1)
    with pytest.raises(UserError, match=r"^my\.toml: short_context 48"):
        from_dict({"model": {"block_size": 64}, "train": {"short_context": 48}}, where="my.toml")


@both
def test_each_step_gets_windows_of_its_length(
    twin: str, stories_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: dict[int, tuple[int, ...]] = {}
    step = import_module(f"{twin}.train").TrainStep
    original = step.__call__

    def watched(self: Any, batches: Any, number: int, rate: float) -> Any:
        shapes[number] = batches[0].tokens.shape
        return original(self, batches, number, rate)

    monkeypatch.setattr(step, "__call__", watched)
    train(twin, *tiny(stories_dir, *FLAGS), "--out", tmp_path / "run")
    rows, whole = shapes[11]
    assert whole > 8
    assert shapes == {n: (rows * whole // 8, 8) if n < 6 else (rows, whole) for n in range(12)}


def test_the_twins_stay_together(runs: dict[str, Path]) -> None:
    mlx, torch = losses(runs["mlx_gpt"]), losses(runs["torch_gpt"])
    assert list(mlx) == list(torch) == list(range(1, 13))
    assert max(abs(mlx[step] - torch[step]) for step in mlx) < 1e-5  # as the ladder's L7


@both
def test_resumed_among_the_short_and_among_the_long(
    twin: str, runs: dict[str, Path], tmp_path: Path, stories_dir: Path
) -> None:
    for stop in (4, 8):
        run = tmp_path / str(stop)
        train(twin, *tiny(stories_dir, *FLAGS), "--stop-at", str(stop), "--out", run)
        train(twin, "--resume", run)
        whole, parts = tensors(runs[twin], 12), tensors(run, 12)
        assert all(whole[name].tobytes() == parts[name].tobytes() for name in whole)


@both
def test_gates_ask_at_the_whole_length(
    twin: str,
    stories_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A model that sees the future from position 8 on would pass at the length of the first batches."""
    model = import_module(f"{twin}.model").GPT
    name = "__call__" if twin == "mlx_gpt" else "forward"
    original = getattr(model, name)

    def peeking(self: Any, tokens_BT: Any, *args: Any, **kwargs: Any) -> Any:
        logits = original(self, tokens_BT, *args, **kwargs)
        T = tokens_BT.shape[1]
        if T <= 8:
            return logits
        embedded = self.token_embedding(tokens_BT, self.compute_dtype)[..., -1:, :].sum()
        late = import_module("mlx.core" if twin == "mlx_gpt" else "torch").arange(T)[None, :, None] >= 8
        return logits + embedded * late

    monkeypatch.setattr(model, name, peeking)
    told = fails(capsys, twin, *tiny(stories_dir, *FLAGS), "--health-gates", "quick", "--out", tmp_path / "run", code=1)
    assert "causality" in told


@both
def test_utilisation_counts_the_attention_that_is_done(
    twin: str, stories_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(_: ModelConfig, block_size: int, adapter: AdapterConfig) -> float:
        assert not adapter.adapts
        asked.append(block_size)
        return float(block_size)

    monkeypatch.setattr("gpt_common.training.run.flops_per_token_palm", counted)
    train(twin, *tiny(stories_dir, *FLAGS), "--out", tmp_path / "run")
    assert asked[:6] == [8] * 6
    assert set(asked[6:]) == {asked[-1]} != {8}


@both
def test_short_windows_that_no_text_holds_are_caught(
    twin: str,
    stories_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The gates on data look at what the first steps are given, and not at the longer windows of a later one."""

    def wrong(*split: Any, block_size: int, **more: Any) -> NumpyBatch:
        batch = training_batch(*split, block_size=block_size, **more)
        if block_size > 8:
            return batch
        return Batch(batch.tokens[:, ::-1].copy(), batch.labels)

    monkeypatch.setattr("gpt_common.training.run.training_batch", wrong)
    flags = ("--health-gates", "quick", "--out", tmp_path / "run")
    assert "nowhere in the data" in fails(capsys, twin, *tiny(stories_dir, *FLAGS), *flags, code=1)
