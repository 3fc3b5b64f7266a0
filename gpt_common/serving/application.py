"""The addresses of a server and what happens at each; see `guard.py` for who may ask."""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_common.data.tokenizers import ExtendedTokenizer
from gpt_common.drawing import css
from gpt_common.errors import UserError
from gpt_common.keyed import draws
from gpt_common.sampling import Continuation
from gpt_common.serving import answers
from gpt_common.serving.answers import Choice, Form
from gpt_common.serving.beside import Beside
from gpt_common.serving.command import ServeCommand
from gpt_common.serving.engine import Answer, Ended, Engine, Event
from gpt_common.serving.forms import compiled
from gpt_common.serving.guard import Guard, Receive, Scope, Send
from gpt_common.serving.models import Library, Served
from gpt_common.serving.protocol import Order, body_of, chat_order, completion_order, is_id, named, parsed
from gpt_common.serving.refusals import Refused, wrong
from gpt_common.serving.streaming import streamed, until_left
from gpt_common.serving.writing import Piece, Writer
from gpt_common.structured import CompiledForm

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

PAGE = Path(__file__).parent / "page"

Heard = tuple[int, Event]


class Application:
    """What answers.

    Args:
        library: the models.
        engine: what writes.
        command: limits.
        twin: which framework computes, for the page.
    """

    def __init__(self, library: Library, engine: Engine, command: ServeCommand, twin: str) -> None:
        self.library, self.engine, self.command, self.twin = library, engine, command, twin
        self.beside = None if command.beside is None else Beside(command.beside, command.time_limit)
        self.began = int(time.time())

    # ---- what there is -----------------------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:  # noqa: ARG002 (as the others)
        """`GET /v1/models`."""
        entries = [await asyncio.to_thread(self._entry, model) for model in self.library.models]
        return _json({"object": "list", "data": entries, "beside": self.beside is not None})

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/NAME`."""
        return _json(self._entry(self.library.find(request.path_params["name"])))

    def _entry(self, model: Served) -> dict[str, Any]:
        said = {"id": model.name, "object": "model", "created": self.began, "owned_by": "mlx-torch-gpt"}
        return {**said, "twin": self.twin, "max_tokens": self.command.max_tokens, **model.details()}

    async def health(self, request: Request) -> Response:  # noqa: ARG002
        """`GET /health`."""
        writing, waiting = self.engine.load
        return _json({"status": "ok", "writing": writing, "waiting": waiting})

    async def tokenizer_info(self, request: Request) -> Response:  # noqa: ARG002
        """`GET /tokenizer_info`, by which lm-eval finds out that it needs no tokenizer of its own."""
        tokenizer = self.library.models[0].tokenizer
        end = None if tokenizer.end_of_text is None else tokenizer.decode([tokenizer.end_of_text])
        return _json({"tokenizer_class": tokenizer.kind, "eos_token": end, "bos_token": None, "pad_token": None})

    async def tokenize(self, request: Request) -> Response:
        """`POST /tokenize`, as vLLM has it: `prompt` to token ids."""
        document = parsed(await body_of(request))
        model = self.library.find(named(document, "model"))
        if not isinstance(text := document.get("prompt"), str):
            raise wrong("prompt", "`prompt` must be a text")
        ids = await asyncio.to_thread(model.encode, text, "prompt", written=True)
        return _json({"tokens": ids, "count": len(ids), "max_model_len": model.block_size})

    async def detokenize(self, request: Request) -> Response:
        """`POST /detokenize`: `tokens` to text."""
        document = parsed(await body_of(request))
        model = self.library.find(named(document, "model"))
        ids = document.get("tokens")
        if not isinstance(ids, list) or not all(is_id(token) for token in ids):
            raise wrong("tokens", "`tokens` must be a list of token ids")
        try:
            return _json({"prompt": model.tokenizer.decode(ids)})
        except UserError as error:
            raise wrong("tokens", f"`tokens`: {error}") from None

    # ---- answers -----------------------------------------------------------------------------------------------------

    async def completions(self, request: Request) -> Response:
        """`POST /v1/completions`."""
        return await self._answer(request, completion_order)

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        return await self._answer(request, chat_order)

    async def _answer(self, request: Request, read: Callable[[dict[str, Any], int], Order]) -> Response:
        order = read(parsed(await body_of(request)), self.command.max_tokens)
        model = self.library.find(order.model)
        if not order.adapter:
            if model.base is None:
                raise wrong("adapter", f"{model.name} has no adapter that could be left out")
            model = model.base
        prompts = await asyncio.to_thread(self._prompts, order, model)
        held_to = None if order.form is None else await asyncio.to_thread(compiled, order.form, model.tokenizer)
        heard: asyncio.Queue[Heard] = asyncio.Queue()
        choices = [Choice(i, prompts[i // order.choices]) for i in range(len(prompts) * order.choices)]
        writing = self._submit(order, model, choices, held_to, heard)
        form = Form(order, model.name)
        if order.stream:
            return streamed(self._stream(form, choices, writing, heard))
        asking = asyncio.ensure_future(_all_heard(choices, heard))
        leaving = asyncio.ensure_future(until_left(request.receive))
        try:
            await asyncio.wait({asking, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise Refused(499, "the client has left")  # which nobody hears
            asking.result()
        finally:
            for task in (asking, leaving):
                task.cancel()
            _let_go(writing)
        return _json(form.whole(choices))

    def _prompts(self, order: Order, model: Served) -> list[list[int]]:
        """Token ids of every prompt; raises Refused where one does not fit the model."""
        if order.messages is not None:
            said = sum(len(message.content) for message in order.messages)
            if said > model.longest_prompt:
                raise too_long(f"has {said} characters", model)
            found, param = [model.prompt_of(order.messages)], "messages"
        else:
            param = "prompt"
            for one in order.prompts:
                if isinstance(one, str) and len(one.encode()) > model.longest_prompt:
                    raise too_long(f"has {len(one)} characters", model)
            # As `sample --prompt`: what was added for a template is there to be said, by its name.
            own = isinstance(model.tokenizer, ExtendedTokenizer)
            texts = order.prompts
            found = [model.encode(one, param, written=own) if isinstance(one, str) else list(one) for one in texts]
        size, block = model.tokenizer.vocab_size, model.block_size
        for ids in found:
            if not ids:
                raise wrong(param, "the prompt is empty: give at least one character")
            if len(ids) > block:
                raise too_long(f"has {len(ids)} tokens", model)
            if any(not 0 <= token < size for token in ids):
                raise wrong(param, f"`{param}` has a token id outside the vocabulary: they are below {size}")
        return found

    def _submit(
        self,
        order: Order,
        model: Served,
        choices: Sequence[Choice],
        form: CompiledForm | None,
        heard: asyncio.Queue[Heard],
    ) -> list[Answer]:
        deadline = time.monotonic() + self.command.time_limit
        seed = secrets.randbits(62) if order.seed is None else order.seed
        writing = [
            Answer(
                model,
                # The first answer to a prompt is what `sample --seed` says first, the second what it says second.
                Continuation(
                    list(choice.prompt),
                    order.settings,
                    draws(seed, choice.index % order.choices),
                    None if form is None else form.begin(),
                ),
                Writer(model.tokenizer, order.stops),
                order.tokens,
                deadline,
                lambda event, index=choice.index: heard.put_nowait((index, event)),  # type: ignore[misc]
                order.logprobs,
                order.echo,
            )
            for choice in choices
        ]
        self.engine.submit(writing)
        return writing

    async def _stream(
        self, form: Form, choices: Sequence[Choice], writing: Sequence[Answer], heard: asyncio.Queue[Heard]
    ) -> AsyncGenerator[str | bytes, None]:
        try:
            for choice in choices:
                for said in form.beginning(choice):
                    yield said
            open_choices = len(choices)
            while open_choices:
                index, event = await heard.get()
                choice = choices[index]
                if isinstance(event, Refused):
                    yield answers.event(event.document)
                    return
                if isinstance(event, Ended):
                    choice.reason, choice.tokens = event.reason, event.tokens
                    open_choices -= 1
                    yield form.ending(choice)
                elif event.text or event.ids:
                    yield form.piece(choice, event)
            for said in form.last(choices):
                yield said
        finally:
            _let_go(writing)  # also where the client has left

    # ---- the page ----------------------------------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        """`GET /` and what belongs to it."""
        from starlette.responses import Response

        name, kind = {
            "/": ("page.html", "text/html; charset=utf-8"),
            "/page.js": ("page.js", "text/javascript; charset=utf-8"),
            "/page.css": ("page.css", "text/css; charset=utf-8"),
        }[request.url.path]
        text = (PAGE / name).read_text(encoding="utf-8")
        return Response((css() + "\n" + text) if name == "page.css" else text, media_type=kind)

    # ---- all together ------------------------------------------------------------------------------------------------

    def asgi(self) -> Guard:
        """As uvicorn takes it."""
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.routing import Route

        routes = [
            Route("/", self.page),
            Route("/page.css", self.page),
            Route("/page.js", self.page),
            Route("/health", self.health),
            Route("/tokenizer_info", self.tokenizer_info),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]
        if self.beside is not None:
            routes.append(Route("/beside/v1/models", self.beside.models))
            routes.append(Route("/beside/v1/completions", self.beside.completions, methods=["POST"]))
            routes.append(Route("/beside/v1/chat/completions", self.beside.completions, methods=["POST"]))

        async def unknown(request: Request, error: Exception) -> Response:
            assert isinstance(error, HTTPException)
            if error.status_code == 404:
                return _refusal(Refused(404, f"there is nothing at {request.url.path[:100]}", code="not_found"))
            headers = dict(error.headers or {})
            return _refusal(Refused(error.status_code, f"{request.method} is not for this address", headers=headers))

        async def refused(request: Request, error: Exception) -> Response:  # noqa: ARG001
            assert isinstance(error, Refused)
            return _refusal(error)

        app = Starlette(routes=routes, exception_handlers={HTTPException: unknown, Refused: refused})
        app.router.redirect_slashes = False
        return Guard(_unfailing(app), _refuse, host=self.command.host, secret=self.command.secret)


def too_long(what: str, model: Served) -> Refused:
    """A prompt that the model's block cannot hold."""
    text = f"the prompt {what}, the block of {model.name} holds {model.block_size} tokens: shorten it"
    return wrong("prompt", text, code="context_length_exceeded")


async def _all_heard(choices: Sequence[Choice], heard: asyncio.Queue[Heard]) -> None:
    """Wait until every choice has ended; raises Refused where one fails."""
    missing = len(choices)
    while missing:
        index, event = await heard.get()
        if isinstance(event, Refused):
            raise event
        if isinstance(event, Ended):
            choices[index].reason, choices[index].tokens = event.reason, event.tokens
            missing -= 1
        elif isinstance(event, Piece):
            choices[index].pieces.append(event)


def _let_go(writing: Sequence[Answer]) -> None:
    for answer in writing:
        answer.gone = True


def _json(document: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(document, status, headers)


def _refusal(refused: Refused) -> Response:
    return _json(refused.document, refused.status, refused.headers)


async def _refuse(refused: Refused, scope: Scope, receive: Receive, send: Send) -> None:
    await _refusal(refused)(scope, receive, send)


def _unfailing(app: Any) -> Any:
    """An application whose faults are told on the console, and to a client only that there was one."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await app(scope, receive, watched)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            if not begun:
                await _refuse(
                    Refused(500, "the server failed; its console says why", code="failed"), scope, receive, send
                )

    return answer
