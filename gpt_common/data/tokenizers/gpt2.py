"""GPT-2's vocabulary."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from gpt_common.data.tokenizers.cutting import last_cut_before_whitespace
from gpt_common.data.tokenizers.tokenizer import (
    BYTE_LETTERS,
    BYTE_OF_LETTER,
    END_OF_TEXT,
    Tokenizer,
    check_unicode,
    sha256_of,
)
from gpt_common.errors import UserError

if TYPE_CHECKING:
    import tiktoken

TOKENS = 50256
"""Without <|endoftext|>, which comes after them."""
PUBLISHED = "dd065669062ad3e6a922c976e51c2b18b6cd6f6204ce75e1899401fd8595f8d6"
"""Fingerprint of OpenAI's tokens."""

# GPT-2's splitting rule, with possessive quantifiers where backtracking could not change what matches.
_PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# Before a word, tiktoken walks back over whitespace step by step, and panics after a million of them.
_LONG_BLANK = 100_000
_BLANK = re.compile(r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")  # \s of the rule


class Gpt2Tokenizer(Tokenizer):
    """GPT-2's 50 257 tokens, by tiktoken. Saved with its tokens, so that who has the file needs no download.

    Args:
        names: the tokens in the order of their ids, without <|endoftext|>, in GPT-2's letters for bytes; None: from
            tiktoken's cache, or downloaded to it.

    Raises:
        UserError: `names` are no such vocabulary; or it is neither in tiktoken's cache nor downloadable.
    """

    kind = "gpt2"

    def __init__(self, names: Sequence[str] | None = None) -> None:
        self._encoding = _published() if names is None else _made_of(names)
        table = {i: self._encoding.decode_single_token_bytes(i) for i in range(self._encoding.n_vocab)}
        letters = ["".join([BYTE_LETTERS[byte] for byte in table[i]]) for i in range(TOKENS)]
        super().__init__(table, {"kind": self.kind, "tokens": letters}, self._encoding.eot_token)
        self.fingerprint = sha256_of({"kind": self.kind, "tokens": [token.hex() for token in table.values()]})

    @property
    def published(self) -> bool:
        """Whether these are OpenAI's tokens, and no others of the same shape."""
        return self.fingerprint == PUBLISHED

    def encode(self, text: str) -> list[int]:
        check_unicode(text)
        if not any(text[i : i + _LONG_BLANK // 2].isspace() for i in range(0, len(text), _LONG_BLANK // 2)):
            return self._encoding.encode_ordinary(text)
        # The last of many blanks goes with the word behind them in any case; what ends in blanks needs no way back.
        ends = [blank.end() for blank in _BLANK.finditer(text) if blank.end() - blank.start() >= _LONG_BLANK]
        cuts = [0, *(end - 1 for end in ends if end < len(text)), len(text)]
        return [i for a, b in pairwise(cuts) for i in self._encoding.encode_ordinary(text[a:b])]

    def last_cut(self, text: str) -> int:
        return last_cut_before_whitespace(text)


def _published() -> tiktoken.Encoding:
    import tiktoken

    try:
        return tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:  # requests' exceptions are OSErrors
        raise UserError(
            f"GPT-2's vocabulary is not here and cannot be downloaded ({type(error).__name__}): connect once, "
            "or set TIKTOKEN_CACHE_DIR to the tiktoken cache folder of a machine that has it"
        ) from None


def _made_of(names: Sequence[str]) -> tiktoken.Encoding:
    import tiktoken

    try:
        ranks = {bytes([BYTE_OF_LETTER[letter] for letter in name]): rank for rank, name in enumerate(names)}
    except (KeyError, TypeError):
        raise UserError("a token is not written in GPT-2's letters for bytes") from None
    if len(ranks) != TOKENS or len(names) != TOKENS or not all(bytes([byte]) in ranks for byte in range(256)):
        raise UserError(f"GPT-2's vocabulary has {TOKENS} different tokens, all bytes among them")
    return tiktoken.Encoding(
        "gpt2",
        pat_str=_PIECES,
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: TOKENS},
        explicit_n_vocab=TOKENS + 1,
    )
