"""Byte-level BPE in Hugging Face's format."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gpt_common.data.tokenizers.cutting import cut_pieces, last_checked_cut, last_cut_before_whitespace
from gpt_common.data.tokenizers.remembered import Remembered, safe_blanks
from gpt_common.data.tokenizers.tokenizer import BYTE_OF_LETTER, END_OF_TEXT, Tokenizer, check_unicode
from gpt_common.errors import UserError

ENDS = (END_OF_TEXT, "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>")
"""What others call the token that ends a document: GPT-2, SmolLM and Qwen; Llama 3; DeepSeek; Llama 2; Gemma."""

CHARACTERS_PER_TOKEN = 500
SMALLEST_VOCABULARY, LARGEST_VOCABULARY = 512, 32768


class BpeTokenizer(Tokenizer):
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
        merges: list[list[str] | str] = model.get("merges") or []
        # The library panics over a merge whose token is not there, where it should say so.
        if not model.get("continuing_subword_prefix"):
            for merge in merges:
                made = "".join(merge) if isinstance(merge, list) else merge.replace(" ", "")
                if made not in model["vocab"]:
                    raise UserError(f"a merge makes {made[:40]!r}, which is not in the vocabulary")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(definition))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"not a Hugging Face tokenizer: {error}") from None
        self._tokenizer.encode_special_tokens = True  # their names in a text are text
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        added = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        end_of_text = next((vocabulary[end] for end in ENDS if end in added), vocabulary.get(END_OF_TEXT))
        self._splits_as_gpt2 = _splits_as_gpt2(definition)
        library, blanks = self._tokenizer, safe_blanks(definition)

        def encode(text: str) -> list[int]:
            return library.encode(text, add_special_tokens=False).ids

        self._encode = Remembered(encode, blanks).ids if blanks else encode
        # The name of an added token is its text, also where its letters are those that stand for bytes; unless merges
        # of bytes make the token as well.
        named = added - {"".join(merge) if isinstance(merge, list) else merge.replace(" ", "") for merge in merges}
        table = {i: token.encode() if token in named else _byte_level(token) for token, i in vocabulary.items()}
        super().__init__(table, {"kind": self.kind, "tokenizer": definition}, end_of_text)

    @property
    def specials(self) -> dict[str, int]:
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: i for i, token in added.items() if token.special or i == self.end_of_text}

    def encode(self, text: str) -> list[int]:
        check_unicode(text)
        return self._encode(text)

    def last_cut(self, text: str) -> int:
        return last_cut_before_whitespace(text) if self._splits_as_gpt2 else last_checked_cut(text, self.encode)


def _splits_as_gpt2(definition: dict[str, Any]) -> bool:
    splitter = definition.get("pre_tokenizer") or {}
    return (
        definition.get("normalizer") is None
        and splitter.get("type") == "ByteLevel"
        and bool(splitter.get("use_regex", True))
        and not splitter.get("add_prefix_space")
        and all(token.get("special") for token in definition.get("added_tokens", []))
    )


def default_bpe_vocab_size(characters: int) -> int:
    """Size of the vocabulary for a training split of so many characters: a power of two from 512 to 32 768.

    About 500 characters for each token: then most of them occur often enough to be learnt.
    """
    size = 1 << (max(1, characters // CHARACTERS_PER_TOKEN).bit_length() - 1)
    return min(max(size, SMALLEST_VOCABULARY), LARGEST_VOCABULARY)


def train_bpe(files: Sequence[Path], vocab_size: int) -> BpeTokenizer:
    """Byte-level BPE with GPT-2's splitting rule, trained on whole files; <|endoftext|> is id 0.

    The same files and size give the same tokenizer. A small corpus may give fewer tokens than `vocab_size`.

    Raises:
        UserError: `vocab_size` below 257 (256 bytes and <|endoftext|>), unreadable file.
    """

    def pieces() -> Iterator[str]:
        for path in files:
            try:
                with path.open(encoding="utf-8-sig", newline="") as file:
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


def _byte_level(token: str) -> bytes:
    """Bytes of a token's name; one that has a letter outside the alphabet is its text."""
    if all(c in BYTE_OF_LETTER for c in token):
        return bytes([BYTE_OF_LETTER[c] for c in token])
    return token.encode()
