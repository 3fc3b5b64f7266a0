"""The thread that computes: who comes in, who waits, who is refused, and what happens when something breaks."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt_common.commands import SampleSettings
from gpt_common.errors import UserError
from gpt_common.sampling import Continuation
from gpt_common.serving.engine import Answer, Ended, Engine, Event
from gpt_common.serving.models import Library, Served, open_library
from gpt_common.serving.refusals import Refused
from gpt_common.serving.writing import Writer
from tests.gpt_common.serving.served import Saying, make_model


class Room:
    """An engine of made-up models, and what was heard from it.

    Args:
        library: of the models.
        limits: of the engine.
    """

    def __init__(self, library: Library, **limits: int) -> None:
        self.library = library
        self.turn = threading.Semaphore(0)
        """One step of any model for each that is released."""
        self.opened: list[str] = []
        self.batches: list[Saying] = []
        self.broken = False
        self.heard: dict[int, list[Event]] = {}
        self.something = threading.Condition()
        self.engine = Engine(self.open, self.post, **{"batch_size": 4, "queue": 8, "loaded": 2, **limits})

    def open(self, source: Any) -> Saying:
        self.opened.append(source.checkpoint.parent.parent.name)
        if self.broken:
            raise UserError("the checkpoint is damaged")
        self.batches.append(Saying(source.tokenizer, wait=lambda: self.turn.acquire(timeout=20)))
        return self.batches[-1]

    def post(self, events: Any) -> None:
        with self.something:
            for answer, event in events:
                self.heard.setdefault(answer.number, []).append(event)
            self.something.notify()

    def answer(self, tokens: int = 4, model: Served | None = None, seconds: float = 60, **more: Any) -> Answer:
        model = model or self.library.models[0]
        sequence = Continuation(
            model.tokenizer.encode("a"), SampleSettings(max_new_tokens=tokens, temperature=0), itertools.repeat(0.5)
        )
        deadline = time.monotonic() + seconds
        return Answer(model, sequence, Writer(model.tokenizer, ()), tokens, deadline, lambda _: None, **more)

    def until(self, condition: Any) -> None:
        with self.something:
            assert self.something.wait_for(condition, 20)

    def end(self, answer: Answer) -> Event:
        """Wait for the end of an answer, and return how it ended."""
        self.until(lambda: isinstance(self.heard.get(answer.number, [None])[-1], Ended | Refused))
        return self.heard[answer.number][-1]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder = tmp_path_factory.mktemp("runs")
    return open_library([make_model(folder / name) / "checkpoints" / "step-000005" for name in "xyz"], latest=False)


@pytest.fixture
def room(library: Library) -> Iterator[Room]:
    room = Room(library)
    room.engine.start(library.models[0])
    yield room
    room.turn.release(10_000)
    room.engine.stop()


def text(room: Room, answer: Answer) -> str:
    return "".join(event.text for event in room.heard[answer.number][:-1] if not isinstance(event, Ended | Refused))


def test_who_comes_later_is_written_with_the_others(room: Room) -> None:
    first = room.answer(6)
    room.engine.submit([first])
    room.turn.release(2)
    room.until(lambda: len(room.heard.get(first.number, [])) == 2)
    second = room.answer(3)
    room.engine.submit([second])
    room.turn.release(1)
    room.until(lambda: len(room.heard[first.number]) == 3)
    room.turn.release(10)
    assert (room.end(first), room.end(second)) == (Ended("length", 6), Ended("length", 3))
    assert (text(room, first), text(room, second)) == ("bcdefg", "bcd")
    assert max(room.batches[0].together) == 2


def test_no_more_than_a_batch_at_once_and_no_more_than_the_queue_waits(room: Room) -> None:
    answers = [room.answer(2) for _ in range(8)]
    room.engine.submit(answers[:4])
    time.sleep(0)
    deadline = time.monotonic() + 20
    while room.engine.load != (4, 0):  # they have come in, and wait for their first token
        assert time.monotonic() < deadline
    room.engine.submit(answers[4:])
    room.engine.submit([room.answer(2) for _ in range(4)])
    with pytest.raises(Refused, match="8 answers are waiting") as refused:
        room.engine.submit([room.answer(2)])
    assert refused.value.status == 429
    assert refused.value.headers["Retry-After"]
    room.turn.release(100)
    assert {room.end(answer) for answer in answers} == {Ended("length", 2)}
    assert max(room.batches[0].together) == 4


def test_who_has_left_frees_its_place(room: Room) -> None:
    going = [room.answer(1000) for _ in range(4)]
    room.engine.submit(going)
    room.turn.release(1)
    room.until(lambda: all(answer.number in room.heard for answer in going))
    waiting = [room.answer(1000) for _ in range(8)]
    room.engine.submit(waiting)
    for answer in (*going, *waiting):
        answer.gone = True
    last = room.answer(2)
    room.engine.submit([last])
    room.turn.release(10)
    assert room.end(last) == Ended("length", 2)
    assert room.engine.load == (0, 0)
    assert not any(answer.number in room.heard for answer in waiting)


def test_an_answer_that_takes_too_long(room: Room) -> None:
    late, waits = room.answer(1000, seconds=0.05), room.answer(1000, seconds=-1)
    room.engine.submit([late, waits])
    found = room.end(waits)
    assert isinstance(found, Refused)
    assert found.status == 504
    room.turn.release(1)
    time.sleep(0.1)
    room.turn.release(1000)
    ended = room.end(late)
    assert isinstance(ended, Refused)
    assert ended.code == "time_limit"


def test_models_make_room_for_each_other(room: Room) -> None:
    room.turn.release(1000)
    x, y, z = room.library.models
    for model in (x, y, x, z, x, y):
        answer = room.answer(2, model)
        room.engine.submit([answer])
        assert room.end(answer) == Ended("length", 2)
    assert room.opened == ["x", "y", "z", "y"], "the one that was idle longest went"


def test_a_model_waits_until_another_is_idle(room: Room) -> None:
    x, y, z = room.library.models
    answers = [room.answer(3, model) for model in (x, y, z)]
    room.engine.submit(answers)
    room.turn.release(4)
    room.until(lambda: len(room.heard.get(answers[1].number, [])) >= 2)
    assert answers[2].number not in room.heard
    room.turn.release(100)
    assert [room.end(answer) for answer in answers] == [Ended("length", 3)] * 3


def test_what_breaks_ends_its_own_answers_only(room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    answer = room.answer(5)
    room.engine.submit([answer])
    room.turn.release(1)
    room.until(lambda: answer.number in room.heard)
    room.batches[0].next_logits = None  # type: ignore[assignment, method-assign]
    room.turn.release(1)
    broken = room.end(answer)
    assert isinstance(broken, Refused)
    assert broken.status == 500
    assert "NoneType" not in broken.text
    assert "NoneType" in capsys.readouterr().err, "the console says what it was"
    room.turn.release(100)
    again = room.answer(2)
    room.engine.submit([again])
    assert room.end(again) == Ended("length", 2), "it was loaded anew"


def test_a_damaged_model_is_no_end_of_the_others(room: Room) -> None:
    room.turn.release(1000)
    room.broken = True
    bad, good = room.answer(2, room.library.models[1]), room.answer(2)
    room.engine.submit([bad, good])
    assert isinstance(room.end(bad), Refused)
    assert room.end(good) == Ended("length", 2)


def test_a_first_model_that_cannot_be_loaded_is_said_at_once(library: Library) -> None:
    room = Room(library)
    room.broken = True
    with pytest.raises(UserError, match="damaged"):
        room.engine.start(library.models[0])


def test_stopping_finishes_what_waits(library: Library) -> None:
    room = Room(library, batch_size=1)
    room.engine.start(library.models[0])
    answers = [room.answer(3) for _ in range(3)]
    room.engine.submit(answers)
    room.turn.release(1000)
    room.engine.stop()
    assert [room.heard[answer.number][-1] for answer in answers] == [Ended("length", 3)] * 3


def test_names(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        for step in (5, 10):
            make_model(tmp_path / folder / "run", step=step)
    found = open_library(
        [tmp_path / "one" / "run", tmp_path / "two" / "run" / "checkpoints" / "step-000005"], latest=False
    )
    assert list(found.by_name) == ["run", "run/step-000005", "run/step-000010", "run/step-000005-2"]
    assert found.find(None).name == "run"
    with pytest.raises(Refused, match="there is run, run/step-000005"):
        found.find("other")
