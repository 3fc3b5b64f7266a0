"""From a conversation as text to its token ids, and which of them are to be learnt."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from gpt_common.data.batches import Examples
from gpt_common.data.conversations.reading import Conversation
from gpt_common.data.conversations.written import END, Written
from gpt_common.data.tokenizers import Tokenizer
from gpt_common.errors import UserError

TrainOn = Literal["all", "answers", "last"]


@dataclass(frozen=True)
class Marked:
    """An example as token ids."""

    ids: npt.NDArray[np.uint32]
    """(N,) up to the last token that counts: what comes after it would teach nothing."""
    counted: npt.NDArray[np.uint8]
    """(N,) 1 where a token is to be predicted; the first has nothing that predicts it."""
    cut: int
    """Answers of which the block left a part out."""


class Marker:
    """Finds what counts by the places of answers in the whole text, which is encoded at once.

    A prompt that is encoded on its own would not tell: its last token may become another one with what follows it.

    Args:
        tokenizer: what encodes; it must not change the text.
        train_on: all tokens, all answers, or the last one.
        longest: tokens of an example, at most; 0: as many as it has.
    """

    def __init__(self, tokenizer: Tokenizer, train_on: TrainOn, longest: int = 0) -> None:
        self.tokenizer, self.train_on, self.longest = tokenizer, train_on, longest
        names = sorted(tokenizer.specials, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        # Some put a blank before it; behind a line end it would be another's.
        self._end = re.compile(rf" ?(?:{self._special.pattern})")
        self._last = tokenizer.end_of_text if tokenizer.end_of_text is not None else tokenizer.specials.get(END)
        self._bytes_of = functools.lru_cache(maxsize=None)(lambda token: len(tokenizer.decode_bytes([token])))

    def check(self, conversation: Conversation) -> Conversation:
        """The conversation, if nobody says in it what only a template may say.

        Raises:
            UserError: the name of a special token.
        """
        for i, message in enumerate(conversation.messages, 1):
            if found := self._special.search(message.content):
                raise UserError(
                    f"{conversation.where}: message {i} says {found.group()!r}, which divides conversations: take it "
                    "out, or write it otherwise"
                )
        if conversation.tools and (found := self._special.search(conversation.tools)):
            raise UserError(
                f"{conversation.where}: a tool says {found.group()!r}, which divides conversations: take it out, or "
                "write it otherwise"
            )
        return conversation

    def mark(self, conversation: Conversation, written: Written) -> Marked:
        """Ids, and which of them count.

        Raises:
            UserError: a character outside the vocabulary, a tokenizer that changes the text, no answer left.
        """
        where, is_text = conversation.where, conversation.text is not None
        try:
            ids = self.tokenizer.encode(written.text) if is_text else self.tokenizer.encode_written(written.text)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        text = written.text.encode()
        if self.tokenizer.decode_bytes(ids) != text:
            raise UserError(f"{where}: the tokenizer changes the text, so the places of answers in it are not known")
        ends = np.cumsum([self._bytes_of(token) for token in ids], dtype=np.int64)
        begins = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        if is_text and self._last is not None:
            ids = [*ids, self._last]
        counted = np.zeros(len(ids), np.uint8)
        answers = []
        for first, last in written.answers if self.train_on != "last" else written.answers[-1:]:
            has_end = any(written.text.endswith(name, first, last) for name in self.tokenizer.specials)
            after = None if is_text or has_end else self._end.match(written.text, last)
            stop = last if after is None else after.end()
            a, b = len(written.text[:first].encode()), len(written.text[:stop].encode())
            # Every token that has a part of an answer must be said to say the answer.
            own = np.zeros(len(ids), bool)
            own[: len(ends)] = (begins < b) & (ends > a)
            answers.append(own)
            counted[own] = 1
        if is_text or self.train_on == "all":
            counted[:] = 1
        counted[:1] = 0
        if not counted.any():
            raise UserError(f"{where}: no answer: nothing of it is to be learnt")
        kept = int(np.flatnonzero(counted)[-1]) + 1
        cut = 0
        if self.longest and kept > self.longest:
            cut = max(1, sum(bool(own[self.longest :].any()) for own in answers))
            if not counted[: self.longest].any():
                raise UserError(
                    f"{where}: no answer is left: it has {kept} tokens, of which the block holds {self.longest}, and "
                    "all of those are question: take a larger --block-size, or leave the example out"
                )
            kept = int(np.flatnonzero(counted[: self.longest])[-1]) + 1
        return Marked(np.array(ids[:kept], np.uint32), counted[:kept], cut)


def joined(examples: Iterable[Marked]) -> Examples:
    """Examples one after the other, each of them asked for once and let go: five bytes stay of a token."""
    ids, counted, ends = bytearray(), bytearray(), []
    for example in examples:
        ids += example.ids.astype(np.uint32).tobytes()
        counted += example.counted.tobytes()
        ends.append(len(counted))
    return Examples(np.frombuffer(ids, np.uint32), np.frombuffer(counted, np.uint8), np.array(ends, np.int64))
