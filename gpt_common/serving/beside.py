"""The other twin's server on this machine, whose models the page shows beside this one's: asked for the page."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from gpt_common.serving.protocol import body_of
from gpt_common.serving.refusals import Refused
from gpt_common.serving.streaming import streamed

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
PIECE = 1 << 16


class Beside:
    """A server at a port of this machine.

    Args:
        port: where it listens.
        seconds: that it may stay silent.
    """

    def __init__(self, port: int, seconds: float) -> None:
        self.port, self.seconds = port, seconds

    async def models(self, request: Request) -> Response:
        """Its `GET /v1/models`."""
        return await self._passed_on(request, b"")

    async def completions(self, request: Request) -> Response:
        """Its `POST /v1/completions` and `/v1/chat/completions`."""
        return await self._passed_on(request, await body_of(request))

    async def _passed_on(self, request: Request, body: bytes) -> Response:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=self.seconds)
        path = request.url.path.removeprefix("/beside")
        headers = {"Content-Type": "application/json"} if body else {}
        if (said := request.headers.get("authorization")) is not None:
            headers["Authorization"] = said
        try:
            await asyncio.to_thread(connection.request, request.method, path, body or None, headers)
            answer = await asyncio.to_thread(connection.getresponse)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Refused(502, f"the server beside this one, at port {self.port}, does not answer: {error}") from None

        async def pieces() -> AsyncGenerator[str | bytes, None]:
            try:
                while piece := await asyncio.to_thread(answer.read1, PIECE):
                    yield piece
            except (OSError, http.client.HTTPException):
                return
            finally:
                connection.close()

        return streamed(pieces(), answer.status, answer.getheader("Content-Type") or "application/json")
