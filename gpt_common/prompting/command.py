"""The sampling command line, and which way of answering it means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpt_common.cli import parse
from gpt_common.commands import SampleCommand
from gpt_common.data.tokenizers import prefix_token
from gpt_common.errors import UserError
from gpt_common.prompting.choices import lines_of, parse_choices, score_choices
from gpt_common.prompting.conversing import converse
from gpt_common.prompting.prompts import prompt_ids, require_turns
from gpt_common.prompting.samples import asked_form, print_samples
from gpt_common.sampling import Batch
from gpt_common.training.folder import named_or_newest
from gpt_common.training.source import Source
from gpt_common.words import say


def parse_sampling(argv: Sequence[str], *, prog: str) -> tuple[Path, SampleCommand]:
    """The sampling command line: the checkpoint or run folder, if not the newest run is meant, then flags."""
    named = [word for word in argv[:1] if not word.startswith("-")]
    command = parse(SampleCommand, argv[len(named) :], prog=f"{prog} CKPT")
    if command.choices is not None:
        parse_choices(command.choices)
    return named_or_newest(named, "sampling from")[0], command


def answer(command: SampleCommand, source: Source, batch: Batch) -> None:
    """Do what a command asks for: samples, scores of choices, or a conversation at the prompt.

    Raises:
        UserError: a prompt that cannot be put to this model, or a form that cannot be kept to.
    """
    tokenizer = source.tokenizer
    if command.chat:
        require_turns(source)
    if command.choices is not None:
        if command.prompt is None:
            raise UserError("--choices are scored behind a --prompt: give one")
        prompt, choices = prompt_ids(command, source), parse_choices(command.choices)
        nothing = prefix_token(tokenizer)
        for line in lines_of(score_choices(batch, tokenizer, source.model.block_size, prompt, choices, nothing)):
            say(line)
    elif command.interactive or (command.chat and command.prompt is None):
        converse(command, source, batch, asked_form(command, tokenizer))
    else:
        print_samples(command, source, batch)
