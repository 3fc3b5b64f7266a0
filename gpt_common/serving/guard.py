"""Who may ask: before anything is read, every request's host, origin and token are looked at.

A page from elsewhere that a person has open could ask a server on their machine, directly or under a name of its own
that it lets point here (DNS rebinding). The first says where it comes from (`Origin`, `Sec-Fetch-Site`), the second
asks for a host that is not this one.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from gpt_common.serving.command import host_of, is_loopback
from gpt_common.serving.refusals import Refused

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
"""Of every answer."""
OPEN = {"/", "/page.css", "/page.js", "/health"}
"""What needs no token: the page asks for it, and holds nothing of a model."""


class Guard:
    """An application behind its checks.

    Args:
        app: what answers those who may ask.
        refuse: answers the others.
        host: what is listened at.
        secret: what clients must say; None: nothing.
    """

    def __init__(
        self,
        app: App,
        refuse: Callable[[Refused, Scope, Receive, Send], Awaitable[None]],
        *,
        host: str,
        secret: str | None,
    ) -> None:
        self.app, self.refuse, self.host, self.secret = app, refuse, host, secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        try:
            check(scope["path"], headers, self.host, self.secret)
        except Refused as refused:
            await self.refuse(refused, scope, receive, with_headers)
            return
        await self.app(scope, receive, with_headers)


def check(path: str, headers: Mapping[str, str], host: str, secret: str | None) -> None:
    """Refuse who may not ask.

    Args:
        headers: by names in small letters.
        host: what is listened at.
        secret: what clients must say, if anything.

    Raises:
        Refused: 403, 401.
    """
    asked = host_of(headers.get("host", ""))
    # Who knows the token may call the server by any name: a rebound page does not know it.
    if asked is None or not (secret is not None or is_loopback(asked) or asked == host.lower()):
        raise Refused(
            403, "the Host header names another server than this one: ask for localhost", code="host_not_allowed"
        )
    if (origin := headers.get("origin")) is not None:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or parts.netloc.lower() != headers["host"].lower():
            raise Refused(403, "a page from another site may not use this server", code="origin_not_allowed")
    site = headers.get("sec-fetch-site", "none")
    # A link that is followed shows the page, and no more.
    if site not in ("none", "same-origin") and not (path == "/" and headers.get("sec-fetch-mode") == "navigate"):
        raise Refused(403, "a page from another site may not use this server", code="origin_not_allowed")
    if secret is not None and path not in OPEN:
        said = headers.get("authorization", "")
        kind, _, token = said.partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), secret.encode()):
            raise Refused(
                401,
                "this server wants a token: Authorization: Bearer TOKEN",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
