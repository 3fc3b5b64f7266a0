"""Conversations in files of JSON lines, as mlx-lm, OpenAI and transformers have them, to one form of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_common.errors import UserError, nearest
from gpt_common.files import open_file, parse_json
from gpt_common.words import in_bytes

ROLES = ("system", "developer", "user", "assistant", "tool")
LONGEST_LINE = 1 << 24
"""Bytes of one example."""
MOST_MESSAGES = 10_000
"""In one example."""
LEFT_OUT = ("function_call", "reasoning_content", "reasoning", "thinking", "refusal", "audio")
"""What a message may say besides, and what would be lost in silence."""
MARKS = ("\ue000", "\ue001")
"""Around an answer while a template writes it; both are for private use, and no text may have them."""


@dataclass(frozen=True)
class Message:
    """What one side says."""

    role: str
    content: str
    learnt: bool = True
    """Of an answer; OpenAI's `weight` 0 has it read only."""


@dataclass(frozen=True)
class Conversation:
    """One line of a file."""

    where: str
    """FILE:LINE, for errors."""
    messages: tuple[Message, ...] = ()
    text: str | None = None
    """A text without sides, all of which is to be learnt; then there are no messages."""
    tools: str | None = None
    """JSON of the tools that may be called."""


def read_conversations(files: Sequence[Path]) -> Iterator[Conversation]:
    """The examples of all files, line by line; empty lines are none.

    A line has `messages` (role and content, or tool_calls), `prompt` and `completion`, or `text`.

    Raises:
        UserError: unreadable, or a line that is no example; names file, line and what is wrong.
    """
    for path in files:
        try:
            with open_file(path) as file:
                number = 0
                while line := file.readline(LONGEST_LINE + 1):
                    number += 1
                    if line.strip():
                        yield _example(line.removeprefix(b"\xef\xbb\xbf"), f"{path}:{number}")
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None


def _example(line: bytes, where: str) -> Conversation:
    if len(line) > LONGEST_LINE:
        raise UserError(f"{where}: the line is longer than {in_bytes(LONGEST_LINE)}: one example to a line")
    try:
        document = parse_json(line.decode("utf-8"))
    except RecursionError:
        raise UserError(f"{where}: nested too deeply") from None
    except UnicodeDecodeError:
        raise UserError(f"{where}: not UTF-8") from None
    except ValueError as error:
        raise UserError(f"{where}: not a JSON object ({error})") from None
    if not isinstance(document, dict):
        raise UserError(f"{where}: {_kind(document)}, where a JSON object with `messages`, `prompt` or `text` belongs")
    try:
        return _conversation(document, where)
    except _Wrong as wrong:
        raise UserError(f"{where}: {wrong}") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply") from None


class _Wrong(Exception):
    """What is wrong with an example."""


def _conversation(document: dict[str, Any], where: str) -> Conversation:
    if "messages" in document:
        messages = _messages(document["messages"])
    elif "prompt" in document or "completion" in document:
        for key in ("prompt", "completion"):
            if key not in document:
                raise _Wrong(f"no `{key}`: an instruction has `prompt` and `completion`")
        messages = (*_side(document["prompt"], "user"), *_side(document["completion"], "assistant"))
    elif "text" in document:
        text = _text(document["text"], "text")
        if not text:
            raise _Wrong("`text` is empty")
        return Conversation(where, text=text)
    else:
        keys = ", ".join(map(repr, list(document)[:5])) or "none"
        raise _Wrong(f"no `messages`, no `prompt` and `completion`, no `text` (its keys: {keys[:100]})")
    tools = document.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise _Wrong(f"`tools` is {_kind(tools)}, where a list belongs")
    if document.get("functions"):
        raise _Wrong("`functions` is OpenAI's older form, which is not written out: write them as `tools`")
    if not any(message.role == "assistant" for message in messages):
        raise _Wrong("no answer: no message is the assistant's")
    said = _text(json.dumps(tools, ensure_ascii=False), "text of tools") if tools else None
    return Conversation(where, messages, tools=said)


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise _Wrong(f"`messages` is {_kind(value)}, where a list of messages belongs")
    if len(value) > MOST_MESSAGES:
        raise _Wrong(f"{len(value):,} messages, more than {MOST_MESSAGES:,}")
    return tuple(_message(message, f"message {i}") for i, message in enumerate(value, 1))


def _message(value: Any, what: str) -> Message:
    if not isinstance(value, dict):
        raise _Wrong(f"{what} is {_kind(value)}, where an object with `role` and `content` belongs")
    role, content, calls = value.get("role"), value.get("content"), value.get("tool_calls")
    if not isinstance(role, str):
        raise _Wrong(f"the role of {what} is {_kind(role)}, where a word belongs: {', '.join(ROLES)}")
    if role not in ROLES:
        raise _Wrong(f"the role of {what} is {role[:40]!r}: {nearest(role[:40], ROLES)}")
    if calls is not None and not isinstance(calls, list):
        raise _Wrong(f"the tool_calls of {what} are {_kind(calls)}, where a list belongs")
    written = [_call(call, what) for call in calls or ()]
    if lost := next((key for key in LEFT_OUT if value.get(key)), None):
        hint = "write it as tool_calls" if lost == "function_call" else "write it into content, or take it out"
        raise _Wrong(f"{what} has `{lost}`, which is not written out: {hint}")
    weight = value.get("weight", 1)
    if type(weight) not in (int, float, type(None)) or weight not in (0, 1, None):
        raise _Wrong(f"the weight of {what} must be 0 (only read) or 1 (learnt)")
    said = "" if content is None and written else _text(content, f"content of {what}")
    if written:
        said = _text("\n".join([said, *written] if said else written), f"content of {what}")
    return Message(role, said, weight != 0)


def _call(value: Any, what: str) -> str:
    """A call of a tool as text, as Qwen and Hermes write it."""
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _Wrong(f"a call of {what} has no function with a name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):  # OpenAI's are JSON within JSON
        try:
            arguments = parse_json(arguments)
        except ValueError as error:
            raise _Wrong(f"the arguments of a call of {what} are no JSON ({error})") from None
    call = json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"


def _side(value: Any, role: str) -> tuple[Message, ...]:
    return _messages(value) if isinstance(value, list) else (Message(role, _text(value, role)),)


def _text(value: Any, what: str) -> str:
    if isinstance(value, list):  # parts, of which text is one kind
        said = [part.get("text") for part in value if isinstance(part, dict) and part.get("type") == "text"]
        parts = [part for part in said if isinstance(part, str)]
        if len(parts) != len(value):
            raise _Wrong(f"the {what} has parts that are no text")
        value = "".join(parts)
    if not isinstance(value, str):
        raise _Wrong(f"the {what} is {_kind(value)}, where text belongs")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Wrong(f"the {what} has half a surrogate pair, which is no character") from None
    if any(mark in value for mark in MARKS):
        raise _Wrong(f"the {what} has U+E000 or U+E001, which are for private use and mark answers here")
    return value


def _kind(value: Any) -> str:
    """`a list`, for errors; what it holds may be endless."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}
    return "an empty list" if value == [] else names.get(type(value), "a number")
