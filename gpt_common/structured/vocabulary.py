"""A tokenizer as llguidance sees it: the bytes of every token, and which characters they can write."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gpt_common.data.tokenizers import Tokenizer
from gpt_common.errors import UserError
from gpt_common.structured.library import llguidance

KEPT = 4
"""Vocabularies that stay in memory: GPT-2's takes a second to make."""
MASKS = 64
"""Of a vocabulary, as lists of ids: of GPT-2's at most 400 kB each."""
_kept: OrderedDict[str, Vocabulary] = OrderedDict()


class Vocabulary:
    """The tokens of a tokenizer.

    Args:
        tokenizer: with or without tokens that end a document or a turn. Where it has none, one is made up behind the
            others, which llguidance must have and no mask shows.

    Raises:
        UserError: llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        library = llguidance()
        self.tokenizer = tokenizer
        self.size = tokenizer.vocab_size
        self.ends = frozenset(tokenizer.ends)
        known, specials = set(tokenizer.known), set(tokenizer.specials.values())
        # Ids without text, and those that no text has, are special to it: only a grammar that names them allows them.
        self.tokens = [
            tokenizer.decode_bytes([i]) if i in known else f"<|no token {i}|>".encode() for i in range(self.size)
        ]
        special = {i for i in range(self.size) if i not in known or i in specials or not self.tokens[i]} | {*self.ends}
        written = [token or f"<|no text {i}|>".encode() for i, token in enumerate(self.tokens)]
        ends = sorted(self.ends)
        if not ends:
            ends = [self.size]
            written.append(b"<|no end|>")
            special.add(self.size)
        self.plain = [token for i, token in enumerate(self.tokens) if i not in special]
        wrapped = _Wrapped(written, ends[0], sorted(special), tokenizer)
        self._lists: dict[bytes, npt.NDArray[np.intp]] = {}
        self.library = library.LLTokenizer(library.TokenizerWrapper(wrapped), eos_token=ends)

    @cached_property
    def characters(self) -> frozenset[str] | None:
        """The characters that can be written; None: all, because there is a token for every byte."""
        if len({token for token in self.plain if len(token) == 1}) == 256:
            return None
        found = set()
        for token in self.plain:
            try:
                text = token.decode()
            except UnicodeDecodeError:
                continue
            if len(text) == 1:
                found.add(text)
        return frozenset(found)

    def listed(self, bits: bytes, *, complete: bool) -> npt.NDArray[np.intp]:
        """The ids in a mask of one bit per token; the same masks come again and again, and are kept.

        Args:
            complete: the text may end here. The library also offers an end where a text can neither end nor go on.
        """
        allowed = self._lists.get(bits)
        if allowed is None:
            if len(self._lists) >= MASKS:
                self._lists.clear()
            unpacked = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little", count=self.size)
            allowed = self._lists[bits] = np.flatnonzero(unpacked)
        if not complete and len(allowed) <= len(self.ends):
            return allowed[~np.isin(allowed, list(self.ends))]
        return allowed

    def lacking(self, text: str) -> str | None:
        """The first character of a text that cannot be written, if there is one."""
        characters = self.characters
        return None if characters is None else next((c for c in text if c not in characters), None)

    @property
    def escapes(self) -> str:
        """Letters that may follow a backslash in JSON: those that can be written."""
        if self.lacking("\\"):
            return ""
        whole = "" if self.lacking("u0123456789abcdef") else "u"
        return "".join(letter for letter in 'nrbtf\\"' if not self.lacking(letter)) + whole


class _Wrapped:
    """What llguidance asks for: tokens and how a text is cut into them."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], end: int, special: list[int], tokenizer: Tokenizer) -> None:
        self.tokens, self.eos_token_id, self.special_token_ids = tokens, end, special
        self._tokenizer, specials = tokenizer, set(special)
        self._ids = {token: i for i, token in reversed(list(enumerate(tokens))) if i not in specials}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes | str) -> list[int]:
        raw = text.encode() if isinstance(text, str) else text
        with suppress(UserError, UnicodeDecodeError):  # letters that it lacks, or half of one
            ids = self._tokenizer.encode(raw.decode())
            if self._tokenizer.decode_bytes(ids) == raw:  # not of a tokenizer that changes a text
                return ids
        return self._greedily(raw)

    def _greedily(self, raw: bytes) -> list[int]:
        """The longest token each time, as far as there is one."""
        ids, at = list[int](), 0
        while at < len(raw):
            size = next(
                (n for n in range(min(self._longest, len(raw) - at), 0, -1) if raw[at : at + n] in self._ids), 0
            )
            if not size:
                break
            ids.append(self._ids[raw[at : at + size]])
            at += size
        return ids


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """The vocabulary of a tokenizer, kept for the next form.

    Raises:
        UserError: llguidance is not installed.
    """
    found = _kept.get(tokenizer.fingerprint)
    if found is None:
        found = _kept[tokenizer.fingerprint] = Vocabulary(tokenizer)
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    return found
