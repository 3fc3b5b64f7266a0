"""Trackers get every number once, and none of them ever costs a run."""

from __future__ import annotations

import io
import math
import struct
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gpt_common.errors import UserError
from gpt_common.training.log.runlog import RunLog, read_metrics
from tests.gpt_common.training.log.test_runlog import open_log, record


class FakeRun:
    """A run of wandb, and the module functions of trackio."""

    id = "abc123"

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = False
        self.fail_from = math.inf

    def log(self, values: dict[str, float], step: int) -> None:
        if step >= self.fail_from:
            raise ConnectionError("the server\nis gone")
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


def fake_wandb(monkeypatch: pytest.MonkeyPatch, *, account: bool = False) -> tuple[FakeRun, list[dict[str, Any]]]:
    run, inits = FakeRun(), []
    module = types.ModuleType("wandb")

    def init(**arguments: Any) -> FakeRun:
        inits.append(arguments)
        return run

    def login(*, prompt: bool, verify: bool) -> bool:
        assert not prompt
        assert not verify
        return account

    vars(module).update(init=init, login=login, Settings=lambda **settings: settings)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return run, inits


def fake_trackio(monkeypatch: pytest.MonkeyPatch) -> tuple[FakeRun, list[dict[str, Any]]]:
    run, inits = FakeRun(), []
    module = types.ModuleType("trackio")

    def init(**arguments: Any) -> None:
        print("* Trackio project initialized")
        inits.append(arguments)

    vars(module).update(init=init, log=run.log, finish=run.finish)
    monkeypatch.setitem(sys.modules, "trackio", module)
    return run, inits


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_get_every_number_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    run, inits = (fake_wandb if name == "wandb" else fake_trackio)(monkeypatch)
    with open_log(tmp_path, trackers=(name,)) as log:
        log.step(record(10, tps=math.nan))
        log.evaluation(10, train_loss=None, val_loss=2.4, floor=None, best=True)
        assert not run.finished
    step_values = {"loss": 2.5, "lr": 1e-3, "grad_norm": 0.5, "dt": 0.1, "dt_data": 0.001, "sps": 120.0}
    assert run.logged == [(10, {**step_values, "memory": float(1 << 20)}), (10, {"val_loss": 2.4})]
    assert run.finished
    assert inits[0]["name"] == "test"
    assert inits[0]["config"] == {"model": {"n_layer": 2}}


def test_wandb_works_without_an_account_and_goes_on_in_the_same_chart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, inits = fake_wandb(monkeypatch)
    open_log(tmp_path, trackers=("wandb",)).close()
    assert inits[-1]["mode"] == "offline"
    assert inits[-1]["id"] is None
    open_log(tmp_path, trackers=("wandb",), first_step=10).close()
    assert inits[-1]["id"] == "abc123"
    assert inits[-1]["resume"] == "allow"
    _, inits = fake_wandb(monkeypatch, account=True)
    open_log(tmp_path, trackers=("wandb",)).close()
    assert inits[-1]["mode"] is None
    _, inits = fake_wandb(monkeypatch)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    open_log(tmp_path, trackers=("wandb",)).close()
    assert inits[-1]["mode"] is None


def test_trackers_keep_off_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_trackio(monkeypatch)
    open_log(tmp_path, trackers=("trackio",)).close()
    out, err = capsys.readouterr()
    assert out == ""
    assert "initialized" in err


def test_a_tracker_that_fails_is_dropped_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = fake_wandb(monkeypatch)
    run.fail_from = 20
    with open_log(tmp_path, trackers=("wandb",)) as log:
        for step in (10, 20, 30, 40):
            log.step(record(step))
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows if "loss" in row] == [10, 20, 30, 40]
    assert [row["alarm"] for row in rows if "alarm" in row] == [
        "tracker wandb failed and is left out from here on: ConnectionError: the server is gone"
    ]
    assert [step for step, _ in run.logged] == [10]


def test_a_tracker_that_does_not_close_is_only_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = fake_wandb(monkeypatch)
    monkeypatch.setattr(run, "finish", lambda: 1 / 0)
    output = io.StringIO()
    log = RunLog(
        tmp_path,
        max_steps=1,
        first_step=0,
        trackers=("wandb",),
        config={},
        run_name="test",
        console=Console(file=output),
    )
    log.close()
    assert "tracker wandb did not close: ZeroDivisionError" in output.getvalue()


@pytest.mark.parametrize(
    ("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("trackio", "trackio")]
)
def test_a_missing_package_names_the_command_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"pip install {package}"):
        open_log(tmp_path, trackers=(name,))


def test_unknown_and_unwilling_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="did you mean 'wandb'"):
        open_log(tmp_path, trackers=("wandbb",))
    fake_wandb(monkeypatch)
    monkeypatch.setattr(sys.modules["wandb"], "login", lambda **_: 1 / 0)
    with pytest.raises(UserError, match="tracker 'wandb' does not start: division by zero"):
        open_log(tmp_path, trackers=("wandb",))


def test_nothing_is_imported_for_trackers_nobody_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("tensorboardX", "wandb", "trackio"):
        monkeypatch.setitem(sys.modules, package, None)
    open_log(tmp_path).close()


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    """What TensorBoard would read: every scalar of all event files (TFRecord: length, CRC, data, CRC)."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events.*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value if v.HasField("simple_value")]
    return found


def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    with open_log(tmp_path, trackers=("tensorboard",)) as log:
        log.step(record(10))
    with open_log(tmp_path, trackers=("tensorboard",), first_step=10) as log:
        log.evaluation(20, train_loss=None, val_loss=2.25, floor=2.0, best=True)
    found = scalars(tmp_path / "tensorboard")
    assert ("loss", 10, 2.5) in found
    assert ("tps", 10, 7680.0) in found
    assert [scalar for scalar in found if scalar[1] == 20] == [("val_loss", 20, 2.25), ("floor", 20, 2.0)]
