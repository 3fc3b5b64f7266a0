"""Runs that must end alike: stopped and resumed anywhere, watched more closely, seeded otherwise in one place."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt_common.data.batches import Batch
from gpt_common.training.log.runlog import read_metrics
from tests.gpt_common.data.corpora import prepare_characters
from tests.twins import TWINS, tensors, tiny, train

both = pytest.mark.parametrize("twin", TWINS)
STEPS = 8
LENGTH, VALIDATION = 600, 150
Row = dict[str, Any]

PLAIN = ("--n-layer", "1", "--n-embd", "16", "--block-size", "16", "--health-gates", "off", "--max-steps", str(STEPS))
EVERYTHING = (
    "--dropout", "0.2", "--grad-accum-steps", "2", "--optimizer", "muon", "--ema-decay", "0.8", "--schedule", "wsd",
    "--decay-fraction", "0.5", "--warmup-steps", "2", "--log-interval", "1", "--eval-interval", "2",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus in which no character stands twice, so that an id is a position: first training, then validation."""
    folder = tmp_path_factory.mktemp("positions")
    text = "".join(chr(0x4E00 + place) for place in range(LENGTH))
    prepare_characters(folder, text=text, val_fraction=VALIDATION / LENGTH, workers=1)
    return folder / "data"


def flags(data: Path, *more: str) -> list[str]:
    return tiny(data, "--dataset", "mine", *PLAIN, *more)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An undisturbed run of each twin, with everything that has a state, saved after every step."""
    folder = tmp_path_factory.mktemp("whole")
    saving = ("--checkpoint-interval", "1", "--keep-checkpoints", str(STEPS))
    for twin in TWINS:
        train(twin, *flags(data, *EVERYTHING, *saving), "--out", folder / twin)
    return {twin: folder / twin for twin in TWINS}


def learnt(run: Path, step: int = STEPS) -> dict[str, bytes]:
    """All that a checkpoint holds."""
    files = ("model.safetensors", "optimizer.safetensors")
    return {f"{file}: {name}": value.tobytes() for file in files for name, value in tensors(run, step, file).items()}


def told(run: Path) -> list[Row]:
    """Every step and evaluation of a log, without what a clock or an allocator says."""
    names = ("step", "loss", "lr", "grad_norm", "train_loss", "val_loss", "best")
    rows = [{name: row[name] for name in names if name in row} for row in read_metrics(run)]
    return [row for row in rows if "loss" in row or "val_loss" in row]


# ---- stopping and resuming ---------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("step", range(1, STEPS))
def test_resumed_after_any_step_a_run_ends_alike(twin: str, step: int, whole: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole[twin], run)
    train(twin, "--resume", run / "checkpoints" / f"step-{step:06d}")
    assert learnt(run) == learnt(whole[twin])
    assert told(run) == told(whole[twin])


@both
@pytest.mark.parametrize("stops", [(5,), (1, 2, 6)])
def test_a_run_stopped_here_and_there_is_part_of_the_whole_schedule(
    twin: str, stops: Sequence[int], whole: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """Until it stops as afterwards: what is still to come has its place in the schedule."""
    begin: list[str | Path] = [*flags(data, *EVERYTHING), "--out", tmp_path / "run"]
    for stop in stops:
        train(twin, *begin, "--stop-at", str(stop))
        assert told(tmp_path / "run") == [row for row in told(whole[twin]) if row["step"] <= stop]
        assert learnt(tmp_path / "run", stop) == learnt(whole[twin], stop)
        begin = ["--resume", tmp_path / "run"]
    train(twin, *begin)
    assert learnt(tmp_path / "run") == learnt(whole[twin])
    assert told(tmp_path / "run") == told(whole[twin])


@both
def test_a_shorter_run_is_another_one(twin: str, whole: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """Where --stop-at leaves the schedule alone, --max-steps makes it end there."""
    train(twin, *flags(data, *EVERYTHING, "--max-steps", "5"), "--out", tmp_path / "run")
    rates = [[row["lr"] for row in told(run) if "lr" in row][:5] for run in (tmp_path / "run", whole[twin])]
    assert rates[0][:2] == rates[1][:2]  # warm-up
    assert rates[0][4] < rates[1][4]
    assert learnt(tmp_path / "run", 5) != learnt(whole[twin], 5)


# ---- looking on --------------------------------------------------------------------------------------------------


@both
def test_watching_more_closely_changes_nothing_that_is_learnt(
    twin: str, whole: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """Evaluations of other batches, samples, log and checkpoints: none of them moves a random number or a weight."""
    closely = ("--eval-interval", "1", "--eval-batches", "5", "--sample-tokens", "3", "--sample-interval", "1")
    other = ("--log-interval", "3", "--checkpoint-interval", "3")
    train(twin, *flags(data, *EVERYTHING, *closely, *other), "--out", tmp_path / "run")
    assert learnt(tmp_path / "run") == learnt(whole[twin])


@both
def test_evaluated_again_a_model_that_stood_still_has_the_same_loss(twin: str, data: Path, tmp_path: Path) -> None:
    still = ("--learning-rate", "1e-30", "--min-lr", "1e-30", "--eval-interval", "1", "--dropout", "0.3")
    train(twin, *flags(data, *still), "--out", tmp_path / "run")
    found = [(row["train_loss"], row["val_loss"]) for row in told(tmp_path / "run") if "val_loss" in row]
    assert found == [found[0]] * (STEPS + 1)


# ---- seeds and splits --------------------------------------------------------------------------------------------


class Seen:
    """What a run reads, in order: ids of training batches, and of evaluated ones.

    Args:
        patch: watches the twin's step and probe while it lasts.
    """

    def __init__(self, twin: str, patch: pytest.MonkeyPatch) -> None:
        self.trained: list[bytes] = []
        self.evaluated: list[bytes] = []
        step, probe = import_module(f"{twin}.train").TrainStep, import_module(f"{twin}.probe").TrainingProbe
        take, losses = step.__call__, probe.losses

        def watched_step(this: Any, batches: Sequence[Batch[Any]], number: int, rate: float) -> Any:
            self.trained += [ids(batch) for batch in batches]
            return take(this, batches, number, rate)

        def watched_losses(this: Any, batches: Iterable[Batch[Any]]) -> Any:
            asked = list(batches)
            self.evaluated += [ids(batch) for batch in asked]
            return losses(this, asked)

        patch.setattr(step, "__call__", watched_step)
        patch.setattr(probe, "losses", watched_losses)


def ids(batch: Batch[Any]) -> bytes:
    """The ids of a batch, labels last."""
    return np.concatenate([batch.tokens.ravel(), batch.labels.ravel()]).astype(np.int32).tobytes()


def span(batches: Sequence[bytes]) -> tuple[int, int]:
    """The first and the last position that they are of."""
    found = np.frombuffer(b"".join(batches), np.int32)
    return int(found.min()), int(found.max())


@both
def test_every_id_that_a_run_reads_is_of_the_split_that_it_says(
    twin: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training text for steps and for its own loss, validation text for the others: told by position."""
    seen, cut = Seen(twin, monkeypatch), LENGTH - VALIDATION
    much = ("--batch-size", "16", "--eval-interval", "4", "--eval-batches", "3", "--eval-full")
    train(twin, *flags(data, *much), "--out", tmp_path / "run")
    first, last = span(seen.trained)
    assert 0 <= first < 40  # 128 windows reach both ends of 450 positions
    assert cut - 40 < last < cut
    evaluations, whole_split = seen.evaluated[:18], seen.evaluated[18:]
    for at in range(0, 18, 6):
        assert span(evaluations[at : at + 3]) == (0, cut - 1)
        assert span(evaluations[at + 3 : at + 6]) == (cut, LENGTH - 1)
    assert span(whole_split) == (cut, LENGTH - 1)


@both
def test_another_seed_draws_other_batches_and_evaluates_the_same_text(
    twin: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one model: with the weights given and without dropout, only the order of text is left to draw."""
    seen, found = [], []
    train(twin, *flags(data, "--max-steps", "1"), "--out", tmp_path / "base")
    for name, seed in (("one", "1"), ("again", "1"), ("other", "2")):
        with monkeypatch.context() as patch:
            seen.append(Seen(twin, patch))
            more = ("--init-from", str(tmp_path / "base"), "--seed", seed)
            train(twin, *flags(data, *more, "--max-steps", "2"), "--out", tmp_path / name)
        found.append(told(tmp_path / name))
    one, again, other = seen
    assert one.evaluated == again.evaluated == other.evaluated
    assert found[0][0] == found[1][0] == found[2][0]  # the evaluation before the first step, to the bit
    assert one.trained == again.trained
    assert not set(one.trained) & set(other.trained)
    assert found[0] == found[1] != found[2]
