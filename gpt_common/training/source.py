"""A trained model as `sample` takes it up: command line, checkpoint with its tokenizer, and the text printed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt_common.cli import parse
from gpt_common.commands import SampleCommand
from gpt_common.config import ModelConfig
from gpt_common.data.tokenizers import TextStream, Tokenizer, load_tokenizer
from gpt_common.errors import UserError
from gpt_common.keyed import draws
from gpt_common.sampling import encode_prompt
from gpt_common.training.checkpoint import find_checkpoint, read_manifest
from gpt_common.training.manifest import TOKENIZER_FILE

# (prompt ids, uniform numbers of one sample) -> new token ids, one at a time.
Generate = Callable[[Sequence[int], Iterator[float]], Iterator[int]]


def parse_sampling(argv: Sequence[str], *, prog: str) -> tuple[Path, SampleCommand]:
    """The sampling command line: the checkpoint or run folder, then flags."""
    words = list(argv)
    if not words or words[0].startswith("-"):
        raise UserError(f"which run or checkpoint? {prog} runs/NAME --prompt TEXT")
    return Path(words[0]), parse(SampleCommand, words[1:], prog=f"{prog} CKPT")


@dataclass(frozen=True)
class Source:
    """What a sample command needs of a checkpoint, before a framework is asked."""

    checkpoint: Path
    model: ModelConfig
    tokenizer: Tokenizer
    prompt: str


def open_source(path: Path, *, latest: bool) -> Source:
    """The checkpoint that `path` means, with its shape and tokenizer.

    Raises:
        UserError: no checkpoint there, a damaged one, or one without a tokenizer.
    """
    checkpoint = find_checkpoint(path, prefer="latest" if latest else "best")
    manifest = read_manifest(checkpoint)
    if not (checkpoint / TOKENIZER_FILE).exists():
        raise UserError(f"{checkpoint} has no {TOKENIZER_FILE}: copy in the one that the model was trained with")
    tokenizer = load_tokenizer(checkpoint / TOKENIZER_FILE)
    prompt = "\n" if manifest.prompt is None else manifest.prompt
    return Source(checkpoint, manifest.run_config.model, tokenizer, prompt)


def print_samples(command: SampleCommand, source: Source, generate: Generate) -> None:
    """Write every sample to standard output as it is made.

    Raises:
        UserError: a prompt with a character outside the vocabulary, or longer than the block.
    """
    if command.prompt is None:
        # The dataset's own, cut to a block too short for it.
        prompt = source.tokenizer.encode(source.prompt)[: source.model.block_size]
    else:
        prompt = encode_prompt(command.prompt, source.tokenizer, source.model.block_size)
    text = source.tokenizer.decode(prompt)
    for sample in range(command.num_samples):
        if command.num_samples > 1:
            print(f"--- sample {sample + 1} of {command.num_samples} (seed {command.seed})")
        stream = TextStream(source.tokenizer)
        sys.stdout.write(text)
        for token in generate(prompt, draws(command.seed, sample)):
            sys.stdout.write(stream.push(token))
            sys.stdout.flush()
        print(stream.finish())
