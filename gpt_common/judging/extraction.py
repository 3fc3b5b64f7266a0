"""Structured extraction: a text in, JSON out, judged field by field against what is right.

A file of examples is JSON lines, each with `prompt` (or `text`) and `answer`, or with `answers` where several are
right. Its first examples are shown to the model as shots and never asked, so that every number of shots is judged by
the same questions.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_common.commands import SampleSettings
from gpt_common.data.conversations.reading import Conversation, Message
from gpt_common.data.conversations.turns import has_turns
from gpt_common.data.tokenizers import Tokenizer
from gpt_common.errors import UserError
from gpt_common.files import parse_json
from gpt_common.keyed import draws
from gpt_common.prompting.prompts import shot_ids
from gpt_common.sampling import Batch, Continuation, continue_together
from gpt_common.structured import Form, checker, compile_form
from gpt_common.words import share

AT_ONCE = 16
"""Examples that are answered together."""
SHOTS = (0, 1, 4, 16)
"""How many examples are shown, if nobody says otherwise."""
KEPT_FOR_SHOTS = max(SHOTS)
LARGEST_FILE = 1 << 28
"""Bytes of a file of examples."""


@dataclass(frozen=True)
class Example:
    """A text, and what is to be made of it."""

    prompt: str
    answers: tuple[Any, ...]
    """Values of JSON; any of them is right. The first is the one that is shown."""

    @property
    def shown(self) -> str:
        """The answer as a shot gives it: with a blank behind commas and colons, as JSON is mostly written."""
        return json.dumps(self.answers[0], ensure_ascii=False)


@dataclass(frozen=True)
class Extraction:
    """How well the examples were answered."""

    shots: int
    held: bool
    """The answers were held to the schema."""
    asked: int
    exact: int
    """Answers that are right as a whole."""
    valid: int
    """Answers that are JSON and fit the schema."""
    f1: float
    """Of the fields of all answers together, 0 to 1: a field is a path and its value."""
    nats: float
    """What the schema cost, KL divergence per token; 0 where nothing was held to it."""
    too_long: int = 0
    """Answers that ran out of tokens before they were complete."""


def read_examples(path: Path) -> list[Example]:
    """The examples in a file.

    Raises:
        UserError: unreadable; a line that is no example, with its number.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path} has more than {LARGEST_FILE:,} bytes")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"cannot read {path}: {why}") from None
    found = [_example(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UserError(f"{path} has no examples")
    return found


def _example(line: str, where: str) -> Example:
    try:
        document = parse_json(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON: {str(error)[:200]}") from None
    if not isinstance(document, dict):
        raise UserError(f"{where}: an example is an object with 'prompt' and 'answer'")
    prompt = document.get("prompt", document.get("text"))
    answers = document.get("answers", [document["answer"]] if "answer" in document else None)
    if not isinstance(prompt, str) or not prompt or not isinstance(answers, list) or not answers:
        raise UserError(f"{where}: an example has a text 'prompt' and an 'answer', or a list of 'answers'")
    return Example(prompt, tuple(answers))


def extract(
    examples: Sequence[Example],
    batch: Batch,
    tokenizer: Tokenizer,
    block_size: int,
    schema: str,
    *,
    shots: int,
    held: bool,
    settings: SampleSettings | None = None,
    whitespace: bool = True,
) -> Extraction:
    """Ask for every example behind the first KEPT_FOR_SHOTS, and judge the answers.

    A model whose vocabulary has ChatML's turns is asked in a conversation, the shots its earlier turns; another is
    given the shots and the prompt as one text, a line to each answer.

    Args:
        batch: continues the texts; of the model's own kind (`ContinuousBatch`).
        schema: the JSON of the schema.
        shots: examples that are shown before the one that is asked.
        held: hold the answers to the schema; otherwise an answer ends with its line or its turn.
        settings: how tokens are chosen; the likeliest, 200 at most, if None.
        whitespace: of held answers: blanks are allowed, as the shots have them.

    Raises:
        UserError: too few examples; shots and question do not fit the block; a schema that cannot be held to, or a
            letter that the vocabulary cannot spell.
    """
    if not 0 <= shots <= KEPT_FOR_SHOTS:
        raise UserError(f"shots is {shots}: from 0 to {KEPT_FOR_SHOTS} examples can be shown")
    asked = examples[KEPT_FOR_SHOTS:]
    if not asked:
        raise UserError(
            f"{len(examples)} examples: the first {KEPT_FOR_SHOTS} are kept for shots, and no other is left"
        )
    settings = SampleSettings(max_new_tokens=200, temperature=0) if settings is None else settings
    fits, chats = checker(schema), has_turns(tokenizer)
    form = compile_form(Form("json_schema", schema, whitespace, "the schema"), tokenizer) if held else None
    sequences, lengths = [], list[int]()
    for number, example in enumerate(asked):
        prompt = _written(examples[:shots], example, tokenizer)
        if len(prompt) >= block_size:
            raise UserError(
                f"{shots} shots and a question have {len(prompt)} tokens, the model's block holds {block_size}"
            )
        lengths.append(len(prompt))
        constraint = None if form is None else form.begin()
        sequences.append(Continuation(prompt, settings, draws(0, number), constraint))

    def is_last(_: int, token: int) -> bool:
        line_ends = not chats and not held and b"\n" in tokenizer.decode_bytes([token])
        return token in tokenizer.ends or line_ends

    for _ in continue_together(batch, sequences, AT_ONCE, is_last):
        pass
    exact, valid, counts, too_long = 0, 0, Counter[str](), 0
    for example, sequence, length in zip(asked, sequences, lengths, strict=True):
        new = [token for token in sequence.context[length:] if token not in tokenizer.ends]
        too_long += sequence.constraint is not None and not sequence.constraint.complete
        value, is_json = _value(tokenizer.decode(new), whole=chats or held)
        valid += is_json and fits(value)
        exact += is_json and any(_same(value, answer) for answer in example.answers)
        compared = [_compared(value if is_json else {}, answer) for answer in example.answers]
        best = max(compared, key=_f1)
        counts += best
    made = sum(sequence.made for sequence in sequences)
    nats = sum(sequence.divergence.nats for sequence in sequences) / max(1, made)
    return Extraction(shots, held, len(asked), exact, valid, _f1(counts), nats, too_long)


def longest_prompt(examples: Sequence[Example], tokenizer: Tokenizer, shots: int) -> int:
    """Tokens of the longest question with so many examples before it."""
    asked = (_written(examples[:shots], example, tokenizer) for example in examples[KEPT_FOR_SHOTS:])
    return max(map(len, asked), default=0)


def _written(shots: Sequence[Example], example: Example, tokenizer: Tokenizer) -> list[int]:
    """Token ids of the shots and the question, up to where the answer begins."""
    solved = [Conversation("", (Message("user", one.prompt), Message("assistant", one.shown))) for one in shots]
    return shot_ids(tokenizer, solved, example.prompt)


def _value(text: str, *, whole: bool) -> tuple[Any, bool]:
    """The JSON of an answer, and whether it is any."""
    try:
        return parse_json(text if whole else text.partition("\n")[0]), True
    except (ValueError, RecursionError):
        return None, False


def _same(value: Any, answer: Any) -> bool:
    return json.dumps(value, sort_keys=True) == json.dumps(answer, sort_keys=True)


def fields(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every field of an answer: its path, without the places in lists, and its value."""
    if isinstance(value, dict) and value:
        for name, one in value.items():
            yield from fields(one, f"{path}/{name}")
    elif isinstance(value, list) and value:
        for one in value:
            yield from fields(one, f"{path}[]")
    elif path or value not in ({}, []):
        yield path, json.dumps(value)


def _compared(value: Any, answer: Any) -> Counter[str]:
    """How many fields were said, were asked for, and are in both."""
    said, right = Counter(fields(value)), Counter(fields(answer))
    return Counter(said=said.total(), right=right.total(), both=(said & right).total())


def _f1(counts: Counter[str]) -> float:
    """Harmonic mean of precision and recall; 1 where nothing was asked for and nothing said."""
    of = counts["said"] + counts["right"]
    return 2 * counts["both"] / of if of else 1.0


def lines_of(found: Sequence[Extraction]) -> Iterator[str]:
    """The figures, a line each."""
    yield f"  {'shots':>5}  {'':12} {'exact':>14} {'field F1':>9} {'valid':>8}   cost of the schema"
    for one in found:
        how = "held" if one.held else "free"
        cost = f"{one.nats:.3f} nats/token" if one.held else ""
        cost += f", {one.too_long} ran out of tokens" if one.too_long else ""
        exact = f"{one.exact} of {one.asked}"
        valid = share(one.valid / one.asked)
        yield f"  {one.shots:>5}  {how:12} {exact:>14} {one.f1:>9.3f} {valid:>8}   {cost}".rstrip()
