"""`python -m gpt_common.data`: prepare corpora, and list them."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from gpt_common.cli import parse_subcommand
from gpt_common.errors import Stopped, UserError, run_main

if TYPE_CHECKING:
    from gpt_common.data.dataset import Dataset
    from gpt_common.data.download import Progress

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
        "--shards 'fineweb10B/*.bin' --name NAME",
        "--mix ONE:0.7 OTHER:0.3 --name NAME",
        "--hub OWNER/NAME --name NAME",
    )
    corpus: Annotated[tyro.conf.Positional[str | None], _plain("[CORPUS]")] = None
    """shakespeare_char, shakespeare or tinystories; downloaded and checked. Tiny Shakespeare by characters, the same
    with GPT-2's vocabulary, and TinyStories (2.3 GB) with a vocabulary of 10 000 trained on it."""
    text: Annotated[tuple[Path, ...], _plain("FILE...")] = ()
    """UTF-8 files of your own, taken as one text in this order."""
    conversations: Annotated[tuple[Path, ...], _plain("FILE...")] = ()
    """Files of JSON lines with messages, prompt and completion, or text: what is learnt is the answers."""
    shards: Annotated[tuple[str, ...], _plain("GLOB...")] = ()
    """Ready token shards of llm.c or modded-nanogpt; those with val in their names are for validation. --tokenizer is
    gpt2 if not given."""
    mix: Annotated[tuple[str, ...], _plain("NAME:SHARE...")] = ()
    """Prepared corpora of one tokenizer and their shares of the tokens, 1 taken together. Documents stay whole, no
    token is taken twice."""
    hub: Annotated[str | None, _plain("OWNER/NAME")] = None
    """A data set of the Hugging Face hub, in parquet or JSON lines; each row is a document. Repeat the command to go on
    where it was stopped; train --follow need not wait for its end. --tokenizer is gpt2 if not given."""
    config: Annotated[str | None, _plain("NAME")] = None
    """Which configuration of --hub, if it has several."""
    split: Annotated[str | None, _plain("NAME")] = None
    """Which split of --hub, if not train; its end is for validation."""
    column: Annotated[str | None, _plain("NAME")] = None
    """Which column of --hub holds the text, if not text."""
    revision: Annotated[str | None, _plain("REVISION")] = None
    """Branch, tag or commit of --hub, if not main. The commit is recorded, and going on with another is refused."""
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
    seed: Annotated[int | None, _plain("N")] = None
    """Decides which documents --mix takes, and in which order; 1 if not given."""
    max_tokens: Annotated[int | None, _plain("N")] = None
    """Take no more: of --mix for training, of --hub for both splits."""
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


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """Write questions with answers in JSON, and the schema of these.

    They are about the small worlds of stories-qa.
    """

    out: Path = Path("extraction")
    """Folder for extract.jsonl and schema.json."""
    count: int = 516
    """Questions; of those that are written, 16 are shown as examples and the others asked."""
    seed: int = 30000
    """Which questions; all are about worlds that no training on stories-qa has seen."""
    overwrite: bool = False
    """Replace files that are there."""


COMMANDS: dict[str, Any] = {"prepare": Prepare, "list": List, "extraction": Extraction}


def main(argv: Sequence[str]) -> None:
    """The command."""
    command: Prepare | List | Extraction | None = parse_subcommand(COMMANDS, argv, prog=PROG)
    match command:
        case Prepare():
            signal.signal(signal.SIGTERM, _stop)
            prepare(command)
        case List():
            from gpt_common.data.listing import print_corpora

            print_corpora(command.data_dir)
        case Extraction():
            from gpt_common.data.conversations.extraction import write_extraction

            for path in write_extraction(command.out, command.count, seed=command.seed, overwrite=command.overwrite):
                print(path)


_OF_TEXTS = ("name", "tokenizer", "bpe_vocab_size", "val_fraction")
FLAGS: Mapping[str, Sequence[str]] = {
    "corpus": ("from_file",),
    "text": (*_OF_TEXTS, "separator", "unknown"),
    "conversations": (*_OF_TEXTS, "template", "train_on", "block_size"),
    "shards": ("name", "tokenizer", "val_fraction"),
    "mix": ("name", "seed", "max_tokens"),
    "hub": ("name", "tokenizer", "val_fraction", "config", "split", "column", "revision", "max_tokens"),
}
"""What may be given with each source of a corpus; what stands nowhere here goes with all."""


def prepare(command: Prepare) -> None:
    """Run `prepare` and say what came of it."""
    from gpt_common.data.listing import summary
    from gpt_common.progress import Progress

    source = _source(command)
    with Progress() as on_progress:
        dataset = _prepared(command, source, on_progress)
    tokenizer = command.tokenizer or ""
    is_model = any((Path(tokenizer) / part).exists() for part in ("checkpoints", "state.json")) if tokenizer else False
    print(summary(dataset, command.data_dir, tokenizer if is_model else ""))
    if source == "mix":
        from gpt_common.data.corpora.mixing import described
        from gpt_common.data.dataset import read_meta

        print("\n".join(described(read_meta(command.data_dir / dataset.name)["sources"])))


def _source(command: Prepare) -> str:
    """Which of the sources was given.

    Raises:
        UserError: none or several; a flag that is for another one; a flag that is missing.
    """
    from gpt_common.data.dataset import PREPARABLE

    given = [source for source in FLAGS if getattr(command, source)]
    if len(given) != 1:
        others = ", ".join(_flag(source) for source in list(FLAGS)[2:-1])
        raise UserError(
            f"say which corpus ({', '.join(PREPARABLE)}), or give files of your own with --text, "
            f"{others} or {_flag(list(FLAGS)[-1])}"
        )
    source = given[0]
    for flag in dict.fromkeys(flag for flags in FLAGS.values() for flag in flags):
        if flag in FLAGS[source] or getattr(command, flag) is None:
            continue
        if flag == "from_file":
            raise UserError(
                f"--from-file is for corpora that have a name: leave it out, {_flag(source)} names the files"
            )
        if source == "corpus" and flag in FLAGS["text"]:
            raise UserError(f"{_flag(flag)} is settled for '{command.corpus}': it is for --text")
        users = " and ".join(_flag(other) for other, flags in FLAGS.items() if flag in flags)
        raise UserError(f"{_flag(flag)} is for {users}: leave it out")
    if source != "corpus" and not command.name:
        more = " and --tokenizer char|gpt2|bpe|PATH" if source in ("text", "conversations") else ""
        raise UserError(f"{_flag(source)} needs --name NAME{more} as well")
    if source in ("text", "conversations") and not command.tokenizer:
        raise UserError(f"{_flag(source)} needs --name NAME and --tokenizer char|gpt2|bpe|PATH as well")
    return source


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _prepared(command: Prepare, source: str, on_progress: Progress) -> Dataset:
    """The dataset that was asked for, once it is on the disk."""
    from gpt_common.data.dataset import SHAKESPEARE
    from gpt_common.data.prepare import prepare_named, prepare_texts

    name, folder, overwrite = command.name or "", command.data_dir, command.overwrite
    if source == "corpus":
        return prepare_named(
            command.corpus or "",
            folder,
            from_file=command.from_file,
            overwrite=overwrite,
            workers=command.workers,
            on_progress=on_progress,
        )
    if name in SHAKESPEARE:
        raise UserError(f"the name '{name}' belongs to Tiny Shakespeare: take another --name")
    if source == "conversations":
        from gpt_common.data.conversations.preparing import prepare_conversations

        return prepare_conversations(
            command.conversations,
            name,
            folder,
            command.tokenizer or "",
            template=command.template,
            train_on=command.train_on or "answers",
            block_size=command.block_size,
            bpe_vocab_size=command.bpe_vocab_size,
            val_fraction=command.val_fraction,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    if source == "shards":
        from gpt_common.data.corpora.shards import prepare_shards

        return prepare_shards(
            command.shards,
            name,
            folder,
            command.tokenizer or "gpt2",
            val_fraction=command.val_fraction,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    if source == "mix":
        from gpt_common.data.corpora.mixing import prepare_mixture

        return prepare_mixture(
            command.mix,
            name,
            folder,
            seed=1 if command.seed is None else command.seed,
            max_tokens=command.max_tokens,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    if source == "hub":
        from gpt_common.data.corpora.hub import prepare_hub

        return prepare_hub(
            command.hub or "",
            name,
            folder,
            command.tokenizer or "gpt2",
            config=command.config,
            split=command.split or "train",
            column=command.column or "text",
            revision=command.revision,
            max_tokens=command.max_tokens,
            val_fraction=command.val_fraction,
            overwrite=overwrite,
            workers=command.workers,
            on_progress=on_progress,
        )
    return prepare_texts(
        command.text,
        name,
        folder,
        command.tokenizer or "",
        bpe_vocab_size=command.bpe_vocab_size,
        separator=command.separator,
        unknown=command.unknown,
        val_fraction=command.val_fraction,
        overwrite=overwrite,
        workers=command.workers,
        on_progress=on_progress,
    )


def _stop(number: int, _frame: FrameType | None) -> None:
    """SIGTERM, like Ctrl-C, cleans up before the process ends."""
    raise Stopped(number)


if __name__ == "__main__":
    run_main(main)
