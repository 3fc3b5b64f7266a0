"""What every tokenizer has: decoding by one table, id -> bytes."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpt_common.errors import UserError
from gpt_common.files import write_atomically

END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"
"""ChatML's, behind whatever one side of a conversation says."""


class Tokenizer(ABC):
    """Text to ids and back; decoding is by one table of each token's bytes.

    Args:
        token_bytes: what each id decodes to.
        document: what `load_tokenizer` makes it of again.
        end_of_text: see below.
    """

    kind: str
    """ "char", "gpt2" or "bpe"."""
    vocab_size: int
    """Number of ids; every id that `encode` returns is below it."""
    fingerprint: str
    """SHA-256 (hex) of what defines the mapping: equal fingerprints, equal encodings."""
    end_of_text: int | None
    """Id of the token that ends a document; None where there is none. `encode` never returns it."""

    def __init__(self, token_bytes: Mapping[int, bytes], document: dict[str, Any], end_of_text: int | None) -> None:
        self._token_bytes = token_bytes
        self._document = document
        self.vocab_size = max(token_bytes) + 1
        self.fingerprint = sha256_of(document)
        self.end_of_text = end_of_text

    @property
    def known(self) -> list[int]:
        """The ids that have text; a published vocabulary may have gaps."""
        return sorted(self._token_bytes)

    @property
    def specials(self) -> dict[str, int]:
        """Ids of the tokens that no text has, by name: where a document ends, or a turn of a conversation."""
        return {} if self.end_of_text is None else {self._token_bytes[self.end_of_text].decode(): self.end_of_text}

    @property
    def ends(self) -> set[int]:
        """Ids behind which a model has said what it had to say: of a document, and of a turn in ChatML."""
        named = (self.end_of_text, self.specials.get(END_OF_TURN))
        return {token for token in named if token is not None}

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; the names of special tokens in it are ordinary text.

        Raises:
            UserError: a character that the vocabulary does not have, with its position.
        """

    def encode_written(self, text: str) -> list[int]:
        """Token ids of a text that a template wrote: in it the names of special tokens are these tokens.

        Raises:
            UserError: a character that the vocabulary does not have.
        """
        specials, ids = self.specials, list[int]()
        names = sorted(specials, key=len, reverse=True)
        for part in re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]:
            ids += [specials[part]] if part in specials else self.encode(part) if part else []
        return ids

    @abstractmethod
    def last_cut(self, text: str) -> int:
        """Last position found at which `text`, whatever may follow it, can be cut without changing its encoding.

        For any `more`: encode(text[:cut]) + encode(text[cut:] + more) == encode(text + more). 0 where none is known.
        """

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """UTF-8 of `ids`: the concatenation over tokens, which may end inside a character.

        Raises:
            UserError: an id outside the vocabulary.
        """
        try:
            return b"".join([self._token_bytes[token] for token in ids])
        except KeyError as error:
            raise UserError(
                f"token id {error} is outside the {self.kind} tokenizer's vocabulary of {self.vocab_size}: "
                "the model was not made for this tokenizer, or its vocab_size is larger"
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; bytes that are no valid UTF-8 become U+FFFD.

        Raises:
            UserError: an id outside the vocabulary.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save(self, path: Path) -> None:
        """Write one JSON file that `load_tokenizer` reads."""
        write_atomically(path, json.dumps(self._document, ensure_ascii=False) + "\n")


def identity(tokenizer: Tokenizer) -> dict[str, Any]:
    """What datasets and checkpoints record of the tokenizer that made them."""
    return {"kind": tokenizer.kind, "fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size}


def default_prompt(tokenizer: Tokenizer) -> str:
    """What samples start from: a line end, as in nanoGPT, or else the first token of the vocabulary that is text."""
    for i in (None, *tokenizer.known):
        if i is not None and i == tokenizer.end_of_text:
            continue
        text = "\n" if i is None else tokenizer.decode([i])
        with suppress(UserError):  # not in the vocabulary
            if "\ufffd" not in text and tokenizer.encode(text):
                return text
    return "\n"


def prefix_token(tokenizer: Tokenizer) -> int:
    """What stands before the first token of a text, so that something predicts it: the end of another document, or
    where the vocabulary has none a line end, or its first character."""
    if tokenizer.end_of_text is not None:
        return tokenizer.end_of_text
    return tokenizer.encode(default_prompt(tokenizer))[0]


class TextStream:
    """Token ids to text as they come, for live printing: a character appears with the token that completes it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that `token` completes, possibly none."""
        return self._decoder.decode(self._tokenizer.decode_bytes([token]))

    def finish(self) -> str:
        """U+FFFD if the last character was never completed, else nothing."""
        return self._decoder.decode(b"", final=True)


def check_unicode(text: str) -> None:
    """Refuse halves of surrogate pairs: what arguments with invalid bytes turn into, and no UTF-8 can say."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"character {text[error.start]!r} at position {error.start} is not valid Unicode") from None


def sha256_of(document: dict[str, Any]) -> str:
    """SHA-256 (hex) of a JSON document, whatever the order of its keys."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _byte_letters() -> list[str]:
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


BYTE_LETTERS = _byte_letters()
"""GPT-2's letter for each byte (`bytes_to_unicode` in its encoder.py): printable ones stand for themselves."""
BYTE_OF_LETTER = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}
