"""`python -m gpt_common.data`: prepare corpora, and list them."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, ClassVar, Literal

import tyro

from gpt_common.cli import parse
from gpt_common.errors import Stopped, UserError, nearest, run_main

PROG = "python -m gpt_common.data"


def _plain(metavar: str) -> Any:
    """How `--help` shows a flag that is not given by default: without `{None}|STR` and `(default: None)`."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Turn text into token ids.

    A corpus that has a name is downloaded; files of your own are given a name and a tokenizer.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "shakespeare_char",
        "--text FILE... --name NAME --tokenizer bpe",
        "--text FILE --name NAME --tokenizer runs/X",
        "--conversations FILE --name NAME",
    )
    corpus: Annotated[tyro.conf.Positional[str | None], _plain("[CORPUS]")] = None
    """shakespeare_char, shakespeare or tinystories; downloaded and checked. Tiny Shakespeare by characters, the same
    with GPT-2's vocabulary, and TinyStories (2.3 GB) with a vocabulary of 10 000 trained on it."""
    text: Annotated[tuple[Path, ...], _plain("FILE...")] = ()
    """UTF-8 files of your own, taken as one text in this order."""
    conversations: Annotated[tuple[Path, ...], _plain("FILE...")] = ()
    """Files of JSON lines with messages, prompt and completion, or text: what is learnt is the answers."""
    name: Annotated[str | None, _plain("NAME")] = None
    """What --dataset shall call the text."""
    tokenizer: Annotated[str | None, _plain("char|gpt2|bpe|PATH")] = None
    """One id per character, GPT-2's vocabulary, one trained on this text, or that of a run, checkpoint, dataset or
    tokenizer.json."""
    bpe_vocab_size: Annotated[int | None, _plain("N")] = None
    """Size of the vocabulary that --tokenizer bpe trains, if the one by the size of the text does not suit. At least
    257."""
    separator: Annotated[str | None, _plain("TEXT|none")] = None
    """What divides documents, if not <|endoftext|>: an end-of-text token takes its place. none: nothing does, and
    <|endoftext|> is ordinary text. \\n in TEXT is a line end."""
    unknown: Annotated[str | None, _plain("drop|CHAR")] = None
    """Drop characters that the vocabulary of --tokenizer PATH does not have, or write CHAR in their place."""
    val_fraction: Annotated[float | None, _plain("SHARE")] = None
    """Share of the text, at its end, that is kept for validation; 0.1 if not given."""
    template: Annotated[str | None, _plain("chatml|FILE")] = None
    """How conversations are written out, if not by the Jinja beside the tokenizer, or as ChatML if there is none."""
    train_on: Annotated[Literal["all", "answers", "last"] | None, _plain("all|answers|last")] = None
    """Of conversations, learn every token, all answers (so if not given), or the last."""
    block_size: Annotated[int | None, _plain("N")] = None
    """Cut conversations to what a block of N tokens holds."""
    from_file: Annotated[Path | None, _plain("FILE")] = None
    """Take CORPUS from this file instead of downloading it; TinyStories with its validation text beside it."""
    data_dir: Path = Path("data")
    """Folder of prepared corpora."""
    overwrite: bool = False
    """Replace a dataset of the same name."""
    workers: int = 0
    """Processes that encode; 0: one per core. The result does not depend on it."""


@dataclass(frozen=True, kw_only=True)
class List:
    """Which corpora there are, and which could be prepared."""

    data_dir: Path = Path("data")
    """Folder of prepared corpora."""


COMMANDS = {"prepare": Prepare, "list": List}


def main(argv: Sequence[str]) -> None:
    """The command."""
    match argv:
        case ["prepare", *arguments]:
            command = parse(Prepare, arguments, prog=f"{PROG} prepare")
            signal.signal(signal.SIGTERM, _stop)
            prepare(command)
        case ["list", *arguments]:
            folder = parse(List, arguments, prog=f"{PROG} list").data_dir
            from gpt_common.data.listing import print_corpora

            print_corpora(folder)
        case [] | ["-h" | "--help" | "--help-all", *_]:
            lines = [f"  {name:<8} {(kind.__doc__ or '').splitlines()[0]}" for name, kind in COMMANDS.items()]
            print("\n".join([f"usage: {PROG} COMMAND ...", "", *lines, "", "Each has a --help of its own."]))
        case _:
            raise UserError(f"unknown command '{argv[0]}': {nearest(argv[0], COMMANDS)}")


def prepare(command: Prepare) -> None:
    """Run `prepare` and say what came of it."""
    from gpt_common.data.dataset import PREPARABLE, SHAKESPEARE
    from gpt_common.data.listing import summary
    from gpt_common.data.prepare import prepare_named, prepare_texts
    from gpt_common.progress import Progress

    if bool(command.corpus) + bool(command.text) + bool(command.conversations) != 1:
        raise UserError(
            f"say which corpus ({', '.join(PREPARABLE)}), or give files of your own with --text or --conversations"
        )
    if not command.conversations:
        for flag in ("template", "train_on", "block_size"):
            if getattr(command, flag) is not None:
                raise UserError(f"--{flag.replace('_', '-')} is for --conversations: leave it out")
    with Progress() as on_progress:
        if command.corpus:
            for flag in ("name", "tokenizer", "bpe_vocab_size", "separator", "unknown", "val_fraction"):
                if getattr(command, flag) is not None:
                    raise UserError(f"--{flag.replace('_', '-')} is settled for '{command.corpus}': it is for --text")
            dataset = prepare_named(
                command.corpus,
                command.data_dir,
                from_file=command.from_file,
                overwrite=command.overwrite,
                workers=command.workers,
                on_progress=on_progress,
            )
        elif command.conversations:
            for flag in ("separator", "unknown", "from_file"):
                if getattr(command, flag) is not None:
                    raise UserError(f"--{flag.replace('_', '-')} is not for --conversations: leave it out")
            if not command.name or not command.tokenizer:
                raise UserError("--conversations needs --name NAME and --tokenizer char|gpt2|bpe|PATH as well")
            from gpt_common.data.conversations.preparing import prepare_conversations

            dataset = prepare_conversations(
                command.conversations,
                command.name,
                command.data_dir,
                command.tokenizer,
                template=command.template,
                train_on=command.train_on or "answers",
                block_size=command.block_size,
                bpe_vocab_size=command.bpe_vocab_size,
                val_fraction=0.1 if command.val_fraction is None else command.val_fraction,
                overwrite=command.overwrite,
                on_progress=on_progress,
            )
        else:
            if command.from_file:
                raise UserError("--from-file is for corpora that have a name: leave it out, --text names the files")
            if not command.name or not command.tokenizer:
                raise UserError("--text needs --name NAME and --tokenizer char|gpt2|bpe|PATH as well")
            if command.name in SHAKESPEARE:
                raise UserError(f"the name '{command.name}' belongs to Tiny Shakespeare: take another --name")
            dataset = prepare_texts(
                command.text,
                command.name,
                command.data_dir,
                command.tokenizer,
                bpe_vocab_size=command.bpe_vocab_size,
                separator=command.separator,
                unknown=command.unknown,
                val_fraction=0.1 if command.val_fraction is None else command.val_fraction,
                overwrite=command.overwrite,
                workers=command.workers,
                on_progress=on_progress,
            )
    print(summary(dataset, command.data_dir))


def _stop(number: int, _frame: FrameType | None) -> None:
    """SIGTERM, like Ctrl-C, cleans up before the process ends."""
    raise Stopped(number)


if __name__ == "__main__":
    run_main(main)
