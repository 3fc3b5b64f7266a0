"""`python benchmarks/studies/forms.py`: what it costs to hold a text to a form, in both twins.

A list of people as JSON that never ends, against text without a form: as many tokens, by the same model at its initial
weights, on one thread of this CPU, text by text in alternation. Printed are the median ratio of neighbours, the ratio
of the fastest texts (which a busy machine disturbs least), their microseconds per token, and how many of these went
into the form, for the next mask and for the divergence. A choice among fewer tokens is quicker, and what is certain is
not chosen, so that a form may cost less than nothing.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.studies.turns import cpu_work
from gpt_common.cli import parse
from gpt_common.commands import SampleSettings
from gpt_common.config import ModelConfig, RunConfig, load_preset
from gpt_common.data.conversations.stories_qa import write_texts
from gpt_common.data.tokenizers import CharTokenizer, Tokenizer, train_bpe_on
from gpt_common.errors import UserError, WorkFailed, run_main
from gpt_common.keyed import draws
from gpt_common.structured import CompiledForm, Constraint, Divergence, Form, compile_form

PROG = "python benchmarks/studies/forms.py"
TOKENS = 96
SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "animal": {"enum": ["frog", "hen", "goat"]},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
        },
        "required": ["name", "animal", "age"],
        "additionalProperties": False,
    },
    "minItems": 1000,
}
Twin = Literal["torch", "mlx"]
Vocabulary = Literal["characters", "bpe", "gpt2-sized"]
PRESETS: dict[Vocabulary, str] = {
    "characters": "stories-cpu",
    "bpe": "shakespeare-bpe",
    "gpt2-sized": "shakespeare-bpe",
}


@dataclass(frozen=True, kw_only=True)
class FormsStudy:
    """Measure what it costs to hold a text to a form."""

    twin: Twin | None = None
    """Measure this twin only."""
    vocabulary: Vocabulary | None = None
    """Measure with this vocabulary only; gpt2-sized: a BPE of 50 257 tokens, most of them made up."""
    preset: str | None = None
    """Of the model; left out, the smallest that fits the vocabulary."""
    turns: int = 60
    """Texts of each side, one after the other in alternation."""

    def __post_init__(self) -> None:
        if self.turns < 1:
            raise UserError(f"turns is {self.turns}: it must be at least 1")


def tokenizer_of(vocabulary: Vocabulary) -> Tokenizer:
    """All of ASCII, or pairs of bytes learnt from stories and their JSON."""
    if vocabulary == "characters":
        return CharTokenizer("\n" + "".join(map(chr, range(32, 127))))
    texts = [text for text, _ in write_texts(1, "train", 4000)]
    if vocabulary == "bpe":
        return train_bpe_on(texts, 1024)
    rng = np.random.default_rng(0)
    return train_bpe_on([*texts, *("".join(map(chr, rng.integers(97, 123, 7))) for _ in range(200_000))], 50_257)


def config_of(vocabulary: Vocabulary, tokenizer: Tokenizer, preset: str | None = None) -> ModelConfig:
    """The preset's model for as many tokens."""
    return load_preset(preset or PRESETS[vocabulary]).with_vocabulary(tokenizer.vocab_size).model


def generation(twin: Twin, vocabulary: Vocabulary, preset: str | None = None) -> Callable[[bool], None]:
    """A function that makes TOKENS tokens, held to the form or not."""
    tokenizer = tokenizer_of(vocabulary)
    model = cpu_work(twin, RunConfig(model=config_of(vocabulary, tokenizer, preset))).model
    generate = import_module(f"{twin}_gpt.sample").generate
    form, settings = compiled(tokenizer), SampleSettings(max_new_tokens=TOKENS)
    prompt, numbers = tokenizer.encode("Once upon a time"), count()

    def make(held: bool) -> None:
        constraint = form.begin() if held else None
        made = list(generate(model, prompt, settings, draws(1, next(numbers)), tokenizer.vocab_size, constraint))
        assert len(made) == TOKENS

    return make


def compiled(tokenizer: Tokenizer) -> CompiledForm:
    """The endless list for a tokenizer."""
    return compile_form(Form("json_schema", json.dumps(SCHEMA)), tokenizer)


@contextmanager
def watched() -> Iterator[list[float]]:
    """Seconds of each text that went into its form: every mask, and every divergence."""
    spent = [0.0]

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            began = time.perf_counter()
            found = call(*arguments)
            spent[-1] += time.perf_counter() - began
            return found

        return run

    take, add = Constraint.take, Divergence.add
    Constraint.take, Divergence.add = timed(take), timed(add)  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        Constraint.take, Divergence.add = take, add  # type: ignore[method-assign]


def measure(command: FormsStudy, twin: Twin, vocabulary: Vocabulary) -> str:
    """A line of the table."""
    make = generation(twin, vocabulary, command.preset)

    def seconds(held: bool) -> float:
        began = time.perf_counter()
        make(held)
        return (time.perf_counter() - began) / TOKENS

    pairs = []
    for turn in range(-2, command.turns):  # two that warm up
        first = turn % 2 == 0
        sides = {first: seconds(first), not first: seconds(not first)}
        pairs.append((sides[True], sides[False]))
    with watched() as spent:
        for _ in range(command.turns):
            make(True)
            spent.append(0.0)
    ratio = statistics.median(held / free for held, free in pairs[2:])
    held, free = (min(side) for side in zip(*pairs[2:], strict=True))
    form = min(spent[:-1]) / TOKENS
    name = f"{vocabulary}, {twin}"
    times = f"{1e6 * held:9,.0f} {1e6 * free:9,.0f} {1e6 * form:9.1f}"
    return f"{name:18} {ratio:7.3f} {held / free:9.3f} {times} {form / free:7.1%}"


def main(argv: Sequence[str]) -> None:
    """The command, or one line of it in a child process."""
    command = parse(FormsStudy, argv, prog=PROG)
    if command.twin is not None and command.vocabulary is not None:
        print(measure(command, command.twin, command.vocabulary), flush=True)
        return
    print(f"{'':18} {'ratio of held and free':>17} {'microseconds per token':>19}")
    print(f"{'':18} {'median':>7} {'fastest':>9} {'held':>9} {'free':>9} {'form':>9} {'share':>7}", flush=True)
    for vocabulary in [command.vocabulary] if command.vocabulary else PRESETS:
        for twin in [command.twin] if command.twin else ("torch", "mlx"):
            words = [
                sys.executable,
                __file__,
                "--twin",
                twin,
                "--vocabulary",
                vocabulary,
                "--turns",
                str(command.turns),
                *(["--preset", command.preset] if command.preset else []),
            ]
            if subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode:
                raise WorkFailed(f"{vocabulary}, {twin} ended early: its error stands above")


if __name__ == "__main__":
    run_main(main)
