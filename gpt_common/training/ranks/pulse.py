"""A pulse between ranks: who ends, is stopped or falls silent is noticed within a bounded time, and named.

The engines notice little: a ring waits for ever for a rank that is stopped, and none says which one it is. So every
rank has a thread that tells rank 0 twice a second that it lives; rank 0 answers all of them, and says who does not. A
process that was killed closes its connection, one that was stopped is silent. Only sockets: no framework, no pickle.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from gpt_common.errors import nobody_listens

BEAT = 0.5
"""Seconds between two beats."""
GRACE = 3.0
"""Seconds in which the thread that trains may end the run by itself, once a rank is known to be lost."""
PATIENCE = 15
"""So many timeouts may all ranks wait at once: a large sum takes its time on a slow wire."""
CONNECT = 20.0
"""Seconds to reach rank 0 in."""
MEETING = 120.0
"""Seconds in which all ranks must have started."""
LONGEST = 1 << 12
"""Bytes of a line."""


@dataclass
class _Peer:
    """Another rank, as seen from here."""

    rank: int
    pid: int
    host: str
    connection: socket.socket
    heard: float
    waits: bool = False
    left: bool = False
    said_why: bool = False
    unread: bytes = field(default=b"", repr=False)

    @property
    def said(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"

    @property
    def is_here(self) -> bool:
        """Whether its process is one of this machine: two machines may have one name, and this one another process of
        that number."""
        try:
            mine, its = self.connection.getsockname(), self.connection.getpeername()
        except OSError:
            return False
        return self.host == socket.gethostname() and mine[0] == its[0]


class Pulse:
    """The pulse of one rank.

    Args:
        timeout: seconds of silence after which a rank is given up.
        clock: seconds; for tests.
        by_hand: no launcher has started the ranks: there is none to end with, and each has a terminal of its own.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        by_hand: bool = False,
    ) -> None:
        self.rank, self.world, self.timeout, self._clock, self._by_hand = rank, world, timeout, clock, by_hand
        self.end: Callable[[str], None] = end_process
        """What ends this process where the thread that trains cannot: told who is lost."""
        self.more: Callable[[], str] = lambda: "start again"
        """What is said besides of a rank that is lost."""
        self._peers: list[_Peer] = []
        self._listener: socket.socket | None = None
        self._token = ""
        self._waits_since: float | None = None
        self._lost: str | None = None
        self._first_is_lost = False
        self.first_has_said = False
        """Whether the first rank has ended, and has said why."""
        self._closed, self._told = threading.Event(), threading.Event()
        self._parent = os.getppid()
        self._thread: threading.Thread | None = None

    def listen(self, host: str) -> str:
        """On rank 0: be there for the others; returns what they must know, `HOST PORT TOKEN PID NAME`."""
        if host.startswith("127.") or host in ("localhost", "::1"):
            host = "::1" if host == "::1" else "127.0.0.1"
            self._listener = listener(host)
        else:
            self._listener = listener("")
        self._token = secrets.token_hex(16)
        port = self._listener.getsockname()[1]
        return f"{host} {port} {self._token} {os.getpid()} {socket.gethostname()}"

    def begin(self, where: str) -> None:
        """Meet the other ranks, and watch from here on.

        Args:
            where: what `listen` returned on rank 0.

        Raises:
            OSError: rank 0 is not reached, or somebody is missing.
        """
        host, port, token, pid, name = where.split()
        if self.rank:
            connection = socket.create_connection((host, int(port)), timeout=CONNECT)
            hello = {"token": token, "rank": self.rank, "pid": os.getpid(), "host": socket.gethostname()}
            connection.sendall(json.dumps(hello).encode() + b"\n")
            self._peers = [_Peer(0, int(pid), name, connection, self._clock())]
        else:
            self._accept()
        for peer in self._peers:
            peer.connection.setblocking(False)
        self._thread = threading.Thread(target=self._watch, name="pulse", daemon=True)
        self._thread.start()

    def waits(self) -> None:
        """The thread that trains waits for the other ranks from now on."""
        self._waits_since = self._clock()

    def goes_on(self) -> None:
        """It waits no longer."""
        self._waits_since = None

    def found(self) -> str | None:
        """Which rank is lost, in words; waits a moment for it to be noticed."""
        self._told.wait(2 * BEAT + 1)
        self._closed.set()
        return None if self._lost is None else self._in_words

    @property
    def _in_words(self) -> str:
        return f"{self._lost}; {self.more()}"

    @property
    def speaks(self) -> bool:
        """Whether this rank says who is lost: the first of those that are left, unless the first of all has said why it
        ends; or each at its own terminal."""
        return self._by_hand or (self.rank == (1 if self._first_is_lost else 0) and not self.first_has_said)

    def close(self, *, in_order: bool, says_why: bool = False) -> None:
        """This rank ends.

        Args:
            in_order: it needs the others no more; otherwise they shall know that it is lost.
            says_why: it says itself what is wrong.
        """
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout=2 * BEAT + 1)
        for peer in self._peers:
            if in_order or says_why:
                with contextlib.suppress(OSError):
                    peer.connection.sendall(b"bye\n" if in_order else b"why\n")
            peer.connection.close()
        if self._listener is not None:
            self._listener.close()

    # ---- the thread ----------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        """Take the connection of every other rank, and of nobody else."""
        assert self._listener is not None
        self._listener.settimeout(CONNECT)
        while len(self._peers) < self.world - 1:
            connection, _ = self._listener.accept()
            connection.settimeout(CONNECT)
            line = b""
            while b"\n" not in line and len(line) < LONGEST:
                more = connection.recv(LONGEST)
                if not more:
                    break
                line += more
            try:
                line, _, beats = line.partition(b"\n")  # its first beats may have come with it
                hello = json.loads(line)
                known = secrets.compare_digest(str(hello["token"]), self._token)
                peer = _Peer(int(hello["rank"]), int(hello["pid"]), str(hello["host"]), connection, self._clock())
                peer.unread = beats
            except (ValueError, KeyError, TypeError):
                known = False
            if known:
                self._peers.append(peer)
            else:
                connection.close()

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for peer in self._peers:
                selector.register(peer.connection, selectors.EVENT_READ, peer)
            while not self._closed.is_set():
                self._beat()
                began = self._clock()
                while (left := began + BEAT - self._clock()) > 0 and not self._closed.is_set():
                    if not selector.get_map():
                        self._closed.wait(left)
                        break
                    for key, _ in selector.select(left):
                        if not self._hear(key.data):
                            selector.unregister(key.fileobj)
                if self._clock() - began > self.timeout / 2:
                    self._forgive()
                self._judge()
                if self._lost is not None:
                    break
        if self._lost is not None:
            self._tell()
            # Where it is not in a wait that never ends, the thread that trains does this better.
            if not self._closed.wait(GRACE):
                self.end(self._in_words if self.speaks else "")

    def _beat(self) -> None:
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.connection.sendall(b"w\n" if self._waits_long else b".\n")
        if os.getppid() != self._parent and not self._by_hand:
            # Whatever started the ranks is gone, and nobody would ever end them: as if it had asked to.
            self._parent = os.getppid()
            nobody_listens()
            os.kill(os.getpid(), signal.SIGTERM)

    def _hear(self, peer: _Peer) -> bool:
        """Read what a rank says; False if nothing more comes from it."""
        try:
            data = peer.connection.recv(LONGEST)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        if not data:
            if not peer.left and self._lost is None:
                self._lose(peer, "has ended")
            return False
        *lines, peer.unread = (peer.unread + data).split(b"\n")
        for line in lines:
            peer.heard = self._clock()
            if line == b"bye":
                peer.left = True
            elif line == b"why":
                peer.said_why = True
            elif line.startswith(b"lost ") and self._lost is None:
                self._lost = line[5:].decode("utf-8", "replace")
            else:
                peer.waits = line == b"w"
        return True

    @property
    def _waits_long(self) -> bool:
        since = self._waits_since
        return since is not None and self._clock() - since > PATIENCE * self.timeout

    def _forgive(self) -> None:
        """This process was stopped itself, perhaps with all others (Ctrl-Z): nobody was silent."""
        for peer in self._peers:
            peer.heard = self._clock()

    def _judge(self) -> None:
        """Find who is silent, or that all wait for each other."""
        now = self._clock()
        for peer in self._peers:
            if not peer.left and now - peer.heard > self.timeout and self._lost is None:
                self._lose(peer, f"has been silent for {self.timeout:g} s")
                if peer.is_here:
                    # It cannot be asked to end, and whoever started it would wait for it.
                    with contextlib.suppress(OSError):
                        os.kill(peer.pid, signal.SIGKILL)
        if self.rank == 0 and self._waits_long and all(peer.waits for peer in self._peers) and self._lost is None:
            self._lost = "all ranks wait for each other"

    def _lose(self, peer: _Peer, what: str) -> None:
        self._first_is_lost = peer.rank == 0
        self.first_has_said = self._first_is_lost and peer.said_why
        self._lost = f"{peer.said} {what}"

    def _tell(self) -> None:
        self._told.set()
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.connection.sendall(b"lost " + str(self._lost).encode() + b"\n")


def listener(host: str, port: int = 0) -> socket.socket:
    """A socket that others connect to.

    Args:
        host: name or address of this machine; empty: all of its addresses, of both kinds where it has them.
        port: 0: any that is free.

    Raises:
        OSError: no such host, or the port is taken.
    """
    if not host and socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # switched off by the system
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    kinds = {kind for kind, *_ in socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)}
    # Where a name means both, the older one: it is what everybody can reach.
    kind = socket.AF_INET if socket.AF_INET in kinds else socket.AF_INET6
    return socket.create_server((host, port), family=kind)


@contextlib.contextmanager
def meeting() -> Iterator[None]:
    """Around the engine's first meeting: who waits in vain for a rank that has never come ends."""
    timer = threading.Timer(MEETING, end_process, [f"the other ranks are not here after {MEETING:g} s"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def end_process(why: str) -> None:
    """End this process where its main thread waits for ever, and say why; empty: another one says it."""
    if why:
        os.write(2, f"error: {why}\n".encode())
    os._exit(1)
