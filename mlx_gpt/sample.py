"""`python -m mlx_gpt.sample`: continue a text with a trained model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gpt_common.cli import answer_early
from gpt_common.commands import SampleSettings
from gpt_common.errors import run_main
from gpt_common.machine.blas import load_fast_blas
from gpt_common.sampling import choose, window
from gpt_common.training.source import open_source, parse_sampling, print_samples

if __name__ == "__main__":
    answer_early(lambda argv: parse_sampling(argv, prog="python -m mlx_gpt.sample"))
    load_fast_blas()  # before MLX is imported

import mlx.core as mx
import numpy as np

from gpt_common.config import TrainConfig
from mlx_gpt.checkpoint import build_model
from mlx_gpt.device import compute_dtype, select_device
from mlx_gpt.model import GPT


def generate(
    model: GPT, prompt: Sequence[int], settings: SampleSettings, draws: Iterator[float], known: int | None = None
) -> Iterator[int]:
    """New token ids, one at a time, with keys and values of the past cached.

    Args:
        prompt: token ids; only the last of them that fit the block are seen.
        draws: uniform numbers in [0, 1), one per token.
        known: entries of the tokenizer, where the model's vocabulary is padded beyond it: what lies there has no text.
    """
    context = list(prompt)
    caches = model.new_caches()
    fresh = window(context, model.config.block_size)
    for _ in range(settings.max_new_tokens):
        if caches[0].length + len(fresh) > model.config.block_size:
            caches, fresh = model.new_caches(), window(context, model.config.block_size)
        logits_BTV = model(mx.array([fresh]), caches=caches)
        token = choose(np.array(logits_BTV[0, -1, :known].astype(mx.float32)), settings, next(draws))
        context.append(token)
        fresh = [token]
        yield token


def main(argv: Sequence[str]) -> None:
    """The command."""
    path, command = parse_sampling(argv, prog="python -m mlx_gpt.sample")
    source = open_source(path, latest=command.latest)
    device = select_device(command.device)
    dtype = compute_dtype(TrainConfig(dtype=command.dtype), device)
    model = build_model(source.checkpoint, source.model, dtype)
    known = source.tokenizer.vocab_size
    print_samples(command, source, lambda prompt, draws: generate(model, prompt, command, draws, known))


if __name__ == "__main__":
    run_main(main)
