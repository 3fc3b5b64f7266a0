"""tokenizer.json: another one, a broken one, one whose vocabulary steers terminals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpt_common.data.tokenizers import identity, load_tokenizer
from gpt_common.training.manifest import TOKENIZER_FILE
from tests.gpt_common.training.hostile.case import Case
from tests.gpt_common.training.hostile.sound import Damage, content, place, state

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SAMPLE = frozenset({"sample"})
ESCAPES = "\x1b\x07\x9b\u202e\u2066\x00\r\x08a"
"""As many characters as the sound vocabulary has."""


def _text(text: bytes) -> Damage:
    return content(TOKENIZER_FILE, lambda _: text)


def _document(document: Any) -> Damage:
    return content(TOKENIZER_FILE, lambda _: json.dumps(document).encode())


def _bpe(**values: Any) -> Damage:
    """A byte-level BPE of 9 tokens that is believed by the manifest, or would be if it were one."""
    model = {"type": "BPE", "vocab": {letter: i for i, letter in enumerate("abcdefghi")}, "merges": []}
    definition = {"decoder": BYTES, "pre_tokenizer": BYTES, "model": model, "added_tokens": [], **values}
    return _document({"kind": "bpe", "tokenizer": definition})


def _believed(damage: Damage) -> Damage:
    """The manifest agrees with the tokenizer."""

    def both(run: Path) -> None:
        damage(run)
        found = identity(load_tokenizer(place(run, TOKENIZER_FILE)))
        state(lambda entries: entries.update(tokenizer=found, prompt=None))(run)

    return both


def _unnamed(damage: Damage) -> Damage:
    """The manifest does not say which tokenizer it was."""

    def both(run: Path) -> None:
        damage(run)
        state(lambda entries: entries.update(tokenizer=None, prompt=None))(run)

    return both


BROKEN = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "100 000 deep": b'{"kind":' * 100_000,
    "millions of lists": b"[" + b"[]," * 4_000_000 + b"[]]",
    "an unknown kind": b'{"kind": "\\u001b[2J"}',
    "no characters": b'{"kind": "char", "characters": ""}',
    "one character twice": b'{"kind": "char", "characters": "aa"}',
    "half a pair": b'{"kind": "char", "characters": "\\ud800"}',
    "characters that are a number": b'{"kind": "char", "characters": 5}',
    "kind and nothing else": b'{"kind": "bpe"}',
    "tokens of strange kinds": b'{"kind": "gpt2", "tokens": [1, null, []]}',
    "no tokens": b'{"kind": "gpt2", "tokens": []}',
    "a definition that is empty": b'{"kind": "bpe", "tokenizer": {}}',
}
DEFINITIONS: dict[str, dict[str, Any]] = {
    "a model that is a list": {"model": [1]},
    "a model that is a text": {"model": "BPE"},
    "no vocabulary": {"model": {"type": "BPE"}},
    "ids below nothing": {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
    "merges of strange kinds": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [1, None]}},
    "merges as numbers": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": 7}},
    "merges of what is not there": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]}},
    "added tokens that are none": {"added_tokens": {"a": 1}},
    "added tokens of strange kinds": {"added_tokens": [1]},
    "a splitter that is a list": {"pre_tokenizer": [1]},
    "a splitter that backtracks without end": {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a|aa)+$("}, "behavior": "Isolated", "invert": False}
    },
    "a normaliser that is unknown": {"normalizer": {"type": "X"}},
}
HUGE_ID = {"model": {"type": "BPE", "vocab": {"a": 4_000_000_000}, "merges": []}}
CASES = [
    *(Case(f"tokenizer: {name}", _text(text), "tokenizer", SAMPLE) for name, text in BROKEN.items()),
    *(Case(f"tokenizer: {name}", _bpe(**values), "tokenizer", SAMPLE) for name, values in DEFINITIONS.items()),
    Case("tokenizer: another one", _document({"kind": "char", "characters": "abcdefghi"}), "another tokenizer", SAMPLE),
    Case("tokenizer: of another kind", _bpe(), "another tokenizer", SAMPLE),
    Case(
        "tokenizer: more entries than rows",
        _unnamed(_document({"kind": "char", "characters": "abcdefghijklmnop"})),
        "16 entries",
        SAMPLE,
    ),
    Case("tokenizer: an id of four milliards", _unnamed(_bpe(**HUGE_ID)), "entries", SAMPLE),
    Case("tokenizer: an id of four milliards, believed", _believed(_bpe(**HUGE_ID)), "entries|tokenizer", SAMPLE),
    Case(
        "tokenizer: escapes, believed", _believed(_document({"kind": "char", "characters": ESCAPES})), "", frozenset()
    ),
    Case(
        "tokenizer: with gaps, believed",
        _believed(_bpe(model={"type": "BPE", "vocab": {"a": 0, "b": 7}, "merges": []})),
        "",
        frozenset(),
    ),
    Case(
        "prompt: outside the vocabulary",
        state(lambda entries: entries.update(prompt="\x1b[2J\u202e")),
        "x1b",
        SAMPLE,
    ),
    Case("prompt: empty", state(lambda entries: entries.update(prompt="")), "", frozenset()),
    Case("prompt: endless", state(lambda entries: entries.update(prompt="a" * 1_000_000)), "", frozenset()),
]
