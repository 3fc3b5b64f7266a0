"""Generation: how fast a prompt is read, and how fast tokens follow, against the length of the context.

The sampler of each twin does the work as `sample` does it for people: greedy, one token at a time, each copied to the
host before the next one is begun, keys and values of the past cached.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import numpy as np

from benchmarks.measuring.samples import median_of
from benchmarks.measuring.work import Work
from benchmarks.readings import Generation, PromptLength
from gpt_common.config import RunConfig
from gpt_common.keyed import keyed_generator

NEW_TOKENS = 32
REPEATS = 3
"""Of each length in each round, after one that warms up."""


def prompt_lengths(block_size: int) -> list[int]:
    """Powers of four from 4, and the longest prompt that leaves room for the new tokens."""
    longest = max(1, block_size - NEW_TOKENS)
    lengths = [length for length in (4, 16, 64, 256, 1024, 4096) if length < longest]
    return [*lengths, longest]


def measure_generation(
    work: Work,
    config: RunConfig,
    report: Callable[[str, float], None],
    clock: Callable[[], float] = time.perf_counter,
) -> Generation:
    """Times for every prompt length; the first repetition warms up and does not count."""
    block_size = config.model.block_size
    lengths = prompt_lengths(block_size)
    tokens = keyed_generator(config.train.seed, "benchmark prompt").integers(0, config.model.vocab_size, block_size)
    found, digest = [], hashlib.sha256()
    for i, length in enumerate(lengths):
        prompt = [int(token) for token in tokens[:length]]
        new_tokens = min(NEW_TOKENS, block_size - length)
        prompt_seconds: list[float] = []
        token_seconds: list[float | None] = []
        text: list[int] = []
        for repeat in range(REPEATS + 1):
            report("generation", (i + repeat / (REPEATS + 1)) / len(lengths))
            times, text = [], []
            began = clock()
            for token in work.generate(prompt, new_tokens):
                now = clock()
                times.append(now - began)
                text.append(token)
                began = now
            if repeat:
                prompt_seconds.append(times[0])
                token_seconds.append(median_of(times[1:]))
        digest.update(np.array(text, np.int32).tobytes())
        found.append(PromptLength(prompt=length, prompt_seconds=prompt_seconds, token_seconds=token_seconds))
    return Generation(new_tokens=NEW_TOKENS, lengths=found, greedy_sha256=digest.hexdigest())
