"""Other people's tokenizer files: tokenizer.json of `transformers` and mlx-lm, meta.pkl of nanoGPT."""

from __future__ import annotations

import json
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from convert.storage.pickles import Refused, read_pickle
from gpt_common.data.tokenizers import BpeTokenizer, CharTokenizer, Gpt2Tokenizer, Tokenizer, load_tokenizer
from gpt_common.errors import UserError

PICKLE = b"\x80"
END_OF_TEXT = "<|endoftext|>"
PIPELINE: dict[str, Any] = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": None, "post_processor": None, "decoder": None,
}  # fmt: skip
"""A tokenizer.json in which nothing happens to a text yet."""
BYTE_LEVEL_BPE: dict[str, Any] = {
    "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
    "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
}  # fmt: skip
"""GPT-2's model without its vocabulary."""


def given_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer that `--tokenizer` names: a tokenizer.json (or a folder with one), or a meta.pkl.

    Raises:
        UserError: there is none.
    """
    if path.is_file() and path.read_bytes()[:1] == PICKLE:
        return read_meta(path)
    tokenizer, _ = read_tokenizer(path) if path.is_dir() else (None, ())
    return tokenizer or load_tokenizer(path)


def read_meta(path: Path) -> CharTokenizer:
    """The character vocabulary in nanoGPT's meta.pkl.

    Raises:
        UserError: it is something else.
    """
    try:
        itos = read_pickle(path.read_bytes())["itos"]
        return CharTokenizer("".join(itos[i] for i in range(len(itos))))
    except (OSError, Refused, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a meta.pkl of nanoGPT's character data sets ({error}): give another with --tokenizer FILE, "
            "or do without with --tokenizer none"
        ) from None


def write_tokenizer(tokenizer: Tokenizer, folder: Path, block_size: int) -> None:
    """Files from which `AutoTokenizer` makes the same encoding."""
    (folder / "tokenizer.json").write_text(json.dumps(_definition(tokenizer), ensure_ascii=False), encoding="utf-8")
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": block_size,
    }
    if tokenizer.end_of_text is not None:
        settings |= {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def read_tokenizer(folder: Path) -> tuple[Tokenizer | None, tuple[str, ...]]:
    """The tokenizer of a folder, None if it has none, and what there is to say about it.

    Raises:
        UserError: there is one that cannot be read, or of a kind that is not known here.
    """
    path = folder / "tokenizer.json"
    try:
        if path.is_file():
            definition = json.loads(path.read_text(encoding="utf-8"))
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            path = folder / "vocab.json"
            vocabulary = json.loads(path.read_text(encoding="utf-8"))
            lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
            definition = _byte_level_bpe(vocabulary, [line.split(" ") for line in lines if not line.startswith("#v")])
        else:
            return None, ("no tokenizer: the folder has no tokenizer.json",)
        characters = _characters(definition)
        if characters is not None:
            return CharTokenizer(characters), ()
        if _is_gpt2(definition):
            return Gpt2Tokenizer(), ()
        return BpeTokenizer(definition), ()
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError, UserError) as error:
        raise UserError(
            f"{path} is not a tokenizer that can be read ({str(error)[:200]}): give another with --tokenizer FILE, "
            "or do without with --tokenizer none"
        ) from None


def _definition(tokenizer: Tokenizer) -> dict[str, Any]:
    """What `tokenizer.json` says."""
    if isinstance(tokenizer, CharTokenizer):
        splitter = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": False}
        vocabulary = {c: i for i, c in enumerate(tokenizer.characters)}
        # A name that is no character: anything outside the vocabulary is an error and never another character.
        model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<none>"}
        return {**PIPELINE, "pre_tokenizer": splitter, "decoder": {"type": "Fuse"}, "model": model}
    if isinstance(tokenizer, Gpt2Tokenizer):
        return _gpt2_definition(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder) / "tokenizer.json")
        document = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
    definition: dict[str, Any] = document["tokenizer"]
    return definition


def _characters(definition: dict[str, Any]) -> str | None:
    """The characters of a definition that `_definition` made; None if it is another."""
    model = definition["model"]
    if model.get("type") != "WordLevel" or (definition.get("decoder") or {}).get("type") != "Fuse":
        return None
    characters = sorted(model["vocab"], key=model["vocab"].__getitem__)
    if [len(c) for c in characters] != [1] * len(characters):
        return None
    return "".join(characters)


def _byte_level_bpe(vocabulary: dict[str, int], merges: list[list[str]]) -> dict[str, Any]:
    """GPT-2's pipeline around a vocabulary."""
    splitter = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": vocabulary[END_OF_TEXT], "content": END_OF_TEXT, **flags}] if END_OF_TEXT in vocabulary else []
    return {
        **PIPELINE,
        "added_tokens": added,
        "pre_tokenizer": splitter,
        "post_processor": {**splitter, "trim_offsets": False},
        "decoder": {**splitter},
        "model": {**BYTE_LEVEL_BPE, "vocab": vocabulary, "merges": merges},
    }


def _gpt2_tokens(tokenizer: Gpt2Tokenizer) -> tuple[dict[bytes, int], dict[bytes, str]]:
    """Ids and names of GPT-2's tokens, without the end of text."""
    tokens = {tokenizer.decode_bytes([i]): i for i in range(tokenizer.vocab_size) if i != tokenizer.end_of_text}
    letters = _byte_names()
    return tokens, {token: "".join([letters[byte] for byte in token]) for token in tokens}


def _gpt2_definition(tokenizer: Gpt2Tokenizer) -> dict[str, Any]:
    """GPT-2's vocabulary with its merges, which follow from it: an id is the rank of the merge that made the token."""
    tokens, names = _gpt2_tokens(tokenizer)
    pairs = [_parts(token, rank, tokens) for token, rank in tokens.items() if len(token) > 1]
    merges = [[names[left], names[right]] for left, right in pairs]
    return _byte_level_bpe({names[token]: i for token, i in tokens.items()} | {END_OF_TEXT: len(tokens)}, merges)


def _parts(token: bytes, rank: int, ranks: dict[bytes, int]) -> list[bytes]:
    """The pieces of a token before its last merge: byte-pair encoding with the merges of lower rank."""
    pieces = [bytes([byte]) for byte in token]
    while len(pieces) > 2:
        pairs = [ranks.get(a + b, rank) for a, b in pairwise(pieces)]
        i = min(range(len(pairs)), key=pairs.__getitem__)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    return pieces


def _byte_names() -> list[str]:
    """The letter that stands for each byte in byte-level vocabularies."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _is_gpt2(definition: dict[str, Any]) -> bool:
    """Whether a tokenizer.json holds GPT-2's vocabulary, every token under its id, and as many merges."""
    model = definition["model"]
    vocabulary = model.get("vocab", {})
    if len(vocabulary) != 50257 or vocabulary.get(END_OF_TEXT) != 50256 or len(model.get("merges", ())) != 50000:
        return False
    try:
        tokens, names = _gpt2_tokens(Gpt2Tokenizer())
    except UserError:
        return False  # without the download the same vocabulary is read from the file
    return all(vocabulary.get(names[token]) == i for token, i in tokens.items())
