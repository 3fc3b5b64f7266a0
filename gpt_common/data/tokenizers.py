"""Text to token ids and back: characters, GPT-2's vocabulary, and byte-level BPE trained from a corpus.

The first saves as its characters, the second as its name, the third as a Hugging Face `tokenizer.json`. What a
tokenizer would do with an id is settled by one table, id -> bytes, so that decoding is the same code for all.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gpt_common.errors import UserError, nearest
from gpt_common.files import write_atomically

END_OF_TEXT = "<|endoftext|>"
KINDS = ("bpe", "char", "gpt2")


class Tokenizer(Protocol):
    """What the three kinds have in common."""

    @property
    def kind(self) -> str:
        """ "char", "gpt2" or "bpe"."""

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id that `encode` returns is below it."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what defines the mapping: equal fingerprints, equal encodings."""

    @property
    def end_of_text(self) -> int | None:
        """Id of <|endoftext|>; None where there is none."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; the names of special tokens in it are ordinary text.

        Raises:
            UserError: a character that the vocabulary does not have, with its position.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; bytes that are no valid UTF-8 become U+FFFD.

        Raises:
            UserError: an id outside the vocabulary.
        """

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """UTF-8 of `ids`: the concatenation over tokens, which may end inside a character.

        Raises:
            UserError: an id outside the vocabulary.
        """

    def last_cut(self, text: str) -> int:
        """Last position at which `text`, whatever may follow it, can be cut without changing its encoding.

        For any `more`: encode(text[:cut]) + encode(text[cut:] + more) == encode(text + more). 0 where there is none.
        """

    def save(self, path: Path) -> None:
        """Write one JSON file that `load_tokenizer` reads."""


def identity(tokenizer: Tokenizer) -> dict[str, Any]:
    """What datasets and checkpoints record of the tokenizer that made them."""
    return {"kind": tokenizer.kind, "fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size}


class _ByteTable:
    """Decoding by a table of each token's bytes, and saving a JSON document atomically."""

    kind: str
    end_of_text: int | None

    def __init__(self, token_bytes: Mapping[int, bytes], document: dict[str, Any]) -> None:
        self._token_bytes = token_bytes
        self._document = document
        self.vocab_size = max(token_bytes) + 1

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        try:
            return b"".join([self._token_bytes[token] for token in ids])
        except KeyError as error:
            raise UserError(
                f"token id {error} is outside the {self.kind} tokenizer's vocabulary of {self.vocab_size}: "
                "the model was not made for this tokenizer, or its vocab_size is larger"
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save(self, path: Path) -> None:
        write_atomically(path, json.dumps(self._document) + "\n")


class CharTokenizer(_ByteTable):
    """One id per character, in the order of `characters`.

    Raises:
        UserError: no characters, or one of them twice, or half a surrogate pair.
    """

    kind = "char"
    end_of_text = None

    def __init__(self, characters: str) -> None:
        if not characters or len(set(characters)) != len(characters):
            raise UserError("a character vocabulary needs at least one character, and each of them once")
        _check_unicode(characters)
        document = {"kind": self.kind, "characters": characters}
        super().__init__({i: c.encode() for i, c in enumerate(characters)}, document)
        self.characters = characters
        self.fingerprint = _sha256(document)
        self._ids = {c: i for i, c in enumerate(characters)}

    def encode(self, text: str) -> list[int]:
        try:
            return [self._ids[c] for c in text]
        except KeyError:
            position = next(i for i, c in enumerate(text) if c not in self._ids)
            raise UserError(self.outside(text[position], f"position {position}")) from None

    def outside(self, character: str, where: str) -> str:
        """What to say of a character that the vocabulary does not have."""
        shown = self.characters if len(self.characters) <= 100 else self.characters[:100] + "..."
        return f"character {character!r} at {where} is not one of the {self.vocab_size} in the vocabulary: {shown!r}"

    def last_cut(self, text: str) -> int:
        return len(text)


class Gpt2Tokenizer(_ByteTable):
    """GPT-2's 50 257 tokens, by tiktoken.

    Raises:
        UserError: the vocabulary is neither in tiktoken's cache nor downloadable.
    """

    kind = "gpt2"

    def __init__(self) -> None:
        import tiktoken

        try:
            self._encoding = tiktoken.get_encoding("gpt2")
        except (OSError, ValueError) as error:  # requests' exceptions are OSErrors
            raise UserError(
                f"GPT-2's vocabulary is not here and cannot be downloaded ({type(error).__name__}): connect once, "
                "or set TIKTOKEN_CACHE_DIR to the tiktoken cache folder of a machine that has it"
            ) from None
        self.end_of_text = self._encoding.eot_token
        table = {i: self._encoding.decode_single_token_bytes(i) for i in range(self._encoding.n_vocab)}
        super().__init__(table, {"kind": self.kind})
        self.fingerprint = _sha256({"kind": self.kind, "tokens": [token.hex() for token in table.values()]})

    def encode(self, text: str) -> list[int]:
        _check_unicode(text)
        return self._encoding.encode_ordinary(text)

    def last_cut(self, text: str) -> int:
        return last_cut_before_whitespace(text)


class BpeTokenizer(_ByteTable):
    """Byte-level BPE in Hugging Face's format: trained by `train_bpe`, or somebody's `tokenizer.json`.

    Args:
        definition: the parsed `tokenizer.json`. Truncation and padding in it are switched off: they would cut a corpus.

    Raises:
        UserError: not byte-level BPE, or the `tokenizers` library refuses it.
    """

    kind = "bpe"

    def __init__(self, definition: dict[str, Any]) -> None:
        import tokenizers

        definition = {**definition, "truncation": None, "padding": None}
        model, decoder = definition.get("model") or {}, json.dumps(definition.get("decoder"))
        if model.get("type") != "BPE" or '"ByteLevel"' not in decoder:
            raise UserError("not a byte-level BPE tokenizer: model must be of type BPE and decoder of type ByteLevel")
        if model.get("dropout"):
            raise UserError("the tokenizer has BPE dropout, so one text has many encodings: set model.dropout to null")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(definition))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"not a Hugging Face tokenizer: {error}") from None
        self._tokenizer.encode_special_tokens = True  # their names in a text are text
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.end_of_text = vocabulary.get(END_OF_TEXT)
        document = {"kind": self.kind, "tokenizer": definition}
        super().__init__({i: _byte_level(token) for token, i in vocabulary.items()}, document)
        self.fingerprint = _sha256(document)

    def encode(self, text: str) -> list[int]:
        _check_unicode(text)
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def last_cut(self, text: str) -> int:
        definition = self._document["tokenizer"]
        splitter = definition.get("pre_tokenizer") or {}
        splits_as_gpt2 = (
            definition.get("normalizer") is None
            and splitter.get("type") == "ByteLevel"
            and splitter.get("use_regex", True)
            and not splitter.get("add_prefix_space")
            and all(token.get("special") for token in definition.get("added_tokens", []))
        )
        # Of other people's splitting rules nothing is known: such a text stays in one piece.
        return last_cut_before_whitespace(text) if splits_as_gpt2 else 0


def train_bpe(files: Sequence[Path], vocab_size: int) -> BpeTokenizer:
    """Byte-level BPE with GPT-2's splitting rule, trained on whole files; <|endoftext|> is id 0.

    The same files and size give the same tokenizer. A small corpus may give fewer tokens than `vocab_size`.

    Raises:
        UserError: `vocab_size` below 257 (256 bytes and <|endoftext|>), unreadable file.
    """

    def pieces() -> Iterator[str]:
        for path in files:
            try:
                with path.open(encoding="utf-8", newline="") as file:
                    yield from cut_pieces(iter(lambda: file.read(1 << 20), ""), last_cut_before_whitespace)
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"cannot read {path} as UTF-8 text: {error}") from None

    return train_bpe_on(pieces(), vocab_size)


def train_bpe_on(pieces: Iterable[str], vocab_size: int) -> BpeTokenizer:
    """`train_bpe` on pieces of text; no merge spans two of them, so cut them with `cut_pieces`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise UserError(f"a BPE vocabulary of {vocab_size} is too small: 256 bytes and {END_OF_TEXT} make 257")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(pieces, trainer)
    return BpeTokenizer(json.loads(tokenizer.to_str()))


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a file that `Tokenizer.save` wrote, or in a Hugging Face `tokenizer.json`.

    Args:
        path: the file, or a folder (dataset, checkpoint) with a `tokenizer.json` in it.

    Raises:
        UserError: missing, unreadable, or no tokenizer.
    """
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no tokenizer at {path}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read tokenizer {path}: {error}") from None
    if isinstance(document, dict) and "kind" not in document and "model" in document:
        document = {"kind": "bpe", "tokenizer": document}
    try:
        match document:
            case {"kind": "char", "characters": str(characters)}:
                return CharTokenizer(characters)
            case {"kind": "gpt2"}:
                return Gpt2Tokenizer()
            case {"kind": "bpe", "tokenizer": dict(definition)}:
                return BpeTokenizer(definition)
            case {"kind": str(kind)} if kind not in KINDS:
                raise UserError(f"unknown kind '{kind}': {nearest(kind, KINDS)}")
            case _:
                raise UserError("not a tokenizer")
    except UserError as error:
        raise UserError(f"tokenizer {path}: {error}") from None


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


# The splitting rule of GPT-2 (and of ByteLevel, which copies it) reads a text from left to right:
#     's|'t|... | ?letters | ?digits | ?other | whitespace(?!non-whitespace) | whitespace
# A piece is whitespace only, or has none but one space in front; and only whitespace pieces look ahead. So a piece
# always ends between a non-whitespace and a whitespace character, nothing on its left depends on what follows, and
# the right is read afresh. Cutting after the whitespace would be wrong: "a\n\nb" has the pieces a, \n, \n, b, but
# "a\n\n" alone has a, \n\n. Python takes all that is whitespace to either library for whitespace, and more.
_BEFORE_WHITESPACE = re.compile(r".*\S(?=[ \n])", re.DOTALL)


def last_cut_before_whitespace(text: str) -> int:
    """`Tokenizer.last_cut` for everything that splits a text as GPT-2 does."""
    match = _BEFORE_WHITESPACE.match(text)
    return match.end() if match else 0


def cut_pieces(blocks: Iterable[str], last_cut: Callable[[str], int]) -> Iterator[str]:
    """The text that `blocks` make, in pieces that can be encoded one by one; as large as the blocks, or a run
    without a cut."""
    rest = ""
    for block in blocks:
        text = rest + block
        cut = last_cut(text)
        if cut:
            yield text[:cut]
        rest = text[cut:]
    if rest:
        yield rest


def _check_unicode(text: str) -> None:
    """Refuse halves of surrogate pairs: what arguments with invalid bytes turn into, and no UTF-8 can say."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"character {text[error.start]!r} at position {error.start} is not valid Unicode") from None


def _sha256(document: dict[str, Any]) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's names for bytes (`bytes_to_unicode` in its encoder.py): printable ones stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_LEVEL_ALPHABET = _byte_level_alphabet()


def _byte_level(token: str) -> bytes:
    """Bytes of a token's name; an added token may have a name outside the alphabet, which is then its text."""
    if all(c in _BYTE_LEVEL_ALPHABET for c in token):
        return bytes(_BYTE_LEVEL_ALPHABET[c] for c in token)
    return token.encode()
