"""`python benchmarks/studies/forms.py`: what it costs to hold a text to a form, in both twins.

A list of people as JSON that never ends, against text without a form: as many tokens, by the same model at its initial
weights, on this CPU. Each side works in a process of its own, and they take turns, A B B A; what is printed is the
median of the turns' ratios and their range. Then, within one process, what of a token's time goes into the form: the
matcher's next mask and the divergence that it causes, and how much less the choice costs among fewer tokens.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.studies.turns import cpu_work, start_side, take_turns, work_on_request
from gpt_common import sampling
from gpt_common.cli import parse
from gpt_common.commands import SampleSettings
from gpt_common.config import ModelConfig, RunConfig, load_preset
from gpt_common.data.conversations.stories_qa import write_texts
from gpt_common.data.tokenizers import CharTokenizer, Tokenizer, train_bpe_on
from gpt_common.errors import UserError, run_main
from gpt_common.keyed import draws
from gpt_common.sampling import Continuation, choose
from gpt_common.structured import CompiledForm, Constraint, Form, compile_form

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
Side = Literal["free", "held"]
Vocabulary = Literal["characters", "bpe", "gpt2-sized"]
PRESETS = {"characters": "stories-cpu", "bpe": "shakespeare-bpe", "gpt2-sized": "shakespeare-bpe"}


@dataclass(frozen=True, kw_only=True)
class FormsStudy:
    """Measure what it costs to hold a text to a form."""

    twin: Twin | None = None
    """Measure this twin only."""
    vocabulary: Vocabulary | None = None
    """Measure with this vocabulary only; gpt2-sized: a BPE of 50 257 tokens, most of them made up."""
    turns: int = 6
    """Turns per twin and vocabulary; each gives one ratio."""
    seconds: float = 2.0
    """Least time of one side's turn."""
    side: Side | None = None
    """For this program's own use: generate as long as the standard input says."""

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
    words = ("".join(map(chr, rng.integers(97, 123, 6))) for _ in range(400_000))
    return train_bpe_on([*texts, " ".join(islice(words, 400_000))], 50_257)


def config_of(vocabulary: Vocabulary, tokenizer: Tokenizer) -> ModelConfig:
    """The preset's model for as many tokens."""
    return load_preset(PRESETS[vocabulary]).with_vocabulary(tokenizer.vocab_size).model


def generation(twin: Twin, vocabulary: Vocabulary, side: Side) -> Callable[[], list[int]]:
    """A function that makes TOKENS tokens, held to the form or not."""
    tokenizer = tokenizer_of(vocabulary)
    model = cpu_work(twin, RunConfig(model=config_of(vocabulary, tokenizer))).model
    generate = import_module(f"{twin}_gpt.sample").generate
    form, settings = compiled(tokenizer), SampleSettings(max_new_tokens=TOKENS)
    prompt = tokenizer.encode("Once upon a time")

    def make() -> list[int]:
        constraint = form.begin() if side == "held" else None
        made = list(generate(model, prompt, settings, draws(1, 0), tokenizer.vocab_size, constraint))
        assert len(made) == TOKENS
        return made

    return make


def compiled(tokenizer: Tokenizer) -> CompiledForm:
    """The endless list for a tokenizer."""
    return compile_form(Form("json_schema", json.dumps(SCHEMA)), tokenizer)


def start(vocabulary: str, twin: str, side: str) -> subprocess.Popen[str]:
    """One side of the comparison."""
    return start_side(__file__, side, twin, "--vocabulary", vocabulary)


def parts(vocabulary: Vocabulary, texts: int = 40) -> dict[str, float]:
    """Microseconds per token of what is done about a form, and of the choice without it; logits are made up."""
    tokenizer = tokenizer_of(vocabulary)
    form, settings = compiled(tokenizer), SampleSettings(max_new_tokens=TOKENS)
    rng, spent = np.random.default_rng(0), dict.fromkeys(("take", "nats", "choose held", "choose free", "begin"), 0.0)
    logits = rng.normal(0, 1, (64, tokenizer.vocab_size)).astype(np.float32)

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            if sampling.choose is choose:  # inside another that is timed
                return call(*arguments)
            held, sampling.choose = sampling.choose, choose
            began = time.perf_counter()
            found = call(*arguments)
            spent[name] += time.perf_counter() - began
            sampling.choose = held
            return found

        return run

    take, nats = Constraint.take, sampling.nats_outside
    try:
        Constraint.take = timed("take", take)  # type: ignore[method-assign]
        sampling.nats_outside = timed("nats", nats)
        sampling.choose = timed("choose held", choose)
        for text in range(texts):
            numbers = draws(text, 0)
            sequence = Continuation([0], settings, numbers, timed("begin", form.begin)())
            for token in range(TOKENS):
                sequence.advance(logits[token % 64])
                timed("choose free", choose)(logits[token % 64], settings, next(numbers))
    finally:
        Constraint.take, sampling.nats_outside, sampling.choose = take, nats, choose  # type: ignore[method-assign]
    return {name: 1e6 * seconds / (texts * TOKENS) for name, seconds in spent.items()}


def main(argv: Sequence[str]) -> None:
    """The command, or one side of it in a child process."""
    command = parse(FormsStudy, argv, prog=PROG)
    if command.side is not None:
        assert command.vocabulary is not None
        work_on_request(generation(command.twin or "torch", command.vocabulary, command.side))
        return
    vocabularies: list[Vocabulary] = [command.vocabulary] if command.vocabulary else ["characters", "bpe", "gpt2-sized"]
    print(f"{'held / free':22} {'median':>7} {'range':>16}   ms a token of each side")
    for vocabulary in vocabularies:
        for twin in [command.twin] if command.twin else ["torch", "mlx"]:
            pairs = take_turns(("held", "free"), partial(start, vocabulary, twin), command.turns, command.seconds)
            ratios = [held / free for held, free in pairs]
            spread = f"{min(ratios):.3f} .. {max(ratios):.3f}"
            each = " / ".join(f"{1e3 * statistics.median(side) / TOKENS:.3f}" for side in zip(*pairs, strict=True))
            print(f"{vocabulary + ', ' + twin:22} {statistics.median(ratios):7.3f} {spread:>16}   {each}", flush=True)
        said = ", ".join(f"{name} {found:.1f}" for name, found in parts(vocabulary).items())
        print(f"{vocabulary}: microseconds per token: {said}", flush=True)


if __name__ == "__main__":
    run_main(main)
