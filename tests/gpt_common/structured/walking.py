"""Vocabularies, and texts that keep to a form and know no more than it: each token drawn from those allowed."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np

from gpt_common.data.tokenizers import (
    BpeTokenizer,
    CharTokenizer,
    ExtendedTokenizer,
    Gpt2Tokenizer,
    Tokenizer,
    train_bpe_on,
)
from gpt_common.structured import CompiledForm, Constraint, Form, compile_form
from tests.borrowed import provide_gpt2_vocabulary

ASCII = "\n" + "".join(map(chr, range(32, 127)))
"""What JSON is written with, and more."""
VOCABULARIES = ("characters", "characters with an end", "bpe", "bpe for chats", "gpt2")


@cache
def tokenizer_of(name: str) -> Tokenizer:
    if name == "characters":
        return CharTokenizer(ASCII + "é雨")
    if name == "characters with an end":
        return CharTokenizer(ASCII + "é雨", end_of_text=True)
    if name == "gpt2":
        provide_gpt2_vocabulary()
        return Gpt2Tokenizer()
    bpe: BpeTokenizer = train_bpe_on(
        ['{"name": "Kate", "animal": "frog", "age": 12} ' * 20, "Kate the frog. " * 20], 400
    )
    return ExtendedTokenizer(bpe, ["<|im_start|>", "<|im_end|>"]) if name == "bpe for chats" else bpe


def schema_form(schema: Any, vocabulary: str = "characters with an end", *, whitespace: bool = False) -> CompiledForm:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return compile_form(Form("json_schema", text, whitespace, "s.json"), tokenizer_of(vocabulary))


def regex_form(regex: str, vocabulary: str = "characters with an end") -> CompiledForm:
    return compile_form(Form("regex", regex, name="--regex"), tokenizer_of(vocabulary))


def walk(form: CompiledForm, seed: int, most: int = 400) -> tuple[str, Constraint]:
    """A text by tokens drawn alike, a third of the time by one that closes something; and where it has got to."""
    tokenizer, constraint = form.vocabulary.tokenizer, form.begin()
    rng, made = np.random.default_rng(seed), list[int]()
    while not constraint.closed and len(made) < most:
        closing = [i for i in constraint.allowed if tokenizer.decode([int(i)])[-1:] in ('"', "}", "]")]
        token = int(rng.choice(closing if closing and rng.random() < 0.35 else constraint.allowed))
        constraint.take(token)
        made += [] if token in tokenizer.ends else [token]
    return tokenizer.decode(made), constraint
