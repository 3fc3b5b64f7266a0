"""Answers in OpenAI's JSON: whole, and in pieces as they are written."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt_common.serving.protocol import Order
from gpt_common.serving.writing import Likely, Piece, Said


@dataclass
class Choice:
    """One of the answers to a request, as far as it was heard."""

    index: int
    prompt: Sequence[int]
    pieces: list[Piece] = field(default_factory=list)
    reason: str | None = None
    tokens: int = 0
    """That were made."""
    begun: bool = False
    """Something of it was sent."""


class Form:
    """How the answers to one request are written.

    Args:
        order: what was asked for.
        model: the name of who answers.
    """

    def __init__(self, order: Order, model: str) -> None:
        self.order, self.model = order, model
        self.chat = order.messages is not None
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(12)
        self.created = int(time.time())

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The answer to a request that is not streamed."""
        found = []
        for choice in choices:
            joined = Piece()
            for piece in choice.pieces:
                joined = added(joined, piece)
            found.append(self._choice(choice, joined))
        return {**self._head("chat.completion"), "choices": found, "usage": usage(choices)}

    def beginning(self, choice: Choice) -> list[str]:
        """Events before the first piece of a choice."""
        if not self.chat:
            return []
        delta = {"index": choice.index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return [self._event({**delta, "logprobs": None})]

    def piece(self, choice: Choice, piece: Piece) -> str:
        """The event of a piece."""
        return self._event(self._choice(choice, piece, part=True))

    def ending(self, choice: Choice) -> str:
        """The event that says why a choice ended."""
        return self._event(self._choice(choice, Piece(), part=True))

    def last(self, choices: Sequence[Choice]) -> list[str]:
        """Events behind all choices."""
        events = []
        if self.order.with_usage:
            document = {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(choices)}
            events.append(event(document))
        return [*events, "data: [DONE]\n\n"]

    def _event(self, choice: dict[str, Any]) -> str:
        more = {"usage": None} if self.order.with_usage else {}
        return event({**self._head("chat.completion.chunk"), "choices": [choice], **more})

    def _head(self, chat_object: str) -> dict[str, Any]:
        kind = chat_object if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _choice(self, choice: Choice, piece: Piece, *, part: bool = False) -> dict[str, Any]:
        document: dict[str, Any] = {"index": choice.index, "finish_reason": choice.reason}
        if not self.chat:
            document["text"] = piece.text
            document["logprobs"] = self._logprobs(piece.tokens)
        else:
            if part:
                document["delta"] = {"content": piece.text} if piece.text or piece.tokens else {}
            else:
                document["message"] = {"role": "assistant", "content": piece.text, "refusal": None}
            document["logprobs"] = self._chat_logprobs(piece.tokens)
        if self.order.token_ids:
            document["token_ids"] = piece.ids
            if not choice.begun:
                document["prompt_token_ids"] = list(choice.prompt)
        choice.begun = True
        return document

    def _logprobs(self, said: Sequence[Said]) -> dict[str, Any] | None:
        if self.order.logprobs is None:
            return None
        document: dict[str, Any] = {
            "tokens": [one.token.text for one in said],
            "token_logprobs": [one.token.logprob for one in said],
            "top_logprobs": [
                {other.text: other.logprob for other in one.top} if one.token.logprob is not None else None
                for one in said
            ]
            if self.order.logprobs
            else None,
            "text_offset": [one.offset for one in said],
        }
        if self.order.token_ids:
            # OpenAI's form names tokens by their text, and several may have the same.
            document["alternatives"] = [[_with_id(other) for other in one.top] for one in said]
        return document

    def _chat_logprobs(self, said: Sequence[Said]) -> dict[str, Any] | None:
        if self.order.logprobs is None:
            return None
        told = [
            {**self._chat_token(one.token), "top_logprobs": [self._chat_token(other) for other in one.top]}
            for one in said
        ]
        return {"content": told, "refusal": None}

    def _chat_token(self, token: Likely) -> dict[str, Any]:
        document = {"token": token.text, "logprob": token.logprob, "bytes": list(token.bytes)}
        return {**document, "id": token.id} if self.order.token_ids else document


def added(one: Piece, other: Piece) -> Piece:
    """Two pieces as one."""
    return Piece(one.text + other.text, one.tokens + other.tokens, one.ids + other.ids)


def usage(choices: Iterable[Choice]) -> dict[str, int]:
    """Tokens of the prompts, each counted once, and of the answers."""
    prompts = {id(choice.prompt): len(choice.prompt) for choice in choices}
    asked, made = sum(prompts.values()), sum(choice.tokens for choice in choices)
    return {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}


def event(document: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"


def _with_id(token: Likely) -> dict[str, Any]:
    return {"id": token.id, "token": token.text, "logprob": token.logprob}
