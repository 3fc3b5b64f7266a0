"""A server from its start to its end: its socket, its signals, and what it says of itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gpt_common.errors import Stopped, UserError, watching_signals
from gpt_common.sampling import Batch
from gpt_common.serving.application import Application
from gpt_common.serving.command import ServeCommand
from gpt_common.serving.engine import Answer, Engine, Event
from gpt_common.serving.models import Library, open_library
from gpt_common.training.source import Source
from gpt_common.words import WIDTH, one_line, printable

BACKLOG = 1024
"""Connections that the system keeps until they are taken up."""


def serve(paths: Sequence[Path], command: ServeCommand, open_model: Callable[[Source], Batch], *, twin: str) -> None:
    """Serve models until a signal comes; then finish what is being answered.

    Args:
        open_model: the twin's: what computes of a model. It is called in the one thread that computes.
        twin: its name.

    Raises:
        UserError: no such model, an address that is taken, a missing package.
        Stopped: by SIGINT or SIGTERM, after the last answer.
    """
    _needed()
    library = open_library(paths, latest=command.latest)
    for model in library.models:
        if model.has_other_template:
            said = f"note: {model.name} has a chat template of its own; here its turns are written as ChatML"
            print(printable(said), file=sys.stderr)
    with contextlib.closing(listening(command.host, command.port)) as listener:
        asyncio.run(_serve(library, command, open_model, twin, listener))


async def _serve(
    library: Library,
    command: ServeCommand,
    open_model: Callable[[Source], Batch],
    twin: str,
    listener: socket.socket,
) -> None:
    import uvicorn

    loop = asyncio.get_running_loop()

    def spread(events: Sequence[tuple[Answer, Event]]) -> None:
        for answer, event in events:
            answer.hear(event)

    def post(events: Sequence[tuple[Answer, Event]]) -> None:
        loop.call_soon_threadsafe(spread, events)

    engine = Engine(open_model, post, batch_size=command.batch_size, queue=command.queue, loaded=command.loaded)
    await asyncio.to_thread(engine.start, library.models[0])

    class Server(uvicorn.Server):
        """Whose signals are the house's."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        Application(library, engine, command, twin).asgi(),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # what goes wrong in the application, it says itself
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=5,
        # What is being answered has its own limit; this is for clients that do not read.
        timeout_graceful_shutdown=int(command.time_limit) + 5,
    )
    server = Server(config)
    stopped: list[int] = []

    def remember(number: int) -> None:
        stopped.append(number)
        server.should_exit = True

    try:
        with watching_signals(remember):
            for line in announcement(library, command, twin, listener.getsockname()[1]):
                print(line, flush=True)
            await server.serve(sockets=[listener])
            await asyncio.to_thread(engine.stop)
    finally:
        engine.stop(at_once=True)  # where a second Ctrl-C breaks that off
    if stopped:
        raise Stopped(stopped[0])


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; raises UserError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        # The message of `create_server` says the address again.
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise UserError(
            f"cannot listen at {one_line(host)} port {port}: {reason}; another --port, or 0 for a free one"
        ) from None


def announcement(library: Library, command: ServeCommand, twin: str, port: int) -> list[str]:
    """What is served where, and its limits; lines of at most 80 columns."""
    host = f"[{command.host}]" if ":" in command.host else command.host
    first, more = library.models[0], len(library.models) - 1
    step = f"step {first.manifest.step}, {twin}" + (f", and {more} more" if more else "")
    name = one_line(first.name)
    room = WIDTH - len(step) - 12
    shown = name if len(name) <= room else name[: room - 3] + "..."
    return [
        f"http://{host}:{port}",
        f"  model   {shown}, {step}",
        f"  limits  {command.max_tokens} tokens and {command.time_limit:g} s an answer, {command.batch_size} at once, "
        f"{command.queue} waiting",
        "  Ctrl-C ends it, after the answers that are being written",
    ]


def _needed() -> None:
    try:
        import starlette
        import uvicorn
    except ImportError:
        raise UserError("serving needs starlette and uvicorn: pip install -e '.[serve]'") from None
    _: Any = (starlette, uvicorn)
