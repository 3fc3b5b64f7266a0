"""`--follow`: a run on a preparation that still runs is bit for bit the run on what it becomes, in both twins."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="extra hub")

# isort: split
from gpt_common.data import batches
from gpt_common.data.corpora import following as data_following
from gpt_common.data.corpora.following import Preparation
from gpt_common.data.corpora.work import Work
from gpt_common.errors import Stopped, UserError
from gpt_common.training import following
from gpt_common.training.checkpoint import find_checkpoint, read_manifest
from tests.gpt_common.data.corpora import prepare_characters
from tests.gpt_common.data.larger.hub import (
    FIRST,
    ONE,
    SECOND,
    Killed,
    Texts,
    one_more_shard,
    opened,
    parquet,
    prepared,
    three_files,
)
from tests.twins import TWINS, fails, losses, tensors, tiny, train

STEPS = 100
"""Of 32 tokens: all of the stream, which has about 3 500, but the last."""
FLAGS = ["--dataset", "mine", "--follow", "--block-size", "8", "--max-steps", str(STEPS), "--log-interval", "1"]
FLAGS += ["--eval-interval", "40", "--checkpoint-interval", "0", "--learning-rate", "1e-3"]
both = pytest.mark.parametrize("twin", TWINS)


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Texts]:
    """The server; pools of 16 windows, and looks at the preparation all the time."""
    monkeypatch.setattr(batches, "POOL_TOKENS", 128)
    monkeypatch.setattr(following, "POLL_SECONDS", 0.005)
    monkeypatch.setattr(following, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(data_following, "POLL_SECONDS", 0.005)
    monkeypatch.setattr(data_following, "GRACE_SECONDS", 0.0)
    with three_files(tmp_path, monkeypatch) as hub:
        yield hub


def flags(*more: str) -> list[str]:
    return tiny(Path("data"), *FLAGS, *more)


def whole(twin: str, *more: str) -> Path:
    """The run on the finished dataset, which is taken away again."""
    prepared()
    train(twin, *flags(*more), "--out", "whole")
    shutil.rmtree("data")
    return Path("whole")


def same(run: Path, other: Path) -> None:
    for file in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = tensors(run, STEPS, file), tensors(other, STEPS, file)
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()] == []
    assert losses(run).items() <= losses(other).items()
    one, two = (read_manifest(find_checkpoint(each, prefer="latest")) for each in (run, other))
    assert (one.dataset, one.tokens, one.prompt) == (two.dataset, two.tokens, two.prompt)
    assert (one.best_step, one.best_val_loss) == (two.best_step, two.best_val_loss)


@both
def test_killed_again_and_again_and_resumed_it_is_the_same_run(twin: str) -> None:
    other = whole(twin)
    one_more_shard()
    argv: list[str | Path] = [*flags(), "--out", "run"]
    ends: list[str] = []
    while True:
        try:
            train(twin, *argv)
            break
        except UserError as error:
            ends.append(str(error))
        if Path("run").exists():
            argv = ["--resume", "run"]
        one_more_shard()
    for line in ends:
        command = "python -m gpt_common.data prepare --hub someone/texts --name mine"
        assert line.startswith(f"nobody prepares 'mine' any more: go on with `{command}")
        assert line.endswith(f"; then `python -m {twin}.train --resume run` goes on")
        assert "\n" not in line
    assert len(ends) > 3
    same(Path("run"), other)


class Slowly:
    """A preparation beside the run, which makes its next shard when the run has waited for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may, self.let = threading.Semaphore(1), 1
        keep = Work.keep

        def kept(work: Work, record: Any) -> None:
            self.may.acquire()
            keep(work, record)

        def waited(seconds: float) -> None:
            if len(list(Path("data/mine.tmp-hub").glob("shard-*.json"))) == self.let:
                self.let += 1
                self.may.release()
            time.sleep(seconds)

        monkeypatch.setattr(Work, "keep", kept)
        monkeypatch.setattr(following, "sleep", waited)
        self.thread = threading.Thread(target=prepared, daemon=True)
        self.thread.start()
        while not Path("data/mine.tmp-hub/shard-00000.json").exists():
            time.sleep(0.01)

    def end(self) -> None:
        for _ in range(20):
            self.may.release()
        self.thread.join(60)
        assert not self.thread.is_alive()


@both
def test_beside_a_preparation_it_waits_and_goes_on(
    twin: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = twin == "torch_gpt"  # one drawing is enough
    more = ("--health-gates", "quick", "--short-context", "4", "--short-context-steps", "6", *["--report"] * report)
    other = whole(twin, *more)
    beside = Slowly(monkeypatch)
    capsys.readouterr()
    train(twin, *flags(*more), "--out", "run")
    beside.end()
    told = capsys.readouterr().out
    # Some eight shards; a wait lets one come, or two.
    assert told.count("waits for tokens of 'mine'") == told.count("goes on after") > 2
    assert "data: mine, followed: " in told
    assert " so far" in told
    assert "health: the training batches are of the training split" in told
    assert Path("run/report.html").exists() == report
    same(Path("run"), other)
    assert not list(Path("run/checkpoints").glob("*.tmp-*"))


@both
def test_ctrl_c_while_it_waits_saves_and_ends(
    twin: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = whole(twin)
    beside = Slowly(monkeypatch)
    monkeypatch.setattr(following, "sleep", lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Stopped):
        train(twin, *flags(), "--out", "run")
    beside.end()
    step = read_manifest(find_checkpoint(Path("run"), prefer="latest")).step
    assert 0 < step < STEPS
    assert "train --resume run" in capsys.readouterr().out
    train(twin, "--resume", "run")
    same(Path("run"), other)


def test_it_saves_before_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in the middle of the waiting costs nothing."""
    beside = Slowly(monkeypatch)

    def killed(_: float) -> None:
        raise Killed

    monkeypatch.setattr(following, "sleep", killed)
    with pytest.raises(Killed):
        train("torch_gpt", *flags(), "--out", "run")
    beside.end()
    logged = max(losses(Path("run")))
    assert read_manifest(find_checkpoint(Path("run"), prefer="latest")).step == logged


@both
def test_a_stream_that_is_too_short_begins_again(twin: str, capsys: pytest.CaptureFixture[str]) -> None:
    prepared()
    train(twin, *flags("--max-steps", "130"), "--out", "run")
    told = capsys.readouterr().out
    assert "'mine' ends after 3," in told
    assert "on they come again, in another order" in told


def test_validation_that_is_trained_on_stops_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared()
    read = Preparation.read

    def without_offset(self: Preparation, start: int, stop: int) -> Any:
        return read(self, start - len(self.validation), stop - len(self.validation))

    monkeypatch.setattr(Preparation, "read", without_offset)
    error = fails(capsys, "torch_gpt", *flags("--health-gates", "quick"), "--out", "run", code=1)
    assert "does not begin behind the validation text" in error


def test_the_gates_wait_for_the_second_step_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Which begins a pool that is not whole yet."""
    one_more_shard()
    steps = (len(opened()[1].stream) - 1) // 128 * 4
    train("torch_gpt", *flags("--stop-at", str(steps - 1)), "--out", "run")
    assert "nobody prepares 'mine' any more" in fails(capsys, "torch_gpt", "--resume", "run")
    one_more_shard()
    train("torch_gpt", "--resume", "run", "--stop-at", str(steps + 1))


def another(**options: Any) -> Callable[[], None]:
    def prepare() -> None:
        shutil.rmtree("data")
        prepared(**options)

    return prepare


REFUSED: dict[str, tuple[Callable[[], Any], tuple[str, ...], str]] = {
    "another commit": (another(revision=SECOND), (), f"is prepared as 'mine' has commit {SECOND}, and was {FIRST}"),
    "another column": (another(column="other"), (), "what is prepared as 'mine' has column other, and was text"),
    "another size": (another(max_tokens=3000), (), "has max tokens 3000, and was None"),
    "another batch size": (lambda: None, ("--batch-size", "5"), "cannot resume with another train batch_size"),
    "another seed": (lambda: None, ("--seed", "5"), "cannot resume with another train seed"),
    "no following": (lambda: None, ("--no-follow",), "cannot resume with another data follow"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_refused_on_resume(fault: str, hub: Texts, capsys: pytest.CaptureFixture[str]) -> None:
    change, more, words = REFUSED[fault]
    prepared()
    train("torch_gpt", *flags("--stop-at", "2"), "--out", "run")
    if fault == "another column":
        hub.files = {"train.parquet": parquet(ONE, column="other")}
    change()
    error = fails(capsys, "torch_gpt", "--resume", "run", *more)
    assert words in error


def test_what_was_prepared_in_another_way_is_not_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_characters(tmp_path)
    assert "leave out --follow" in fails(capsys, "torch_gpt", *flags(), "--out", "run")
    assert not Path("run").exists()


@both
def test_fine_tuning_on_what_was_followed_says_what_was_seen(twin: str, capsys: pytest.CaptureFixture[str]) -> None:
    prepared()
    train(twin, *flags("--max-steps", "3"), "--out", "base")
    for more in (("--no-follow",), ("--follow",)):
        capsys.readouterr()
        train(twin, *flags("--max-steps", "2", *more), "--init-from", "base", "--out", f"tuned{more[0]}")
        seen = "the base was trained on text of 'mine' that is for validation now"
        assert (seen in capsys.readouterr().out) == (more == ("--no-follow",))


def test_a_stream_that_has_no_window_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    prepared()
    error = fails(capsys, "torch_gpt", *flags("--block-size", "512"), "--out", "run")
    assert "block_size 512 needs 513 tokens in each split" in error


def test_a_fault_in_the_middle_saves_and_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared()
    there, asked = batches.Windows.there, list[range]()

    def fault(self: batches.Windows, numbers: range) -> bool:
        asked.append(numbers)
        if len(asked) > 20:
            raise UserError("the disk is gone")
        return there(self, numbers)

    with monkeypatch.context() as patch:
        patch.setattr(batches.Windows, "there", fault)
        error = fails(capsys, "torch_gpt", *flags(), "--out", "run")
    assert "the disk is gone; then `python -m torch_gpt.train --resume run` goes on" in error
    assert read_manifest(find_checkpoint(Path("run"), prefer="latest")).step == max(losses(Path("run"))) > 10
    train("torch_gpt", "--resume", "run")
