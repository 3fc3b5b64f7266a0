"""The prompt of a command as token ids: a text or a turn of a conversation, behind solved examples if there are any."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpt_common.commands import SampleCommand
from gpt_common.data.conversations.reading import Conversation, Message, read_conversations
from gpt_common.data.conversations.turns import has_turns, turn_ids
from gpt_common.data.conversations.written import TURN
from gpt_common.data.tokenizers import Tokenizer
from gpt_common.errors import UserError
from gpt_common.sampling import encode_prompt
from gpt_common.training.source import Source


def prompt_ids(command: SampleCommand, source: Source) -> list[int]:
    """What a command puts to a model, in tokens.

    Raises:
        UserError: a character outside the vocabulary, more than the block holds, or turns that the model does not know.
    """
    tokenizer, block_size = source.tokenizer, source.model.block_size
    shots = read_shots(command.shots) if command.shots is not None else []
    if command.chat:
        require_turns(source)
        ids = shot_ids(tokenizer, shots, command.prompt or "")
    elif shots:
        if command.prompt is None:
            raise UserError("--shots are solved examples before a --prompt: give one")
        ids = shot_ids(tokenizer, shots, command.prompt)
    elif command.prompt is None:
        return tokenizer.encode_written(source.prompt)[
            :block_size
        ]  # the dataset's own, cut to a block too short for it
    else:
        return encode_prompt(command.prompt, tokenizer, block_size)
    if len(ids) > block_size:
        what = f"{len(shots)} examples and the prompt" if shots else "the prompt and what stands around it"
        raise UserError(
            f"{what} have {len(ids)} tokens, the model's block holds {block_size}: give fewer or shorter ones"
        )
    return ids


def require_turns(source: Source) -> None:
    """Raise a UserError if a model was not made for conversations."""
    if not has_turns(source.tokenizer):
        raise UserError(
            f"{source.checkpoint} does not know turns: it was not fine-tuned on conversations, its vocabulary has no "
            f"{TURN}; leave --chat out, and it continues texts"
        )


def read_shots(path: Path) -> list[Conversation]:
    """Solved examples: JSON lines with `prompt` and `completion`, or `messages`.

    Raises:
        UserError: no such file, a line that is no example, or none in it.
    """
    shots = list(read_conversations([path]))
    if not shots:
        raise UserError(f"{path} has no examples")
    for shot in shots:
        if shot.text is not None:
            raise UserError(f"{shot.where}: `text` has no answer: an example has `prompt` and `completion`")
        if shot.messages[-1].role != "assistant":
            raise UserError(f"{shot.where}: the example does not end with an answer")
    return shots


def shot_ids(tokenizer: Tokenizer, shots: Sequence[Conversation], prompt: str) -> list[int]:
    """Examples and a prompt, up to where the answer begins.

    To a model that knows turns they are turns of one conversation. To any other they are a text: the prompt, a line
    end, the answer, and an empty line, example after example.

    Raises:
        UserError: a character outside the vocabulary.
    """
    if has_turns(tokenizer):
        messages = [message for shot in shots for message in shot.messages]
        return turn_ids(tokenizer, [*messages, Message("user", prompt)])
    parts = ["\n".join(message.content for message in shot.messages) + "\n\n" for shot in shots]
    return tokenizer.encode("".join(parts) + prompt + "\n")
