"""Questions put to a model, and how many of its answers are right to the letter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gpt_common.commands import SampleSettings
from gpt_common.data import Dataset
from gpt_common.data.conversations.stories_qa import Question, write_questions
from gpt_common.data.conversations.written import END, TURN
from gpt_common.data.tokenizers import Tokenizer
from gpt_common.errors import UserError
from gpt_common.keyed import draws
from gpt_common.words import share

Generate = Callable[[Sequence[int], SampleSettings, Iterator[float], int], Iterator[int]]
SEED = 20_000
"""Of the questions about small worlds: other ones than a dataset has."""


@dataclass(frozen=True)
class Put:
    """A question as a model is given it."""

    group: str
    """What it is counted under."""
    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    """Any of them is right; the token that ends it is its last."""


def questions_of(dataset: Dataset, count: int) -> list[Put]:
    """Questions that nobody was trained on: about held-out worlds, or the last turns of the validation split.

    Raises:
        UserError: a dataset without questions.
    """
    if dataset.name == "stories-qa":
        known = [
            _put(question, dataset.tokenizer, "held-out worlds") for question in write_questions(SEED, "val", count)
        ]
        new = write_questions(SEED, "val", count, new_phrasing=True)
        return known + [_put(question, dataset.tokenizer, "new phrasings", by_form=False) for question in new]
    if dataset.examples is None:
        raise UserError(f"'{dataset.name}' is a text and has no answers: take a dataset of conversations")
    val = dataset.examples[1]
    found: list[Put] = []
    for end, length in zip(val.ends, val.lengths, strict=True):
        ids, counted = (part[end - length : end] for part in (val.tokens, val.counted))
        if len(found) == count or counted[1:].all():  # a text, all of which was learnt, asks nothing
            continue
        begin = int(np.flatnonzero(counted == 0)[-1]) + 1  # of the last answer
        found.append(Put("validation split", tuple(map(int, ids[:begin])), (tuple(map(int, ids[begin:])),)))
    if not found:
        raise UserError(f"'{dataset.name}' asks nothing: all of its validation examples were learnt from end to end")
    return found


def _put(question: Question, tokenizer: Tokenizer, group: str, *, by_form: bool = True) -> Put:
    turn, end = tokenizer.specials[TURN], tokenizer.specials[END]
    encode = tokenizer.encode
    prompt = [turn, *encode(f"user\n{question.prompt}"), end, *encode("\n"), turn, *encode("assistant\n")]
    answers = tuple((*encode(answer), end) for answer in question.answers)
    form = f", as {'JSON' if question.as_json else 'text'}" if by_form else ""
    return Put(group + form, tuple(prompt), answers)


def judge(put: Sequence[Put], generate: Generate, tokenizer: Tokenizer, block_size: int) -> dict[str, tuple[int, int]]:
    """For each group how many answers were right, and how many questions there were.

    The likeliest token each time, as far as the longest right answer goes: what differs before is wrong.

    Raises:
        UserError: a question does not fit the block.
    """
    found: dict[str, tuple[int, int]] = {}
    for question in put:
        longest = max(map(len, question.answers))
        if len(question.prompt) + longest > block_size:
            raise UserError(
                f"a question and its answer have {len(question.prompt) + longest} tokens, the model's block holds "
                f"{block_size}"
            )
        settings = SampleSettings(max_new_tokens=longest, temperature=0)
        said: list[int] = []
        for token in generate(question.prompt, settings, draws(0, 0), tokenizer.vocab_size):
            said.append(token)
            if not any(answer[: len(said)] == tuple(said) for answer in question.answers):
                break
            if tuple(said) in question.answers:
                break
        right, of = found.get(question.group, (0, 0))
        found[question.group] = right + (tuple(said) in question.answers), of + 1
    return found


def lines_of(found: dict[str, tuple[int, int]], loss: float, tokens: int, floor: float | None) -> Iterator[str]:
    """The figures, a line each.

    Args:
        loss: over the answers of the validation split, nats per token.
        tokens: of these answers.
        floor: the best possible loss, where it is known.
    """
    for group, (right, of) in sorted(found.items()):
        yield f"  {group:<26} {right:>5} of {of:>5} right, {share(right / of)}"
    yield f"  loss of answers            {loss:.4f} nats/token on {tokens:,} tokens"
    if floor is not None:
        yield f"  floor                      {floor:.4f}: {loss - floor:.4f} above it"
