"""A run on a Mac holds `caffeinate` for its length and not longer; elsewhere, or where it is not wanted, nothing."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from gpt_common.machine.awake import awake


@pytest.fixture
def caffeinate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up Mac, whose program writes down how it was called and its own number, and stays."""
    program = tmp_path / "caffeinate"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\necho $$ > {tmp_path}/pid\nexec sleep 100\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "platform", "darwin")
    return tmp_path


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def written(path: Path) -> str:
    for _ in range(500):
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.01)
    pytest.fail(f"{path} was not written")


def test_it_is_there_for_the_length_of_the_run_and_ends_with_it(caffeinate: Path) -> None:
    said: list[str] = []
    with suppress(KeyError), awake(said.append):
        number = int(written(caffeinate / "pid"))
        assert alive(number)
        raise KeyError
    assert (caffeinate / "called").read_text() == f"-i -w {os.getpid()}\n"
    assert not alive(number)
    assert said == ["the Mac is kept awake for the length of the run, while its lid is open (--let-sleep: not)"]


@pytest.mark.parametrize(("wanted", "platform"), [(False, "darwin"), (True, "linux")])
def test_it_is_not_where_it_is_not_wanted_or_no_mac(
    caffeinate: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool, platform: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    with awake(pytest.fail, wanted=wanted):
        pass
    assert not (caffeinate / "called").exists()


def test_a_mac_without_it_and_one_that_refuses_train_all_the_same(
    caffeinate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (caffeinate / "caffeinate").write_text("no program")
    said: list[str] = []
    with awake(said.append):
        pass
    assert said == [f"the Mac may fall asleep during the run: {caffeinate}/caffeinate: Exec format error"]
    monkeypatch.setenv("PATH", str(caffeinate / "nowhere"))
    with awake(pytest.fail):
        pass
