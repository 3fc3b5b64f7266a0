"""What requests ask for, read with suspicion: OpenAI's parameters, in bounds; none is passed over in silence."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpt_common.commands import SampleSettings
from gpt_common.data.conversations.reading import ROLES, Message
from gpt_common.errors import nearest
from gpt_common.files import parse_json
from gpt_common.serving.forms import form_of
from gpt_common.serving.refusals import Refused, wrong
from gpt_common.structured import Form

if TYPE_CHECKING:
    from starlette.requests import Request

LARGEST_BODY = 1 << 21
"""Bytes of a request."""
BODY_SECONDS = 20.0
"""In which it must have arrived."""
MOST_CHOICES, MOST_PROMPTS, MOST_STOPS, LONGEST_STOP, MOST_LOGPROBS = 16, 256, 16, 1000, 20
MOST_MESSAGES = 1000
LARGEST_SEED = 1 << 63
DEFAULT_TOKENS = 16
"""Of a completion; OpenAI's."""

Prompt = str | tuple[int, ...]

HARMLESS = {"user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier"}
"""Parameters that change nothing in an answer."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "suffix": ("",),
    "store": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
}
"""Parameters that this server does not have, and their values that ask for nothing."""
SHARED = {"model", "max_tokens", "temperature", "top_p", "top_k", "n", "stop", "seed", "stream", "stream_options"}
SHARED |= {"logprobs", "adapter", "return_token_ids", "response_format"}
OF_COMPLETIONS = SHARED | {"prompt", "echo"}
OF_CHATS = SHARED | {"messages", "max_completion_tokens", "top_logprobs"}


@dataclass(frozen=True, kw_only=True)
class Order:
    """What one request asks for."""

    model: str | None
    prompts: tuple[Prompt, ...] = ()
    """Texts or token ids, of a completion."""
    messages: tuple[Message, ...] | None = None
    """Of a chat."""
    settings: SampleSettings
    """Its `max_new_tokens` is at least 1; see `tokens`."""
    tokens: int
    """New ones, at most; 0: none."""
    choices: int
    """Answers to each prompt."""
    stops: tuple[str, ...]
    seed: int | None
    stream: bool
    with_usage: bool
    """At the end of a stream."""
    logprobs: int | None
    """How many of the likeliest tokens are told at each place; None: not even the chosen one's probability."""
    echo: bool = False
    adapter: bool = True
    """False: of an adapter, its base."""
    token_ids: bool = False
    """The ids of tokens are told as well."""
    form: Form | None = None
    """What the answers are held to."""


async def body_of(request: Request) -> bytes:
    """The body of a request of JSON, no larger than it may be; raises Refused."""
    from starlette.requests import ClientDisconnect

    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, "the body must be JSON: Content-Type: application/json", code="content_type")
    too_large = Refused(413, f"the body is larger than {LARGEST_BODY:,} bytes", code="body_too_large")
    said = request.headers.get("content-length", "0")
    if said.isdigit() and int(said[:19]) > LARGEST_BODY:
        raise too_large
    parts, size = [], 0

    async def read() -> None:
        nonlocal size
        async for part in request.stream():
            size += len(part)
            if size > LARGEST_BODY:
                raise too_large
            parts.append(part)

    try:
        await asyncio.wait_for(read(), BODY_SECONDS)
    except (TimeoutError, ClientDisconnect):
        raise Refused(408, f"the body did not arrive within {BODY_SECONDS:g} seconds", code="body_too_slow") from None
    return b"".join(parts)


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object in a request; raises Refused."""
    try:
        document = parse_json(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        what = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refused(400, f"the body is not JSON: {what[:200]}", code="invalid_json") from None
    if not isinstance(document, dict):
        raise Refused(400, "the body is JSON, but no object", code="invalid_json")
    return {name: value for name, value in document.items() if value is not None}


def completion_order(document: dict[str, Any], most_tokens: int) -> Order:
    """A request for `/v1/completions`; raises Refused."""
    _check_names(document, OF_COMPLETIONS)
    if "prompt" not in document:
        raise wrong("prompt", "`prompt` is missing: a text, token ids, or a list of either")
    echo = _switch(document, "echo")
    logprobs = _whole(document, "logprobs", None, 0, MOST_LOGPROBS)
    return _order(document, most_tokens, DEFAULT_TOKENS, 0 if echo else 1, logprobs, _prompts(document["prompt"]), echo)


def chat_order(document: dict[str, Any], most_tokens: int) -> Order:
    """A request for `/v1/chat/completions`; raises Refused."""
    _check_names(document, OF_CHATS)
    messages = _messages(document.get("messages"))
    if "max_completion_tokens" in document:
        document = {**document, "max_tokens": document["max_completion_tokens"]}
    wanted, top = _switch(document, "logprobs"), _whole(document, "top_logprobs", None, 0, MOST_LOGPROBS)
    if top is not None and not wanted:
        raise wrong("top_logprobs", "`top_logprobs` needs `logprobs` to be true")
    return _order(document, most_tokens, most_tokens, 1, (top or 0) if wanted else None, (), False, messages)


def _order(
    document: dict[str, Any],
    most_tokens: int,
    tokens: int,
    fewest: int,
    logprobs: int | None,
    prompts: tuple[Prompt, ...],
    echo: bool,
    messages: tuple[Message, ...] | None = None,
) -> Order:
    made = _whole(document, "max_tokens", min(tokens, most_tokens), fewest, most_tokens)
    choices = _whole(document, "n", 1, 1, MOST_CHOICES)
    assert made is not None
    assert choices is not None
    if (best := document.get("best_of")) is not None and best not in (1, choices):
        raise wrong("best_of", "`best_of` is not supported: ask for `n` answers and choose")
    stream = _switch(document, "stream")
    return Order(
        model=named(document, "model"),
        prompts=prompts,
        messages=messages,
        settings=SampleSettings(
            max_new_tokens=max(made, 1),
            temperature=_number(document, "temperature", 1.0, 0, 100),
            top_k=_whole(document, "top_k", 0, 0, 1 << 31) or 0,
            top_p=_number(document, "top_p", 1.0, 1e-9, 1),
        ),
        tokens=made,
        choices=choices,
        stops=_stops(document.get("stop")),
        seed=_whole(document, "seed", None, -LARGEST_SEED, LARGEST_SEED),
        stream=stream,
        with_usage=_with_usage(document, stream),
        logprobs=logprobs,
        echo=echo,
        adapter=_switch(document, "adapter", True),
        token_ids=_switch(document, "return_token_ids"),
        form=form_of(document.get("response_format")),
    )


def named(document: dict[str, Any], param: str) -> str | None:
    """The name of a model in a request, if there is one; raises Refused."""
    model = document.get(param)
    if model is not None and not isinstance(model, str):
        raise wrong(param, f"`{param}` must be a name; GET /v1/models lists them")
    return model


def _check_names(document: dict[str, Any], known: Collection[str]) -> None:
    for name, value in document.items():
        if name in NEUTRAL and (name == "best_of" or any(value == other for other in NEUTRAL[name])):
            continue
        if name in NEUTRAL:
            raise wrong(name, f"`{name}` is not supported by this server: leave it out", code="unsupported")
        if name not in known and name not in HARMLESS:
            hint = nearest(name[:40], known)
            raise wrong(name[:100], f"unknown parameter {_shown(name)}: {hint}", code="unknown_parameter")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _whole(document: dict[str, Any], name: str, default: int | None, low: int, high: int) -> int | None:
    value = document.get(name, default)
    if value is None:
        return None
    if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
        raise wrong(name, f"`{name}` is {_shown(value)}: it must be a whole number")
    if not low <= value <= high:
        raise wrong(name, f"`{name}` is {_shown(value)}: it must be from {low} to {high}")
    return int(value)


def _number(document: dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = document.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(name, f"`{name}` is {_shown(value)}: it must be a number")
    if not low <= value <= high:
        raise wrong(name, f"`{name}` is {_shown(value)}: it must be from {low:g} to {high:g}")
    return float(value)


def _switch(document: dict[str, Any], name: str, default: bool = False) -> bool:
    value = document.get(name, default)
    if not isinstance(value, bool):
        raise wrong(name, f"`{name}` is {_shown(value)}: it must be true or false")
    return value


def _with_usage(document: dict[str, Any], stream: bool) -> bool:
    options = document.get("stream_options")
    if options is None:
        return False
    if not stream:
        raise wrong("stream_options", "`stream_options` is for a request with `stream`")
    if not isinstance(options, dict) or not options.keys() <= {"include_usage", "include_obfuscation"}:
        raise wrong("stream_options", '`stream_options` may say {"include_usage": true}, and no more')
    return _switch({name: value for name, value in options.items() if value is not None}, "include_usage")


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise wrong("stop", "`stop` must be a text or a list of texts")
    if len(stops) > MOST_STOPS or any(len(stop) > LONGEST_STOP for stop in stops):
        raise wrong("stop", f"`stop` may have {MOST_STOPS} texts of {LONGEST_STOP} characters")
    if "" in stops:
        raise wrong("stop", "`stop` has an empty text, which is found everywhere")
    for stop in stops:
        _check_text("stop", stop)
    return tuple(stops)


def _check_text(param: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise wrong(
            param, f"`{param}` has half a surrogate pair at character {error.start}, which is no text"
        ) from None


def _prompts(value: Any) -> tuple[Prompt, ...]:
    """A text, ids, texts, or several of ids."""
    several = value if isinstance(value, list) and value and not is_id(value[0]) else [value]
    if len(several) > MOST_PROMPTS:
        raise wrong("prompt", f"`prompt` has {len(several)} prompts: {MOST_PROMPTS} at once, at most")
    return tuple(_prompt(each) for each in several)


def _prompt(value: Any) -> Prompt:
    if isinstance(value, str):
        _check_text("prompt", value)
        return value
    if isinstance(value, list) and value and all(map(is_id, value)):
        return tuple(value)
    raise wrong("prompt", f"`prompt` {_shown(value)} is neither a text nor a list of token ids, nor a list of either")


def is_id(value: Any) -> bool:
    """Whether a value of JSON could be a token id."""
    return isinstance(value, int) and not isinstance(value, bool)


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise wrong("messages", "`messages` must be a list of messages, each with `role` and `content`")
    if len(value) > MOST_MESSAGES:
        raise wrong("messages", f"`messages` has {len(value)} of them: {MOST_MESSAGES}, at most")
    return tuple(_message(message, f"messages[{i}]") for i, message in enumerate(value))


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise wrong(where, f"`{where}` must be an object with `role` and `content`")
    others = [name for name, held in value.items() if name not in ("role", "content", "name", "refusal") and held]
    if others:
        raise wrong(where, f"`{where}` has {_shown(others[0])}, which this server does not know", code="unsupported")
    role = value.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise wrong(f"{where}.role", f"the role {_shown(role)} is none: choose from {', '.join(ROLES)}")
    return Message(role, _content(value.get("content"), f"{where}.content"))


def _content(value: Any, where: str) -> str:
    parts: Sequence[Any] = value if isinstance(value, list) else [{"type": "text", "text": value}]
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise wrong(where, f"`{where}` must be a text, or a list of parts of the type text")
    content = "".join(map(str, texts))
    _check_text(where, content)
    return content
