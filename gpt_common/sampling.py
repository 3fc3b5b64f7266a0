"""From logits to text: the choice of a token, and the command line of `sample` in both twins.

The choice is made by numpy in float64 from uniform numbers that depend on the seed alone, so equal logits give
equal text in both twins.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpt_common.cli import SampleCommand, SampleSettings
from gpt_common.config import ModelConfig, from_dict
from gpt_common.data.tokenizers import TextStream, Tokenizer, load_tokenizer
from gpt_common.errors import UserError
from gpt_common.network.init import keyed_generator
from gpt_common.training.checkpoint import TOKENIZER_FILE, find_checkpoint, read_state

# (prompt ids, uniform numbers of one sample) -> new token ids, one at a time.
Generate = Callable[[Sequence[int], Iterator[float]], Iterator[int]]


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
    state = read_state(checkpoint)
    model = from_dict(state["config"]).model
    if not (checkpoint / TOKENIZER_FILE).exists():
        raise UserError(f"{checkpoint} has no {TOKENIZER_FILE}: copy in the one that the model was trained with")
    return Source(checkpoint, model, load_tokenizer(checkpoint / TOKENIZER_FILE), state.get("prompt", "\n"))


def choose(logits_V: npt.NDArray[np.float32], settings: SampleSettings, draw: float) -> int:
    """The next token: the likeliest at temperature 0, else by inverting the cumulative distribution at `draw`.

    Args:
        logits_V: (V,) float32.
        draw: a uniform number in [0, 1).
    """
    if settings.temperature == 0:
        return int(np.argmax(logits_V))
    scores_V = logits_V.astype(np.float64) / settings.temperature
    # Likeliest first; equal logits in order of their ids, so that the order does not depend on the backend.
    order_V = np.argsort(-scores_V, kind="stable")
    if settings.top_k:
        order_V = order_V[: settings.top_k]
    weights = np.exp(scores_V[order_V] - scores_V[order_V[0]])
    cumulative = np.cumsum(weights / weights.sum())
    if settings.top_p < 1:
        # The smallest set that reaches top_p (Holtzman et al. 2020): at least one token.
        cumulative = cumulative[: int(np.searchsorted(cumulative, settings.top_p)) + 1]
    return int(order_V[min(int(np.searchsorted(cumulative, draw * cumulative[-1], side="right")), len(cumulative) - 1)])


def draws(seed: int, sample: int) -> Iterator[float]:
    """Endless uniform numbers in [0, 1) of one sample."""
    generator = keyed_generator(seed, "sample", sample)
    while True:
        yield float(generator.random())


def window(context: Sequence[int], block_size: int) -> list[int]:
    """What a model can see of a context, with room to go on.

    A context that fills the block is cut to its last three quarters: learned positions cannot slide, so the
    cache is built anew from there, once in a quarter of a block and not at every token.
    """
    return list(context if len(context) < block_size else context[-max(1, 3 * block_size // 4) :])


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


def encode_prompt(prompt: str, tokenizer: Tokenizer, block_size: int) -> list[int]:
    """Token ids of a prompt that fits the model.

    Raises:
        UserError: empty, with a character outside the vocabulary, or longer than the block.
    """
    ids = tokenizer.encode(prompt)
    if len(ids) > block_size:
        raise UserError(f"the prompt has {len(ids)} tokens, the model's block holds {block_size}: shorten it")
    if not ids:
        raise UserError("the prompt is empty: give at least one character")
    return ids
