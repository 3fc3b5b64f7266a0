"""`sample --interactive` and `--chat`: at the prompt of a terminal, line by line, with settings that can be changed."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from gpt_common.commands import SampleCommand, SampleSettings
from gpt_common.data.conversations.reading import Conversation, Message
from gpt_common.data.conversations.turns import turn_ids
from gpt_common.data.tokenizers import TextStream
from gpt_common.errors import UserError, nearest
from gpt_common.keyed import draws
from gpt_common.prompting.prompts import read_shots, shot_ids
from gpt_common.sampling import Batch, Continuation, continue_together
from gpt_common.structured import CompiledForm
from gpt_common.training.source import Source
from gpt_common.words import printable

SETTINGS = {field.name: field for field in dataclasses.fields(SampleSettings)}
HELP = """  /again            answer once more, with other random numbers
  /undo             forget the last line and its answer
  /clear            forget everything
  /set NAME VALUE   change temperature, top_k, top_p, max_new_tokens
  /settings         show them
  /quit             end; so does Ctrl-D. Ctrl-C stops an answer."""


@dataclass
class Talk:
    """What was said so far, and how answers are made.

    Args:
        shots: solved examples that stand before everything.
    """

    command: SampleCommand
    source: Source
    batch: Batch
    form: CompiledForm | None
    settings: SampleSettings
    shots: list[Conversation] = field(default_factory=list)
    turns: list[Message] = field(default_factory=list)
    answers: int = 0
    """How many were made: each has random numbers of its own."""

    def ids(self) -> list[int]:
        """The prompt of the next answer; the oldest turns are left out where the block is too short for all.

        Raises:
            UserError: the last line alone is too long, or has a character outside the vocabulary.
        """
        tokenizer, block_size = self.source.tokenizer, self.source.model.block_size
        if not self.command.chat:
            text = self.turns[-1].content
            ids = shot_ids(tokenizer, self.shots, text) if self.shots else tokenizer.encode(text)
            if len(ids) > block_size:
                raise UserError(f"that has {len(ids)} tokens, the model's block holds {block_size}")
            return ids
        for begin in range(0, len(self.turns), 2):
            before = [message for shot in self.shots for message in shot.messages]
            ids = turn_ids(tokenizer, [*before, *self.turns[begin:]])
            if len(ids) < block_size:
                if begin:
                    print(f"({begin} turns are forgotten: the block holds {block_size} tokens)", file=sys.stderr)
                return ids
        raise UserError(f"that has {len(ids)} tokens, the model's block holds {block_size}")

    def answer(self) -> None:
        """Answer the last line, printed as it is made; Ctrl-C stops it, and what was said stays."""
        tokenizer = self.source.tokenizer
        ids = self.ids()
        constraint = None if self.form is None else self.form.begin()
        sequence = Continuation(ids, self.settings, draws(self.command.seed, self.answers), constraint)
        self.answers += 1
        ends, stream, said = tokenizer.ends, TextStream(tokenizer), ""
        tokens = continue_together(self.batch, [sequence], 1, lambda _, token: token in ends)
        with _stopped_by_ctrl_c() as stopped:
            for _, token in tokens:
                piece = stream.finish() if token is None else "" if token in ends else stream.push(token)
                said += piece
                sys.stdout.write(printable(piece))
                sys.stdout.flush()
                if stopped():
                    break
        print("" if not stopped() else " (stopped)")
        if constraint is not None and not constraint.complete and not stopped():
            print("(the form is not complete: /set max_new_tokens higher)", file=sys.stderr)
        self.turns.append(Message("assistant", said))

    def does(self, line: str) -> bool:
        """Whether a line was a command; it is done then.

        Raises:
            UserError: no such command, or it cannot be done.
        """
        if not line.startswith("/"):
            return False
        name, *words = line.split()
        match name[1:], words:
            case "help", []:
                print(HELP)
            case "again", []:
                if not self.turns:
                    raise UserError("nothing was said yet")
                self.turns.pop()
                self.answer()
            case "undo", []:
                del self.turns[-2:]
            case "clear", []:
                self.turns.clear()
            case "settings", []:
                print("\n".join(f"  {name} {getattr(self.settings, name)}" for name in SETTINGS))
            case "set", [key, value]:
                self._set(key.replace("-", "_").lstrip("_"), value)
            case _:
                raise UserError(f"no such command: {nearest(name, COMMANDS)}; /help lists them")
        return True

    def _set(self, name: str, value: str) -> None:
        if name not in SETTINGS:
            raise UserError(f"no setting '{name}': {nearest(name, SETTINGS)}")
        kind = type(getattr(self.settings, name))
        try:
            self.settings = dataclasses.replace(self.settings, **{name: kind(value)})
        except ValueError:
            raise UserError(f"{name} is a number, and '{value}' is none") from None


COMMANDS = ("/help", "/again", "/undo", "/clear", "/set", "/settings", "/quit")


def converse(command: SampleCommand, source: Source, batch: Batch, form: CompiledForm | None) -> None:
    """Answer line by line until there are no more; what is wrong with a line is told, and the next one is taken."""
    shots = read_shots(command.shots) if command.shots is not None else []
    settings = SampleSettings(**{name: getattr(command, name) for name in SETTINGS})
    talk = Talk(command, source, batch, form, settings, shots)
    if sys.stdin.isatty():
        kind = "a conversation" if command.chat else "every line is a text to continue"
        print(f"{kind}; /help lists what else can be done, /quit ends", file=sys.stderr)
    for line in _lines(command.prompt):
        if line.strip() == "/quit":
            return
        try:
            if not talk.does(line.strip()):
                talk.turns.append(Message("user", line))
                try:
                    talk.answer()
                except UserError:
                    talk.turns.pop()
                    raise
        except UserError as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)


def _lines(first: str | None) -> Iterator[str]:
    """What is typed, with the editing and the history that the terminal's library has."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() edits lines and remembers them once it is there)
    if first is not None:
        yield first
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            if sys.stdin.isatty():
                print()
            return
        except KeyboardInterrupt:  # at the prompt: what was typed is dropped
            print()
            continue
        if line.strip():
            yield line


@contextlib.contextmanager
def _stopped_by_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Within the block Ctrl-C is remembered: a step of the model that is going on is ended first."""
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
