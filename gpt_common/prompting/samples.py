"""`sample`: texts that a model writes, printed as they are made."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Sequence

from gpt_common.commands import SampleCommand
from gpt_common.data.conversations.turns import has_turns
from gpt_common.data.tokenizers import TextStream, Tokenizer
from gpt_common.keyed import draws
from gpt_common.prompting.prompts import prompt_ids
from gpt_common.sampling import Batch, Continuation, continue_together
from gpt_common.structured import CompiledForm, Form, compile_form, form_in
from gpt_common.training.source import Source
from gpt_common.words import printable

AT_ONCE = 8
"""Samples that are made together."""


def print_samples(command: SampleCommand, source: Source, batch: Batch) -> None:
    """Write every sample to standard output, in order: the first that is not finished as it is made, the others, made
    at the same time, when it is their turn.

    What a form cost is told on standard error at the end, and which samples do not have it.

    Raises:
        UserError: a prompt with a character outside the vocabulary, or longer than the block; a form that cannot be
            kept to.
    """
    tokenizer = source.tokenizer
    form = asked_form(command, tokenizer)
    prompt = prompt_ids(command, source)
    # What the model says comes out of a file, its vocabulary: it must not steer a terminal.
    shown_as = _json_shown if command.json_schema is not None else printable
    is_turn = command.chat or command.shots is not None  # then the answer alone is told
    text = "" if is_turn else printable(tokenizer.decode(prompt))
    samples = range(command.num_samples)
    made: list[Continuation] = []
    ends = {tokenizer.end_of_text} if form is None and not is_turn else {tokenizer.end_of_text, *tokenizer.ends}
    # Solved examples that are a text end with an empty line, and so does what is written behind them.
    stop = "\n\n" if command.shots is not None and not has_turns(tokenizer) else ""
    said = [Saying(tokenizer, ends, stop) for _ in samples]
    shown = 0  # the sample that is being written

    def begin(sample: int) -> None:
        if command.num_samples > 1:
            print(f"--- sample {sample + 1} of {command.num_samples} (seed {command.seed})")
        sys.stdout.write(text)

    def sequence(sample: int) -> Continuation:
        constraint = None if form is None else form.begin()
        made.append(Continuation(list(prompt), command, draws(command.seed, sample), constraint))
        return made[-1]

    begin(0)
    for sample, token in continue_together(
        batch, map(sequence, samples), AT_ONCE, lambda number, _: said[number].ended
    ):
        said[sample].take(token)
        while shown < command.num_samples:
            sys.stdout.write(shown_as(said[shown].more()))
            sys.stdout.flush()
            if not said[shown].finished:
                break
            print()
            if not said[shown].tokens:
                print("the model ended the document at once: give it a --prompt, or another --seed", file=sys.stderr)
            shown += 1
            if shown < command.num_samples:
                begin(shown)
    if form is not None:
        _tell_of_form(made)


class Saying:
    """What one sample says, as it comes; what may become its stop is held back until it is none.

    Args:
        ends: tokens behind which nothing follows; they are no text.
        stop: a text that ends it and is no part of it; empty: there is none.
    """

    def __init__(self, tokenizer: Tokenizer, ends: Collection[int | None], stop: str) -> None:
        self.ends, self.stop, self.tokens = ends, stop, 0
        self.ended = self.finished = False
        self._stream, self._text = TextStream(tokenizer), ""

    def take(self, token: int | None) -> None:
        """One token more; None: there are no more."""
        if token is None:
            self._text += "" if self.ended else self._stream.finish()
            self.ended = self.finished = True
        elif token in self.ends:
            self.ended = True
        else:
            self.tokens += 1
            self._text += self._stream.push(token)
            if self.stop and self.stop in self._text:
                self._text, self.ended = self._text.partition(self.stop)[0], True

    def more(self) -> str:
        """What can be shown that was not shown before."""
        held = 0
        if not self.ended:
            held = max((n for n in range(1, len(self.stop)) if self._text.endswith(self.stop[:n])), default=0)
        end = len(self._text) - held
        shown, self._text = self._text[:end], self._text[end:]
        return shown


def asked_form(command: SampleCommand, tokenizer: Tokenizer) -> CompiledForm | None:
    """The form that a command asks for, if any."""
    if command.json_schema is not None:
        form = form_in(command.json_schema, "json_schema", whitespace=command.json_whitespace)
    elif command.grammar is not None:
        form = form_in(command.grammar, "grammar")
    elif command.regex is not None:
        form = Form("regex", command.regex, name="--regex")
    else:
        return None
    return compile_form(form, tokenizer)


def _json_shown(text: str) -> str:
    """`printable` for a piece of JSON, which stays what it says: in JSON's own escapes."""
    return "".join(c if c == "\n" or printable(c) in (c, " " * 4) else json.dumps(c)[1:-1] for c in text)


def _tell_of_form(made: Sequence[Continuation]) -> None:
    """Say on standard error which samples have their form, and what it cost."""
    complete, tokens, forced = 0, sum(one.made for one in made), sum(one.forced for one in made)
    for number, one in enumerate(made, 1):
        assert one.constraint is not None
        complete += one.constraint.complete
        if not one.constraint.complete:
            which = f"sample {number}: " if len(made) > 1 else ""
            why = one.constraint.stuck or f"it ran out of its {one.made} tokens before the form was complete"
            print(f"{which}{printable(why)}", file=sys.stderr)
    nats = sum(one.divergence.nats for one in made)
    print(
        f"form: {complete} of {len(made)} complete; it left no choice about {forced} of {tokens} tokens, and cost "
        f"{nats / max(1, tokens):.3f} nats per token (KL divergence from the model's own next tokens)",
        file=sys.stderr,
    )
