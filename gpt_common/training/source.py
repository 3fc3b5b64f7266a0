"""A trained model as `sample` takes it up: command line, checkpoint with its tokenizer, and the text printed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt_common.cli import parse
from gpt_common.commands import SampleCommand
from gpt_common.config import ModelConfig
from gpt_common.data.tokenizers import TextStream, Tokenizer, default_prompt, load_tokenizer
from gpt_common.errors import UserError
from gpt_common.keyed import draws
from gpt_common.sampling import Batch, Continuation, continue_together, encode_prompt
from gpt_common.training.checkpoint import described, find_checkpoint
from gpt_common.training.folder import newest_run
from gpt_common.training.manifest import TOKENIZER_FILE, Manifest
from gpt_common.training.pretrained import local_run
from gpt_common.words import one_line, printable

AT_ONCE = 8
"""Samples that are made together."""


def parse_sampling(argv: Sequence[str], *, prog: str) -> tuple[Path, SampleCommand]:
    """The sampling command line: the checkpoint or run folder, if not the newest run is meant, then flags."""
    words = list(argv)
    command = parse(SampleCommand, words[1:] if words and not words[0].startswith("-") else words, prog=f"{prog} CKPT")
    if words and not words[0].startswith("-"):
        return Path(words[0]), command
    run = newest_run()
    print(f"sampling from the newest run, {one_line(str(run))}", file=sys.stderr)
    return run, command


@dataclass(frozen=True)
class Source:
    """What a sample command needs of a checkpoint, before a framework is asked."""

    checkpoint: Path
    model: ModelConfig
    tokenizer: Tokenizer
    prompt: str


def open_source(path: Path, *, latest: bool) -> Source:
    """The checkpoint that `path` means, with its shape and tokenizer; `hf:OWNER/NAME` is brought in first.

    Raises:
        UserError: no checkpoint there, a damaged one, or one without a tokenizer.
    """
    checkpoint = find_checkpoint(local_run(path), prefer="latest" if latest else "best")
    manifest = described(checkpoint)
    if not (checkpoint / TOKENIZER_FILE).exists():
        raise UserError(f"{checkpoint} has no {TOKENIZER_FILE}: copy in the one that the model was trained with")
    tokenizer = load_tokenizer(checkpoint / TOKENIZER_FILE)
    _check_tokenizer(checkpoint, tokenizer, manifest)
    prompt = manifest.prompt or default_prompt(tokenizer)
    return Source(checkpoint, manifest.run_config.model, tokenizer, prompt)


def _check_tokenizer(checkpoint: Path, tokenizer: Tokenizer, manifest: Manifest) -> None:
    """Refuse a tokenizer that the model was not trained with: its ids would mean other text, or lie outside."""
    path, rows = checkpoint / TOKENIZER_FILE, manifest.run_config.model.vocab_size
    remedy = "copy in the one that the model was trained with"
    if manifest.tokenizer and manifest.tokenizer["fingerprint"] != tokenizer.fingerprint:
        theirs = f"{manifest.tokenizer['kind']}, {manifest.tokenizer['vocab_size']} entries"
        ours = f"{tokenizer.kind}, {tokenizer.vocab_size} entries"
        raise UserError(f"{path} is another tokenizer ({ours}) than the model's ({theirs}): {remedy}")
    if tokenizer.vocab_size > rows:
        raise UserError(f"{path} has {tokenizer.vocab_size} entries, and the model {rows}: {remedy}")


def print_samples(command: SampleCommand, source: Source, batch: Batch) -> None:
    """Write every sample to standard output, in order: the first that is not finished as it is made, the others, made
    at the same time, when it is their turn.

    Raises:
        UserError: a prompt with a character outside the vocabulary, or longer than the block.
    """
    tokenizer = source.tokenizer
    if command.prompt is None:
        # The dataset's own, cut to a block too short for it.
        prompt = tokenizer.encode_written(source.prompt)[: source.model.block_size]
    else:
        prompt = encode_prompt(command.prompt, tokenizer, source.model.block_size)
    # What the model says comes out of a file, its vocabulary: it must not steer a terminal.
    text = printable(tokenizer.decode(prompt))
    samples = range(command.num_samples)
    sequences = (Continuation(list(prompt), command, draws(command.seed, sample)) for sample in samples)
    streams: dict[int, TextStream] = {}  # of the samples that have said something
    unseen: dict[int, str] = {}  # what was said and not written yet
    ended: set[int] = set()
    shown = 0  # the sample that is being written

    def begin(sample: int) -> None:
        if command.num_samples > 1:
            print(f"--- sample {sample + 1} of {command.num_samples} (seed {command.seed})")
        sys.stdout.write(text)

    begin(0)
    for sample, token in continue_together(batch, sequences, AT_ONCE, lambda _, token: token == tokenizer.end_of_text):
        if token is None:
            ended.add(sample)
            rest = streams[sample].finish() if sample in streams else ""
            unseen[sample] = f"{unseen.get(sample, '')}{rest}\n"
        elif token != tokenizer.end_of_text:
            piece = streams.setdefault(sample, TextStream(tokenizer)).push(token)
            unseen[sample] = unseen.get(sample, "") + printable(piece)
        while shown in unseen:
            sys.stdout.write(unseen.pop(shown))
            sys.stdout.flush()
            if shown not in ended:
                break
            if shown not in streams:
                print("the model ended the document at once: give it a --prompt, or another --seed", file=sys.stderr)
            shown += 1
            if shown < command.num_samples:
                begin(shown)
