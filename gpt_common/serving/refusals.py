"""What a client is told where it gets no answer: OpenAI's form of an error."""

from __future__ import annotations

from typing import Any

from gpt_common.words import message

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refused(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        text: what is wrong, and what to do.
        param: which parameter is wrong.
        code: a word for programs.
        headers: that go with it.
    """

    def __init__(
        self,
        status: int,
        text: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.text = message(text)
        self.param = param
        self.code = code
        self.headers = headers or {}

    @property
    def document(self) -> dict[str, Any]:
        """OpenAI's JSON of an error."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.text, "type": kind, "param": self.param, "code": self.code}}


def wrong(param: str, text: str, *, code: str | None = None) -> Refused:
    """A parameter that is not as it must be."""
    return Refused(400, text, param=param, code=code)
