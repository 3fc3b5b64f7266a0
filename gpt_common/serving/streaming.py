"""An answer that is sent as it is made, and ends when nobody listens any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from gpt_common.serving.guard import Receive, Scope, Send

if TYPE_CHECKING:
    from starlette.responses import Response


def streamed(
    pieces: AsyncGenerator[str | bytes, None], status: int = 200, media_type: str = "text/event-stream"
) -> Response:
    """A response of pieces, which are closed when all are sent, or the client has left."""
    from starlette.responses import Response

    class Stream(Response):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
            headers = [(b"content-type", media_type.encode("latin-1"))]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            sending = asyncio.ensure_future(_send(pieces, send))
            leaving = asyncio.ensure_future(until_left(receive))
            try:
                await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if sending.done():
                    sending.result()
            finally:
                leaving.cancel()
                sending.cancel()
                await asyncio.gather(sending, leaving, return_exceptions=True)
                await pieces.aclose()

    return Stream(status_code=status)


async def _send(pieces: AsyncGenerator[str | bytes, None], send: Send) -> None:
    async for piece in pieces:
        raw = piece.encode("utf-8", "replace") if isinstance(piece, str) else piece
        await send({"type": "http.response.body", "body": raw, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def until_left(receive: Receive) -> None:
    """Wait until the client has gone; its request must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
