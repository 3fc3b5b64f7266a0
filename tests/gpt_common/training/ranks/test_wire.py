"""Sums over sockets, and how ranks meet that a person starts: each mistake is one line, within a bounded time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import gpt_common.training.ranks.wire as wire
from gpt_common.commands import TrainCommand
from gpt_common.errors import UserError, WorkFailed
from gpt_common.training.ranks.wire import Broken, Place, Wire, met, place_of

SECONDS = 20.0


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def on_all(world: int, work: Callable[[Wire], Any], port: int) -> list[Any]:
    """What comes of `work` on every rank, or the error that it ends with."""

    def one(number: int) -> Any:
        place = Place("127.0.0.1", port, listens=number == 0, world=world)
        try:
            with met(place, lambda _: None) as met_wire:
                return met_wire.rank, work(met_wire)
        except (UserError, WorkFailed) as error:
            return number, error

    with ThreadPoolExecutor(world) as pool:
        return [found for _, found in sorted(pool.map(one, range(world)), key=lambda pair: pair[0])]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "WAIT", SECONDS)
    monkeypatch.setattr(wire, "AGAIN", 0.01)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("size", [0, 1, wire.PIECE, 3 * wire.PIECE + 5])
def test_a_sum_has_the_same_bits_on_all_ranks_and_is_that_of_numpy(world: int, size: int) -> None:
    values = [np.random.default_rng(rank).normal(size=size).astype(np.float32) for rank in range(world)]
    expected = values[0].copy()
    for each in values[1:]:
        expected += each
    for found in on_all(world, lambda ranks: ranks.add_up(values[ranks.rank]), free_port()):
        assert np.array_equal(found, expected)


def test_what_one_says_all_hear_and_an_array_of_the_first() -> None:
    def work(ranks: Wire) -> Any:
        said = ranks.gather(f"rank {ranks.rank}, ä")
        mine = np.full((2, 3), ranks.rank + 7.0, np.float32)
        return said, ranks.of_first(mine.T), float(ranks.of_first(np.array(ranks.rank, np.float32)))

    for said, array, scalar in on_all(3, work, free_port()):
        assert said == ["rank 0, ä", "rank 1, ä", "rank 2, ä"]
        assert array.shape == (3, 2)
        assert (array == 7).all()
        assert scalar == 0


def test_who_has_left_is_named() -> None:
    def work(ranks: Wire) -> Any:
        if ranks.rank == 1:
            raise WorkFailed("killed")
        return ranks.gather("here")

    first, _, third = on_all(3, work, free_port())
    assert str(first).startswith("rank 1 has left")
    assert str(third).startswith("rank 0 has left")


def test_a_sum_ends_where_another_ends_in_the_middle_of_it() -> None:
    mine, theirs = socket.socketpair()
    ranks = Wire(Place("127.0.0.1", 1, listens=False), 1, 2, [mine])
    threading.Timer(0.2, theirs.close).start()
    with pytest.raises(Broken, match="rank 0 has left"):
        ranks.add_up(np.zeros(20 * wire.PIECE, np.float32))
    mine.close()


def test_strangers_are_not_counted_and_a_third_is_told() -> None:
    port = free_port()
    third: list[BaseException] = []

    def work(ranks: Wire) -> Any:
        if ranks.rank == 0:
            ranks.gather("")
            with pytest.raises(UserError) as told, met(Place("127.0.0.1", port, listens=False), lambda _: None):
                pass
            third.append(told.value)
            return ranks.gather("")
        ranks.gather("")
        return ranks.gather("")

    def knock() -> None:
        for _ in range(1000):
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as stranger:
                    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    stranger.recv(10)
                return
            except ConnectionRefusedError:
                time.sleep(0.01)  # nobody listens yet
            except ConnectionResetError:
                return

    stranger = threading.Thread(target=knock)
    stranger.start()
    found = on_all(2, work, port)
    stranger.join(SECONDS)
    assert found == [["", ""]] * 2
    assert "has its 2 ranks already" in str(third[0])


def test_one_who_says_nothing_does_not_keep_a_rank_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one who says it letter by letter."""
    monkeypatch.setattr(wire, "GREETING", 0.3)
    port, ended = free_port(), threading.Event()

    def drips() -> None:
        while not ended.wait(0.01):
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as stranger:
                    while not ended.wait(0.1):
                        stranger.sendall(b"{")
                    return
            except ConnectionRefusedError:
                continue  # nobody listens yet
            except OSError:
                return  # it was sent away

    stranger = threading.Thread(target=drips)
    stranger.start()
    try:
        assert on_all(2, lambda ranks: ranks.gather("here"), port) == [["here", "here"]] * 2
    finally:
        ended.set()
        stranger.join(SECONDS)


def met_by(listens: Place, joins: Place) -> tuple[list[list[str]], list[str]]:
    """What two ranks hear of each other, and what the first one tells the person who starts them."""
    said: list[str] = []

    def one(place: Place) -> list[str]:
        with met(place, said.append if place.listens else lambda _: None) as ranks:
            return ranks.gather(f"rank {ranks.rank}")

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, (listens, joins))), said


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_addresses_of_the_other_kind() -> None:
    port = free_port()
    found, said = met_by(Place("::1", port, listens=True, world=2), Place("::1", port, listens=False))
    assert found == [["rank 0", "rank 1"]] * 2
    assert f"--join [::1]:{port}" in said[0]


def test_a_name_that_means_this_machine_alone_is_reached_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian and Ubuntu write a machine's own name beside 127.0.1.1: whoever joins from elsewhere knocks elsewhere."""
    resolve, port = socket.getaddrinfo, free_port()
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *more, **d: resolve("127.0.1.1" if host == "mine" else host, *more, **d)
    )
    found, said = met_by(Place("mine", port, listens=True, world=2), Place("127.0.0.1", port, listens=False))
    assert found == [["rank 0", "rank 1"]] * 2
    assert f"--join mine:{port}" in said[0]


def test_all_addresses_are_no_place_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "mac-1")
    port = free_port()
    found, said = met_by(Place("0.0.0.0", port, listens=True, world=2), Place("127.0.0.1", port, listens=False))
    assert found == [["rank 0", "rank 1"]] * 2
    assert f"--join mac-1:{port}" in said[0]


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "WAIT", 0.2)
    said: list[str] = []
    port = free_port()
    with pytest.raises(UserError, match=f"nobody listens at 127.0.0.1:{port} .*--listen 127.0.0.1:{port}"):
        met(Place("127.0.0.1", port, listens=False), said.append).__enter__()
    assert len(said) == 1
    assert f"started with --listen 127.0.0.1:{port}" in said[0]
    with pytest.raises(UserError, match=f"2 other ranks of 2 did not come to 127.0.0.1:{port}"):
        met(Place("127.0.0.1", port, listens=True, world=3), said.append).__enter__()
    assert f"2 other ranks: the same command with --join 127.0.0.1:{port}" in said[1]


def test_what_listens_there_is_something_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        def answer() -> None:
            with other.accept()[0] as connection:
                connection.sendall(b"SSH-2.0\r\n")

        answers = threading.Thread(target=answer)
        answers.start()
        with pytest.raises(UserError, match="what listens there is no first rank"):
            met(Place("127.0.0.1", port, listens=False), lambda _: None).__enter__()
        answers.join(SECONDS)
        with pytest.raises(UserError, match=f"--listen 127.0.0.1:{port}: Address already in use"):
            met(Place("127.0.0.1", port, listens=True, world=2), lambda _: None).__enter__()


def test_no_such_machine() -> None:
    with pytest.raises(UserError, match="there is no machine no-such-machine"):
        met(Place("no-such-machine.invalid", 1, listens=False), lambda _: None).__enter__()


def test_places() -> None:
    assert place_of(None, None, None) is None
    assert place_of("mac-1:29400", None, 3) == Place("mac-1", 29400, listens=True, world=3)
    assert place_of(None, "[::1]:29400", None) == Place("::1", 29400, listens=False)
    assert str(place_of(None, "[::1]:29400", None)) == "[::1]:29400"
    for wrong in ("29400", "mac-1", "mac-1:", ":29400", "mac-1:0", "mac-1:65536", "mac-1:-1"):
        with pytest.raises(UserError, match="HOST:PORT"):
            place_of(None, wrong, None)


def test_flags_that_do_not_go_together() -> None:
    with pytest.raises(UserError, match="this one has both"):
        TrainCommand(listen="a:1", join="a:1")
    with pytest.raises(UserError, match="2 or more, with --listen"):
        TrainCommand(listen="a:1", ranks=1)
    with pytest.raises(UserError, match="2 or more, with --listen"):
        TrainCommand(ranks=2)
    with pytest.raises(UserError, match="2 or more, with --listen"):
        TrainCommand(join="a:1", ranks=2)
