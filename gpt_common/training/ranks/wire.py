"""Ranks that are started by hand, in either twin: one listens, the others join it, and it adds up what all bring.

A sum goes over plain sockets, as numpy, because no engine reaches from MLX on a Mac to PyTorch on Linux: a ring is
MLX's alone, and gloo's transports for macOS and for Linux send each other addresses in their own system's layout
(pytorch/gloo#383). So neither twin needs the other's framework. Nothing that arrives is executed; who may connect is
not asked: a network that is trusted.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_common.errors import UserError, WorkFailed
from gpt_common.training.ranks.pulse import listener

Array = npt.NDArray[Any]

WAIT = 300.0
"""Seconds that ranks wait for each other at the beginning: somebody walks from machine to machine."""
ANSWER, GREETING = 10.0, 3.0
"""Seconds in which whoever listens answers, and whoever has connected says who it is: the shorter ones, so that one who
says nothing does not keep the next one waiting for longer than it waits."""
AGAIN = 0.5
"""Seconds between two tries to reach the first rank."""
PIECE = 1 << 18
"""Numbers of a sum that travel together: one piece is added up while the next one comes."""
LONGEST_LINE, LONGEST_TEXT = 1 << 12, 1 << 28
"""Bytes of a greeting, and of what a rank has to say."""
WORDS = "mlx-torch-gpt ranks, 1"
"""How they greet each other; another number where they would not understand each other."""


class Broken(RuntimeError):
    """Another rank's connection has ended."""


@dataclass(frozen=True)
class Place:
    """Where ranks meet."""

    host: str
    port: int
    listens: bool
    """Whether this process is the first."""
    world: int = 0
    """How many there are; who joins is told."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_address(self) -> bool:
        """Whether the host is given by its number and not by a name."""
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(self.host.partition("%")[0])
            return True
        return False

    @property
    def is_any(self) -> bool:
        """Whether it means all addresses of a machine, as 0.0.0.0 does: good to listen at, and nothing to join."""
        return self.is_address and ipaddress.ip_address(self.host.partition("%")[0]).is_unspecified


def place_of(listen: str | None, join: str | None, ranks: int | None) -> Place | None:
    """What `--listen HOST:PORT --ranks N` or `--join HOST:PORT` means; None without them.

    Raises:
        UserError: it means nothing.
    """
    if listen is None and join is None:
        return None
    flag, text = ("--listen", listen) if listen is not None else ("--join", join)
    host, _, port = str(text).rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(f"{flag} {text}: HOST:PORT, as mac-1:29400, with a name or address of the machine that listens")
    return Place(host, int(port), listen is not None, (ranks or 2) if listen is not None else 0)


class Wire:
    """Connections between all ranks and the first.

    Args:
        peers: on the first rank, those with the others, in their order; on the others, the one with the first.
    """

    def __init__(self, place: Place, rank: int, world: int, peers: Sequence[socket.socket]) -> None:
        self.place, self.rank, self.world, self.peers = place, rank, world, peers

    def gather(self, text: str) -> list[str]:
        """What every rank has to say, by rank; all must call it, and wait until all have."""
        if self.rank:
            self._send(0, text.encode())
            return [str(each) for each in json.loads(self._receive(0))]
        texts = [text, *(self._receive(n).decode() for n in range(len(self.peers)))]
        for n in range(len(self.peers)):
            self._send(n, json.dumps(texts).encode())
        return texts

    def add_up(self, mine: Array) -> Array:
        """(N,) float32 of this rank -> their sum over all, added in the order of ranks: the same bits for all."""
        total = np.array(mine, "<f4")
        pieces = [total[start : start + PIECE] for start in range(0, len(total), PIECE)]
        if self.rank:
            # What is sent and what comes back meet on the way: neither waits for the other to be through.
            with self._sending(np.array(total)):
                for piece in pieces:
                    self._fill(0, piece)
            return total
        theirs = np.empty(min(PIECE, len(total)), "<f4")
        for piece in pieces:
            for n in range(len(self.peers)):
                self._fill(n, theirs[: len(piece)])
                piece += theirs[: len(piece)]
            for n in range(len(self.peers)):
                self._write(n, piece)
        return total

    def of_first(self, mine: Array) -> Array:
        """Rank 0's float32 array; the others have one of its shape."""
        values = np.array(mine, "<f4", order="C")
        if self.rank:
            self._fill(0, values)
        for n in range(len(self.peers) if self.rank == 0 else 0):
            self._write(n, values)
        return values

    def close(self) -> None:
        """This rank needs the others no more."""
        for peer in self.peers:
            peer.close()

    @contextmanager
    def _sending(self, values: Array) -> Iterator[None]:
        failed: list[Broken] = []

        def send() -> None:
            try:
                self._write(0, values)
            except Broken as error:
                failed.append(error)

        thread = threading.Thread(target=send, name="sending", daemon=True)
        thread.start()
        yield
        thread.join()
        for error in failed:
            raise error

    def _send(self, n: int, data: bytes) -> None:
        self._write(n, struct.pack("<Q", len(data)) + data)

    def _receive(self, n: int) -> bytes:
        size = np.empty(8, np.uint8)
        self._fill(n, size)
        (length,) = struct.unpack("<Q", size.tobytes())
        if length > LONGEST_TEXT:
            raise Broken(f"{self._name(n)} says what no rank says")
        data = np.empty(length, np.uint8)
        self._fill(n, data)
        return data.tobytes()

    def _write(self, n: int, data: bytes | Array) -> None:
        try:
            self.peers[n].sendall(data if isinstance(data, bytes) else data.data.cast("B"))
        except OSError:
            raise Broken(f"{self._name(n)} has left") from None

    def _fill(self, n: int, values: Array) -> None:
        """Read a whole array."""
        if not values.size:
            return
        place = values.data.cast("B")
        while place:
            try:
                count = self.peers[n].recv_into(place)
            except OSError:
                count = 0
            if not count:
                raise Broken(f"{self._name(n)} has left")
            place = place[count:]

    def _name(self, n: int) -> str:
        return "rank 0" if self.rank else f"rank {n + 1}"


# ---- how they meet -----------------------------------------------------------------------------------------------


@contextmanager
def met(place: Place, say: Callable[[str], None]) -> Iterator[Wire]:
    """The connections of a run's ranks, for as long as the block lasts.

    Args:
        say: shows a line.

    Raises:
        UserError: they do not meet.
        WorkFailed: in the block a connection has ended, and nobody could say more.
    """
    with contextlib.ExitStack() as held:
        wire = _listened(place, say, held) if place.listens else _joined(place, say)
        held.callback(wire.close)
        try:
            yield wire
        except Broken as error:
            raise WorkFailed(f"{error}: started as before, --resume goes on if anything is saved") from None


def _listened(place: Place, say: Callable[[str], None], held: contextlib.ExitStack) -> Wire:
    """On the first rank: wait until all others are here."""
    try:
        door = held.enter_context(_door(place))
    except OSError as error:
        raise UserError(
            f"--listen {place}: {error.strerror or error} (a name or address of this machine, and a port that is free)"
        ) from None
    others, until = place.world - 1, time.monotonic() + WAIT
    say(f"waits up to {WAIT:g} s for {_ranks(others)}: the same command with --join {_named(place)}, of either twin")
    peers: list[socket.socket] = []
    while len(peers) < others:
        door.settimeout(max(0.01, until - time.monotonic()))
        try:
            connection, _ = door.accept()
        except TimeoutError:
            raise UserError(
                f"{_ranks(others - len(peers))} of {others} did not come to {place} in {WAIT:g} s: start all within "
                f"that time, the others with --join {_named(place)}"
            ) from None
        if _greeted(connection, GREETING) is None:
            connection.close()
            continue
        _say(connection, {"words": WORDS, "rank": len(peers) + 1, "world": place.world})
        peers.append(held.enter_context(_tuned(connection)))
    door.settimeout(None)
    threading.Thread(target=_turn_away, args=(door, place.world), name="listening", daemon=True).start()
    return Wire(place, 0, place.world, peers)


def _door(place: Place) -> socket.socket:
    """Where the first rank is reached.

    Raises:
        OSError: it is no place of this machine, or is taken.
    """
    if place.host not in ("", "localhost") and not place.is_address:
        # Debian and Ubuntu call a machine's own name 127.0.1.1, at which no other machine reaches it.
        its = {address[0] for *_, address in socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)}
        if all(ipaddress.ip_address(str(each).partition("%")[0]).is_loopback for each in its):
            return listener("", place.port)
    return listener("" if place.is_any else place.host, place.port)


def _named(place: Place) -> Place:
    """What the others are told to join."""
    return replace(place, host=socket.gethostname()) if place.is_any else place


def _turn_away(door: socket.socket, world: int) -> None:
    """Tell everybody who comes later that all are here."""
    while True:
        try:
            connection, _ = door.accept()
        except OSError:
            return
        with connection, contextlib.suppress(OSError):
            if _greeted(connection, GREETING) is not None:
                full = f"the run there has its {world} ranks already (--ranks, where it listens, says how many)"
                _say(connection, {"words": WORDS, "refused": full})


def _joined(place: Place, say: Callable[[str], None]) -> Wire:
    """On another rank: reach the first."""
    until, said = time.monotonic() + WAIT, False
    while True:
        try:
            connection = socket.create_connection((place.host, place.port), timeout=ANSWER)
            break
        except socket.gaierror as error:
            raise UserError(f"--join {place}: there is no machine {place.host} ({error.strerror})") from None
        except OSError as error:
            why = error.strerror or str(error)
        if time.monotonic() > until:
            raise UserError(
                f"nobody listens at {place} ({why}), after {WAIT:g} s: the first rank is started there, with "
                f"--listen {place}"
            )
        if not said:
            say(f"waits up to {WAIT:g} s for the first rank, which is started with --listen {place} ({why})")
            said = True
        time.sleep(AGAIN)
    with contextlib.suppress(OSError):
        _say(connection, {"words": WORDS, "process": os.getpid(), "host": socket.gethostname()})
    answer = _greeted(connection, ANSWER)
    if answer is None:
        connection.close()
        raise UserError(f"--join {place}: what listens there is no first rank of this version (--listen)")
    if "refused" in answer:
        connection.close()
        raise UserError(f"--join {place}: {answer['refused']}")
    rank, world = int(answer["rank"]), int(answer["world"])
    say(f"rank {rank} of {world}; the first, at {place}, has folder, log and samples")
    return Wire(place, rank, world, [_tuned(connection)])


def _ranks(count: int) -> str:
    return f"{count} other rank{'s' * (count > 1)}"


def _tuned(connection: socket.socket) -> socket.socket:
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return connection


def _say(connection: socket.socket, what: dict[str, Any]) -> None:
    connection.sendall(json.dumps(what).encode() + b"\n")


def _greeted(connection: socket.socket, seconds: float) -> dict[str, Any] | None:
    """What somebody says in so many seconds who has just connected; None if it is none of ours."""
    until, line = time.monotonic() + seconds, b""
    try:
        # Byte by byte: what comes behind the line is another's to read.
        while not line.endswith(b"\n") and len(line) < LONGEST_LINE:
            connection.settimeout(max(0.01, until - time.monotonic()))
            byte = connection.recv(1)
            if not byte:
                return None
            line += byte
        found = json.loads(line)
        return found if isinstance(found, dict) and found.get("words") == WORDS else None
    except (OSError, ValueError):
        return None
