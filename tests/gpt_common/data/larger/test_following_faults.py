"""A preparation that is followed: what goes on with it, what is waited for, and what is refused in a line."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="extra hub")

# isort: split
from gpt_common.data.corpora import following
from gpt_common.data.corpora.following import Preparation, follow
from gpt_common.data.corpora.work import Work, is_held
from tests.gpt_common.data.corpora import fails, flip, prepare_characters
from tests.gpt_common.data.larger.hub import (
    FIRST,
    SECOND,
    Texts,
    one_more_shard,
    opened,
    prepared,
    small_and_at_once,
    three_files,
)

STEPS = 100
"""Of 6 windows: more than there are."""
WORK = Path("data/mine.tmp-hub")


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Texts]:
    """The server; pools of 12 windows of 8 tokens."""
    small_and_at_once(monkeypatch)
    with three_files(tmp_path, monkeypatch) as hub:
        yield hub


def numbers(step: int) -> range:
    return range(step * 6, (step + 1) * 6)


def test_what_makes_more_is_the_command_that_goes_on(hub: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the commit that it was begun at, whatever the hub has by now."""
    from gpt_common.data.__main__ import main
    from gpt_common.data.corpora import hub as preparing

    defaults = preparing.prepare_hub.__kwdefaults__ or {}
    monkeypatch.setattr(preparing.prepare_hub, "__kwdefaults__", {**defaults, "shard_characters": 600})
    one_more_shard(max_tokens=3000)
    hub.commit = SECOND
    found, _ = opened()
    assert isinstance(found.stream, Preparation)
    words = found.stream.remedy.split()
    assert words[:4] == ["python", "-m", "gpt_common.data", "prepare"]
    main([*words[3:], "--workers", "1"])
    assert opened()[0].fingerprint == found.fingerprint
    assert json.loads(Path("data/mine/meta.json").read_text())["recipe"]["commit"] == FIRST


def test_who_prepares_is_seen_and_not_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_held(WORK)
    keep, seen = Work.keep, []

    def look(work: Work, record: Any) -> None:
        seen.append(is_held(WORK))
        keep(work, record)

    monkeypatch.setattr(Work, "keep", look)
    one_more_shard()
    assert not is_held(WORK), "it was killed"
    # Who looks at the moment at which a preparation begins holds the folder for a moment; that is waited for.
    looker = os.open(WORK, os.O_RDONLY)
    fcntl.flock(looker, fcntl.LOCK_SH)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        os.close(looker)

    monkeypatch.setattr("gpt_common.data.corpora.work.sleep", sleep)
    prepared()
    assert len(slept) == 1
    assert set(seen) == {True}


def changed_plan() -> None:
    one_more_shard(revision=SECOND, overwrite=True)


def another_size() -> None:
    """Its first shards are the same."""
    one_more_shard(max_tokens=3000, overwrite=True)
    for _ in range(3):
        one_more_shard(max_tokens=3000)


def another_size_finished() -> None:
    prepared(max_tokens=3000, overwrite=True)


def lost() -> None:
    shutil.rmtree(WORK)


def damaged() -> None:
    flip(WORK / "shard-00001.bin", 3)


def shorter() -> None:
    os.truncate(WORK / "shard-00001.bin", 100)


def gone() -> None:
    (WORK / "shard-00001.bin").unlink()


def another_dataset() -> None:
    """Of the same plan, and with other tokens behind the first shard."""
    prepared()
    meta = json.loads(Path("data/mine/meta.json").read_text())
    meta["sources"][1]["sha256"] = "0" * 64
    Path("data/mine/meta.json").write_text(json.dumps(meta))


def damaged_dataset() -> None:
    prepared()
    flip(Path("data/mine/train.bin"), 2000)


FAULTS: dict[str, tuple[Callable[[], None], str]] = {
    "other commit": (changed_plan, rf"prepared otherwise by now \(commit {SECOND}, and was {FIRST}\)"),
    "other size": (another_size, r"prepared otherwise by now \(max tokens 3000, and was None\): prepare it as it was"),
    "other size, finished": (another_size_finished, r"otherwise by now \(max tokens 3000, and was None\)"),
    "lost": (lost, "is gone"),
    "damaged": (
        damaged,
        r"shard-00001.bin is not what was prepared \(its SHA-256 differs\): prepare it again: `python",
    ),
    "shorter": (shorter, "shard-00001.bin is not what was prepared"),
    "gone": (gone, "shard-00001.bin is gone: prepare it again"),
    "another dataset": (another_dataset, "has other tokens than the preparation had"),
    "damaged dataset": (damaged_dataset, r"shard \d+ in data/mine is not what was prepared .* --overwrite`"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_what_it_was_is_refused_in_a_line(fault: str) -> None:
    change, words = FAULTS[fault]
    one_more_shard()
    one_more_shard()
    _, windows = opened()
    assert windows.there(numbers(0))
    change()
    with fails(words) as caught:
        for step in range(STEPS):
            if not windows.there(numbers(step)):
                prepared()
    assert "\n" not in str(caught.value)


def test_what_was_not_prepared_from_a_hub_is_not_followed(tmp_path: Path) -> None:
    prepare_characters(tmp_path)
    for name in ("mine", "stories"):
        with fails(f"'{name}' is not prepared with --hub, so there is nothing to wait for: leave out --follow"):
            follow(name, Path("data"), print)
    with fails("nobody prepares 'other': start `python -m gpt_common.data prepare --hub OWNER/NAME --name other`"):
        follow("other", Path("data"), print)
    # What is being prepared in its place is.
    one_more_shard(overwrite=True)
    assert opened()[0].preparation is not None


def test_a_plan_of_another_version_is_refused() -> None:
    one_more_shard()
    (WORK / "plan.json").write_text('{"repository": "someone/texts"}')
    with fails("data/mine.tmp-hub is of another version: prepare 'mine' with --overwrite"):
        opened()


def test_the_first_shard_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(following, "GRACE_SECONDS", 60.0)
    monkeypatch.setattr(following, "sleep", lambda _: one_more_shard())
    found = follow("mine", Path("data"), said.append)
    assert said == ["waiting for the first shard of 'mine'"]
    assert len(found.train) > 400


def test_a_preparation_without_a_shard_that_nobody_goes_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        os._exit(0)

    monkeypatch.setattr(Work, "keep", stop)
    if (child := os.fork()) == 0:
        prepared()
    os.waitpid(child, 0)
    with fails(f"nobody prepares 'mine' any more: go on with `python .* --revision {FIRST}"):
        follow("mine", Path("data"), print)


def test_the_same_dataset_is_opened_without_following_too() -> None:
    """Its own splits are others, and so is its fingerprint."""
    mine = prepared()
    followed, _ = opened()
    assert mine.fingerprint != followed.fingerprint
    assert mine.preparation is None
    assert "preparation" not in mine.identity
    assert len(followed.val) < len(mine.val)
