"""Ids of stretches of text, remembered: most of a text is words that were there before, and a library splits, looks up
and records places for each of them anew.

A stretch ends where a word ends before a blank at which the tokenizer's splitting rule never joins (cutting.py says
why), so the ids of a text are those of its stretches one after the other, whatever the language.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

MOST = 1 << 15
"""Stretches that are remembered: what comes first is most of what comes later, and memory stays flat."""
LONGEST = 64
"""Characters of one, at most."""

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SAFE = {
    ("ByteLevel",): " \n",  # GPT-2's
    ("Digits", "ByteLevel"): " \n",  # SmolLM's: GPT-2's between digits
    (_LLAMA3, "bytes"): " ",  # there line ends belong to the sign before them
    (_LLAMA3.replace("{1,3}", ""), "bytes"): " ",  # Qwen2's
}
"""Blanks before which a word ends for certain, by splitting rule (`pre_tokenizer` in a tokenizer.json)."""


def safe_blanks(definition: dict[str, Any]) -> str:
    """Blanks at which a text may be cut behind a word without changing an id; none where nothing is known.

    Args:
        definition: the parsed `tokenizer.json`.
    """
    normalizer = definition.get("normalizer") or {"type": "NFC"}
    if normalizer != {"type": "NFC"} or not all(token.get("special") for token in definition.get("added_tokens", [])):
        return ""  # a token that is a text of its own may lie across any cut
    splitter = definition.get("pre_tokenizer") or {}
    steps = splitter.get("pretokenizers", []) if splitter.get("type") == "Sequence" else [splitter]
    return SAFE.get(tuple(map(_rule, steps)), "")


def _rule(step: dict[str, Any]) -> str:
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}:
            return "bytes"
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return "ByteLevel"
        case {"type": "Digits", "individual_digits": True}:
            return "Digits"
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return pattern
        case _:
            return ""


class Remembered(dict[str, list[int]]):
    """Ids by stretch.

    Args:
        encode: gives those that are not remembered.
        blanks: as `safe_blanks` gives them, and at least one.
    """

    def __init__(self, encode: Callable[[str], list[int]], blanks: str) -> None:
        super().__init__()
        self._encode = encode
        # Blanks, a word, and whatever follows up to the next safe one.
        self._stretches = re.compile(rf"\s*\S+(?:[^\S{blanks}]\s*\S*)*|\s+")

    def __missing__(self, stretch: str) -> list[int]:
        ids = self._encode(stretch)
        if len(self) < MOST and len(stretch) <= LONGEST:
            self[stretch] = ids
        return ids

    def ids(self, text: str) -> list[int]:
        """What `encode` would give for the whole text."""
        found: list[int] = []
        for stretch in self._stretches.findall(text):
            found += self[stretch]
        return found
