"""Questions put to a model, and how many of its answers are right to the letter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gpt_common.commands import SampleSettings
from gpt_common.data import Dataset
from gpt_common.data.conversations.reading import Message
from gpt_common.data.conversations.stories_qa import Question, write_questions
from gpt_common.data.conversations.turns import turn_ids
from gpt_common.data.conversations.written import END
from gpt_common.data.tokenizers import Tokenizer
from gpt_common.errors import UserError
from gpt_common.keyed import draws
from gpt_common.sampling import Batch, Continuation, continue_together
from gpt_common.training.whole_text import WholeText
from gpt_common.words import share

AT_ONCE = 16
"""Questions that are answered together."""
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
        return questions_of_worlds(dataset.tokenizer, count)
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


def questions_of_worlds(tokenizer: Tokenizer, count: int) -> list[Put]:
    """Of stories-qa: so many questions about held-out worlds, and as many in new phrasings."""
    known = [_put(question, tokenizer, "held-out worlds") for question in write_questions(SEED, "val", count)]
    new = write_questions(SEED, "val", count, new_phrasing=True)
    return known + [_put(question, tokenizer, "new phrasings", by_form=False) for question in new]


def _put(question: Question, tokenizer: Tokenizer, group: str, *, by_form: bool = True) -> Put:
    prompt = turn_ids(tokenizer, [Message("user", question.prompt)])
    answers = tuple((*tokenizer.encode(answer), tokenizer.specials[END]) for answer in question.answers)
    form = f", as {'JSON' if question.as_json else 'text'}" if by_form else ""
    return Put(group + form, tuple(prompt), answers)


def judge(put: Sequence[Put], batch: Batch, block_size: int) -> list[bool]:
    """For each question whether its answer was right.

    The likeliest token each time, as far as the longest right answer goes: what differs before is wrong.

    Raises:
        UserError: a question does not fit the block.
    """
    sequences = []
    for question in put:
        longest = max(map(len, question.answers))
        if len(question.prompt) + longest > block_size:
            raise UserError(
                f"a question and its answer have {len(question.prompt) + longest} tokens, the model's block holds "
                f"{block_size}"
            )
        settings = SampleSettings(max_new_tokens=longest, temperature=0)
        sequences.append(Continuation(list(question.prompt), settings, draws(0, 0)))
    said: list[tuple[int, ...]] = [()] * len(put)

    def is_settled(number: int, token: int) -> bool:
        said[number] += (token,)
        answers, length = put[number].answers, len(said[number])
        return said[number] in answers or not any(answer[:length] == said[number] for answer in answers)

    for _ in continue_together(batch, sequences, AT_ONCE, is_settled):
        pass
    return [answer in question.answers for question, answer in zip(put, said, strict=True)]


def lines_of(
    found: dict[str, tuple[int, int]], whole: WholeText, floor: float | None, *, is_text: bool
) -> Iterator[str]:
    """The figures, a line each.

    Args:
        found: how many answers of each group were right, and how many questions there were.
        whole: of the validation split, of which only answers count if it has any.
        floor: the best possible loss, where it is known, nats per token.
        is_text: it has no questions.
    """
    for group, (right, of) in sorted(found.items()):
        yield f"  {group:<26} {right:>5} of {of:>5} right, {share(right / of)}"
    what = "validation loss" if is_text else "loss of answers"
    yield f"  {what:<26} {whole.loss:.4f} nats/token on {whole.tokens:,} tokens"
    if is_text:
        yield f"  {'bits per byte':<26} {whole.bits_per_byte:.4f}"
    if floor is not None:
        yield f"  {'floor':<26} {floor:.4f}: {whole.loss - floor:.4f} above it"
