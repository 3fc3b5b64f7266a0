"""The pulse between ranks, as threads of one process: who ends without a word or falls silent is named."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import Empty, Queue

import pytest

from gpt_common.training.ranks import pulse
from gpt_common.training.ranks.pulse import Pulse

WORLD = 3


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "BEAT", 0.05)
    monkeypatch.setattr(pulse, "GRACE", 0.1)
    monkeypatch.setattr(pulse, "PATIENCE", 1)


@contextmanager
def beating(timeout: float = 30.0, world: int = WORLD) -> Iterator[tuple[list[Pulse], Queue[tuple[int, str]]]]:
    """Ranks that have met, and what their threads end the process with: (rank, why)."""
    ended: Queue[tuple[int, str]] = Queue()
    ranks = [Pulse(rank, world, timeout) for rank in range(world)]
    for each in ranks:
        each.end = lambda why, rank=each.rank: ended.put((rank, why))  # type: ignore[misc]
        each.more = lambda: "saved is step 5"
    where = ranks[0].listen("127.0.0.1")
    with ThreadPoolExecutor(world) as pool:
        list(pool.map(lambda each: each.begin(where), ranks))
    try:
        yield ranks, ended
    finally:
        for each in ranks:
            each.close(in_order=True)


def test_who_leaves_in_order_is_not_missed() -> None:
    with beating() as (ranks, ended):
        ranks[2].close(in_order=True)
        ranks[0].close(in_order=True)
        assert ranks[1].found() is None
    assert ended.empty()


@pytest.mark.parametrize("lost", range(WORLD))
def test_who_ends_without_a_word_is_named_by_one(lost: int) -> None:
    with beating() as (ranks, ended):
        ranks[lost].close(in_order=False)
        found = dict(ended.get(timeout=20) for _ in range(WORLD - 1))
    speaker = 1 if lost == 0 else 0
    assert found.pop(speaker).startswith(f"rank {lost} (process {os.getpid()} on ")
    assert list(found.values()) == [""], "the others end without a word"


@pytest.mark.parametrize("lost", [0, 1])
def test_a_first_rank_that_says_why_it_ends_is_not_spoken_of(lost: int) -> None:
    """Of another one the first still says what is saved."""
    with beating() as (ranks, ended):
        ranks[lost].close(in_order=False, says_why=True)
        found = dict(ended.get(timeout=20) for _ in range(WORLD - 1))
    assert sorted(bool(text) for text in found.values()) == [False, lost == 1]


def test_the_thread_that_trains_may_say_it_itself() -> None:
    with beating() as (ranks, _):
        ranks[1].close(in_order=False)
        said = [ranks[rank].found() for rank in (0, 2)]
        assert all(text and text.endswith("has ended; saved is step 5") for text in said)
        assert [ranks[rank].speaks for rank in (0, 2)] == [True, False]


def test_all_that_wait_for_each_other_do_not_wait_for_ever() -> None:
    with beating(timeout=0.5) as (ranks, ended):
        for each in ranks:
            each.waits()
        found = dict(ended.get(timeout=20) for _ in range(WORLD))
    assert found[0] == "all ranks wait for each other; saved is step 5"


def test_who_works_is_waited_for() -> None:
    """Rank 0 samples and saves; the others wait for it, as long as it lives."""
    with beating(timeout=0.3) as (ranks, ended):
        for each in ranks[1:]:
            each.waits()
        with pytest.raises(Empty):
            ended.get(timeout=1.0)


STOPPED = """
import sys
from gpt_common.training.ranks.pulse import Pulse
rank = Pulse(1, 2, 30.0)
rank.begin(sys.argv[1])
print("here", flush=True)
sys.stdin.read()
"""


def test_one_that_is_stopped_is_silent_and_is_ended() -> None:
    ended: Queue[str] = Queue()
    first = Pulse(0, 2, 1.0)
    first.end = ended.put
    where = first.listen("127.0.0.1")
    command = [sys.executable, "-c", STOPPED, where]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        first.begin(where)
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGSTOP)
        try:
            assert f"rank 1 (process {process.pid} on " in ended.get(timeout=20)
            assert process.wait(timeout=20) == -signal.SIGKILL
        finally:
            process.kill()
            first.close(in_order=True)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_addresses_of_both_kinds() -> None:
    """Where rank 0 is reached under a name, its name may mean either."""
    for host, reached in (("::1", ["::1"]), ("127.0.0.1", ["127.0.0.1"]), ("mac-1", ["::1", "127.0.0.1"])):
        for address in reached:
            first, other = Pulse(0, 2, 30.0), Pulse(1, 2, 30.0)
            known = first.listen(host)
            assert known.split()[0] == host
            where = " ".join([address, *known.split()[1:]])
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda each: each.begin(where), (first, other)))  # noqa: B023
            for each in (first, other):
                each.close(in_order=True)


def test_a_process_of_another_machine_of_this_name_is_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number may be that of another process here."""
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _: killed.append(pid))
    here, elsewhere = FakeConnection("10.0.0.1", "10.0.0.1"), FakeConnection("10.0.0.1", "10.0.0.2")
    first, name = Pulse(0, 3, 1.0, clock=lambda: 50.0), socket.gethostname()
    for number, connection in ((7, elsewhere), (8, here)):
        first._peers, first._lost = [pulse._Peer(1, number, name, connection, 0.0)], None  # type: ignore[arg-type]
        first._judge()
    assert killed == [8]


class FakeConnection:
    """The two ends of a connection."""

    def __init__(self, mine: str, its: str) -> None:
        self.mine, self.its = mine, its

    def getsockname(self) -> tuple[str, int]:
        return self.mine, 1

    def getpeername(self) -> tuple[str, int]:
        return self.its, 2


def test_who_was_stopped_itself_does_not_blame_the_others() -> None:
    """Ctrl-Z stops all of them, and all go on at once."""
    stopped = Pulse(0, 2, 1.0, clock=lambda: now)
    now, (mine, other) = 0.0, socket.socketpair()
    stopped._peers = [pulse._Peer(1, 1, "elsewhere", mine, 0.0)]
    now = 50.0
    stopped._forgive()
    stopped._judge()
    assert stopped._lost is None
    now = 51.5
    stopped._judge()
    assert stopped._lost is not None
    for each in (mine, other):
        each.close()


def test_a_stranger_is_not_let_in() -> None:
    """Whoever connects and does not know the word that rank 0 has given out, or says nothing that makes sense."""
    first = Pulse(0, 2, 30.0)
    where = first.listen("127.0.0.1")
    port = int(where.split()[1])
    strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    strangers[0].sendall(json.dumps({"token": "guess", "rank": 1, "pid": 1, "host": "x"}).encode() + b"\n")
    strangers[1].sendall(b"[]\n")
    strangers[2].sendall(b"{" * 5000)
    other = Pulse(1, 2, 30.0)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda each: each.begin(where), (first, other)))
    assert first.found() is None
    for each in (first, other):
        each.close(in_order=True)
    for stranger in strangers:
        stranger.close()
