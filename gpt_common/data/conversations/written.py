"""A conversation written out as one text, with the places of its answers; ChatML, or anybody's Jinja template.

A template comes from elsewhere and is a program. It runs in a sandbox, in a process of its own, for some seconds and
in bounded memory: one that loops is ended, one that imports, or reads what it should not, is refused.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any

from gpt_common.data.conversations.reading import MARKS, Conversation, Message
from gpt_common.data.tokenizers.tokenizer import END_OF_TURN
from gpt_common.errors import UserError

TURN, END = "<|im_start|>", END_OF_TURN
"""ChatML's special tokens."""
SECONDS = 10.0
"""For so many conversations a template may take, and the first has the start of its process besides."""
AT_ONCE = 64
LARGEST_TEMPLATE = 1 << 18
"""Characters."""
LARGEST_TEXT = 1 << 24
"""Characters of a conversation written out."""
MEMORY = 1 << 31
"""Bytes of the process of a template, where the system can hold it to that."""

Places = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Written:
    """A conversation as text."""

    text: str
    answers: Places
    """Where each answer begins and ends, in characters, without the token that ends it."""


@dataclass(frozen=True)
class Template:
    """How conversations are written out."""

    source: str | None = None
    """Jinja, as in `tokenizer_config.json`; None: ChatML."""
    name: str = "chatml"
    """For errors."""
    begin: str = ""
    """What the template knows as bos_token."""
    end: str = ""
    """What it knows as eos_token."""

    @contextmanager
    def writer(self) -> Iterator[Callable[[Iterable[Conversation]], Iterator[Written]]]:
        """A function that writes conversations out, in order."""
        if self.source is None:
            yield lambda conversations: map(chatml, conversations)
            return
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self), daemon=True)
        process.start()
        theirs.close()
        try:
            yield lambda conversations: _ask(ours, self, conversations)
        finally:
            ours.close()
            process.kill()
            process.join()


def chatml(conversation: Conversation) -> Written:
    """`<|im_start|>ROLE`, a line end, what was said, `<|im_end|>`, a line end, for every message.

    Tools stand before what the system says.
    """
    if conversation.text is not None:
        return Written(conversation.text, ((0, len(conversation.text)),))
    parts: list[str] = []
    answers, at = [], 0
    for message in _with_tools(conversation):
        head = f"{TURN}{message.role}\n"
        if message.role == "assistant" and message.learnt:
            answers.append((at + len(head), at + len(head) + len(message.content)))
        parts.append(f"{head}{message.content}{END}\n")
        at += len(parts[-1])
    return Written("".join(parts), tuple(answers))


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The same as a template, for who takes the model elsewhere."""


def _with_tools(conversation: Conversation) -> Sequence[Message]:
    messages = conversation.messages
    if conversation.tools is None:
        return messages
    said = f"Tools:\n{conversation.tools}"
    if messages[0].role == "system":
        return (Message("system", f"{messages[0].content}\n\n{said}"), *messages[1:])
    return (Message("system", said), *messages)


# ---- in this process -------------------------------------------------------------------------------------------------


def _ask(connection: Connection, template: Template, conversations: Iterable[Conversation]) -> Iterator[Written]:
    waiting = iter(conversations)
    where = ""
    ready = False
    while group := list(islice(waiting, 1 if not ready else AT_ONCE)):
        where = group[0].where
        try:
            connection.send(group)
            if not connection.poll(SECONDS if ready else 6 * SECONDS):
                raise UserError(
                    f"{where}: the template of {template.name} takes more than {SECONDS:g} seconds: it loops, or is "
                    "not for this conversation"
                )
            answer = connection.recv()
        except (EOFError, OSError):
            raise UserError(f"{where}: the template of {template.name} ended its process, for want of memory") from None
        if isinstance(answer, str):
            raise UserError(answer)
        ready = True
        yield from answer


# ---- in the process of the template ----------------------------------------------------------------------------------


def _serve(connection: Connection, template: Template) -> None:
    """Write out what is asked for, until nobody asks any more."""
    _hold_memory()
    _end_with_parent()
    environment, compiled, problem = None, None, None
    try:
        environment = _sandbox()
        compiled = environment.from_string(template.source)
    except Exception as error:
        problem = f"the template of {template.name} cannot be read: {_said(error)}"
    try:
        while True:
            group = connection.recv()
            where = group[0].where
            try:
                if problem:
                    raise UserError(problem)
                found = []
                for conversation in group:
                    where = conversation.where
                    found.append(_write(compiled, template, conversation))
                connection.send(found)
            except UserError as error:
                connection.send(f"{where}: {error}")
            except (Exception, RecursionError, MemoryError) as error:
                connection.send(f"{where}: the template of {template.name} fails: {_said(error)}")
    except (EOFError, OSError, KeyboardInterrupt):
        return


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}" if str(error) else type(error).__name__


def _hold_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError):  # macOS has no such limit: the time is bounded all the same
        return


def _end_with_parent() -> None:
    """A template that loops must not go on when who would have ended it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _sandbox() -> Any:
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import CallBlock
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` of transformers: what stands in it is an answer."""

        tags = {"generation"}  # noqa: RUF012 (Jinja's own way)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

        @staticmethod
        def _marked(caller: Callable[[], str]) -> str:
            return MARKS[0] + caller() + MARKS[1]

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**", "%"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            numbers = all(isinstance(value, int | float) and abs(value) < 1 << 53 for value in (left, right))
            if not numbers or (operator == "**" and abs(right) > 64):
                raise SecurityError(f"'{operator}' is for numbers of ordinary size here")
            return super().call_binop(context, operator, left, right)

    def refuse(said: str) -> str:
        from jinja2 import TemplateError

        raise TemplateError(str(said))

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    return environment


def _write(compiled: Any, template: Template, conversation: Conversation) -> Written:
    """The text that a template makes, and where in it the answers are.

    The answers go in between two marks; without them the text must be what the template makes of the conversation.
    """
    if conversation.text is not None:
        return Written(conversation.text, ((0, len(conversation.text)),))

    def render(messages: Sequence[Message]) -> str:
        size, parts = 0, []
        for part in compiled.generate(
            messages=[{"role": message.role, "content": message.content} for message in messages],
            tools=json.loads(conversation.tools) if conversation.tools else None,
            add_generation_prompt=False,
            bos_token=template.begin,
            eos_token=template.end,
        ):
            size += len(part)
            if size > LARGEST_TEXT:
                raise UserError(f"the template of {template.name} writes more than {LARGEST_TEXT:,} characters")
            parts.append(part)
        return "".join(parts)

    plain = render(conversation.messages)
    spoken = [message.learnt for message in conversation.messages if message.role == "assistant"]
    if MARKS[0] in plain:  # it says itself what an answer is
        return _learnt(_between_marks(plain), spoken, template)
    for strip in (False, True):  # many templates cut blanks off
        messages = [Message(m.role, m.content.strip() if strip else m.content) for m in conversation.messages]
        marked = [Message(m.role, MARKS[0] + m.content + MARKS[1]) if m.role == "assistant" else m for m in messages]
        found = _between_marks(render(marked))
        if found.text == plain and found.answers:
            return _learnt(found, spoken, template)
    raise UserError(
        f"the template of {template.name} changes answers, so that they cannot be told from the rest: put them "
        "between {% generation %} and {% endgeneration %} in it"
    )


def _learnt(written: Written, spoken: Sequence[bool], template: Template) -> Written:
    """Without the answers that are only read.

    Args:
        spoken: of every answer of the conversation, whether it is to be learnt.
    """
    if all(spoken):
        return written
    if len(written.answers) != len(spoken):
        raise UserError(
            f"the template of {template.name} marks {len(written.answers)} answers and the conversation has "
            f"{len(spoken)}: which of them has the weight 0 is not known"
        )
    return Written(
        written.text, tuple(place for place, is_learnt in zip(written.answers, spoken, strict=True) if is_learnt)
    )


def _between_marks(text: str) -> Written:
    parts = re.split(f"([{MARKS[0]}{MARKS[1]}])", text)
    plain, size, begin, answers = [], 0, None, []
    for part in parts:
        if part == MARKS[0]:
            begin = size
        elif part == MARKS[1]:
            if begin is not None:
                answers.append((begin, size))
            begin = None
        else:
            plain.append(part)
            size += len(part)
    return Written("".join(plain), tuple(answers))
