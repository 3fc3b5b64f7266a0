"""A conversation as token ids, up to where its next answer begins; as conversations were prepared, in ChatML."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_common.data.conversations.reading import Message
from gpt_common.data.conversations.written import END, TURN
from gpt_common.data.tokenizers import Tokenizer


def has_turns(tokenizer: Tokenizer) -> bool:
    """Whether a vocabulary has what divides a conversation."""
    return {TURN, END} <= tokenizer.specials.keys()


def turn_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation and of the beginning of the assistant's answer.

    What is said is encoded as text, the names of special tokens in it included: nobody ends a turn by naming its end.

    Args:
        tokenizer: one that `has_turns`.

    Raises:
        UserError: a character outside the vocabulary.
    """
    turn, end = (tokenizer.specials[name] for name in (TURN, END))
    ids: list[int] = []
    for said in messages:
        ids += [turn, *tokenizer.encode(f"{said.role}\n{said.content}"), end, *tokenizer.encode("\n")]
    return [*ids, turn, *tokenizer.encode("assistant\n")]
