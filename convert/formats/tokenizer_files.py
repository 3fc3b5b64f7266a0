"""Other people's tokenizer files: tokenizer.json of `transformers` and mlx-lm, meta.pkl of nanoGPT."""

from __future__ import annotations

import json
import tempfile
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

from convert.storage.pickles import Refused, read_pickle
from gpt_common.data.conversations.written import CHATML, END, TURN, Template
from gpt_common.data.tokenizers import (
    BYTE_LETTERS,
    END_OF_TEXT,
    BpeTokenizer,
    CharTokenizer,
    ExtendedTokenizer,
    Gpt2Tokenizer,
    Tokenizer,
    load_tokenizer,
)
from gpt_common.data.tokenizers.extended import with_tokens
from gpt_common.errors import UserError

PICKLE = b"\x80"
UNKNOWN = "<|unknown|>"
"""What a character outside a vocabulary becomes in other libraries, where the vocabulary has no end of text."""
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
        meta = read_pickle(path.read_bytes())
        tokens = [meta["itos"][i] for i in range(len(meta["itos"]))]
        has_end = tokens[-1:] == [END_OF_TEXT]
        characters = tokens[:-1] if has_end else tokens
        for i, token in enumerate(characters):
            if not isinstance(token, str) or len(token) != 1:
                raise Refused(f"token {i} is {token!r}, no single character")
            if "stoi" in meta and meta["stoi"].get(token) != i:
                raise Refused(f"character {token!r} is {i} in itos and {meta['stoi'].get(token)} in stoi")
        return CharTokenizer("".join(characters), end_of_text=has_end)
    except (OSError, Refused, KeyError, TypeError, AttributeError, UserError) as error:
        raise UserError(
            f"{path} is not a meta.pkl of nanoGPT's character data sets ({error}): give another with --tokenizer FILE, "
            "or do without with --tokenizer none"
        ) from None


def write_tokenizer(tokenizer: Tokenizer, folder: Path, block_size: int, template: Template | None = None) -> None:
    """Files from which `AutoTokenizer` makes the same encoding, and writes conversations out as they were learnt."""
    definition = definition_of(tokenizer, tokenizer.vocab_size)
    (folder / "tokenizer.json").write_text(json.dumps(definition, ensure_ascii=False), encoding="utf-8")
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": block_size,
    }
    if tokenizer.end_of_text is not None:
        end = tokenizer.decode([tokenizer.end_of_text])
        settings |= {"bos_token": end, "eos_token": end, "unk_token": end}
    elif isinstance(tokenizer, CharTokenizer):
        settings |= {"unk_token": UNKNOWN}
    if writes_chatml(tokenizer):
        settings |= {"eos_token": END, "chat_template": CHATML}
    if template is not None:
        tokens = {"bos_token": template.begin, "eos_token": template.end}
        settings |= {key: name for key, name in tokens.items() if name in tokenizer.specials}
        settings |= {"chat_template": template.source}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def writes_chatml(tokenizer: Tokenizer) -> bool:
    """Whether conversations were learnt with it in this project's own template, which added the tokens it needs."""
    return isinstance(tokenizer, ExtendedTokenizer) and {TURN, END} <= set(tokenizer.names)


def ends_of(tokenizer: Tokenizer, template: Template | None = None) -> list[int]:
    """Ids at which a generation ends, that of an answer first.

    Args:
        template: of conversations, if it is another than ours.
    """
    turns = [END] if writes_chatml(tokenizer) else []
    if template is not None and template.end in tokenizer.specials:
        turns = [template.end]
    ends = [tokenizer.specials[turn] for turn in turns]
    end = tokenizer.end_of_text
    return ends if end is None or end in ends else [*ends, end]


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
            definition = byte_level_bpe(vocabulary, [line.split(" ") for line in lines if not line.startswith("#v")])
        else:
            return None, ("no tokenizer: the folder has no tokenizer.json",)
        if "kind" in definition:
            return load_tokenizer(path), ()
        return known_definition(definition), ()
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError, UserError) as error:
        raise UserError(
            f"{path} is not a tokenizer that can be read ({str(error)[:200]}): give another with --tokenizer FILE, "
            "or do without with --tokenizer none"
        ) from None


def definition_of(tokenizer: Tokenizer, size: int) -> dict[str, Any]:
    """What `tokenizer.json` says.

    Args:
        size: entries of the whole vocabulary; an id of its own for what is unknown comes behind it.
    """
    if isinstance(tokenizer, ExtendedTokenizer):
        definition = definition_of(tokenizer.base, size)
        names = {name: tokenizer.specials[name] for name in tokenizer.names}
        definition["model"] = {**definition["model"], "vocab": definition["model"]["vocab"] | names}
        definition["added_tokens"] = definition["added_tokens"] + [_special(name, i) for name, i in names.items()]
        return definition
    if isinstance(tokenizer, CharTokenizer):
        splitter = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": False}
        # A character outside the vocabulary is never another character. As with GPT-2, the end of text stands for it;
        # without one, an id that the model has no embedding for. mlx-lm loads no tokenizer that stops at "a ,b".
        unknown, number = (UNKNOWN, size) if tokenizer.end_of_text is None else (END_OF_TEXT, tokenizer.end_of_text)
        vocabulary = {c: i for i, c in enumerate(tokenizer.characters)} | {unknown: number}
        model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": unknown}
        added = [_special(unknown, number)]
        decoder = {"type": "Fuse"}
        return {**PIPELINE, "added_tokens": added, "pre_tokenizer": splitter, "decoder": decoder, "model": model}
    if isinstance(tokenizer, Gpt2Tokenizer):
        return _gpt2_definition(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder) / "tokenizer.json")
        document = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = document["tokenizer"]
    return found


def known_definition(definition: dict[str, Any]) -> Tokenizer:
    """The tokenizer that a `tokenizer.json` defines: characters, GPT-2's vocabulary, or any byte-level BPE.

    Raises:
        UserError: it is another.
    """
    return _characters(definition) or _gpt2(definition) or BpeTokenizer(definition)


def _special(name: str, number: int) -> dict[str, Any]:
    """An entry of added_tokens."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": name, **flags}


def _characters(definition: dict[str, Any]) -> Tokenizer | None:
    """The vocabulary of a definition that `definition_of` made; None if it is another."""
    model = definition["model"]
    if model.get("type") != "WordLevel" or (definition.get("decoder") or {}).get("type") != "Fuse":
        return None
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    characters = list(takewhile(lambda token: len(token) == 1, tokens))
    behind = tokens[len(characters) :]
    has_end = behind[:1] == [END_OF_TEXT]
    names = behind[1:] if has_end else behind[:-1] if behind[-1:] == [UNKNOWN] else behind
    if not _are_added(names, definition):
        return None
    return with_tokens(CharTokenizer("".join(characters), end_of_text=has_end), names)


def _are_added(names: list[str], definition: dict[str, Any]) -> bool:
    """Whether all of them are special tokens that were added to a vocabulary."""
    return set(names) <= {token["content"] for token in definition["added_tokens"]}


def byte_level_bpe(vocabulary: dict[str, int], merges: list[list[str]]) -> dict[str, Any]:
    """GPT-2's pipeline around a vocabulary."""
    splitter = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added = [_special(END_OF_TEXT, vocabulary[END_OF_TEXT])] if END_OF_TEXT in vocabulary else []
    return {
        **PIPELINE,
        "added_tokens": added,
        "pre_tokenizer": splitter,
        "post_processor": {**splitter, "trim_offsets": False},
        "decoder": {**splitter},
        "model": {**BYTE_LEVEL_BPE, "vocab": vocabulary, "merges": merges},
    }


def _gpt2_definition(tokenizer: Gpt2Tokenizer) -> dict[str, Any]:
    """GPT-2's vocabulary with its merges, which follow from it: an id is the rank of the merge that made the token."""
    tokens = {tokenizer.decode_bytes([i]): i for i in range(tokenizer.vocab_size) if i != tokenizer.end_of_text}
    names = {token: "".join([BYTE_LETTERS[byte] for byte in token]) for token in tokens}
    pairs = [_parts(token, rank, tokens) for token, rank in tokens.items() if len(token) > 1]
    merges = [[names[left], names[right]] for left, right in pairs]
    return byte_level_bpe({names[token]: i for token, i in tokens.items()} | {END_OF_TEXT: len(tokens)}, merges)


def _parts(token: bytes, rank: int, ranks: dict[bytes, int]) -> list[bytes]:
    """The pieces of a token before its last merge: byte-pair encoding with the merges of lower rank."""
    pieces = [bytes([byte]) for byte in token]
    while len(pieces) > 2:
        pairs = [ranks.get(a + b, rank) for a, b in pairwise(pieces)]
        i = min(range(len(pairs)), key=pairs.__getitem__)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    return pieces


def _gpt2(definition: dict[str, Any]) -> Tokenizer | None:
    """GPT-2's vocabulary, if a tokenizer.json holds it, every token under its id, and as many merges."""
    model = definition["model"]
    vocabulary = model.get("vocab", {})
    if vocabulary.get(END_OF_TEXT) != 50256 or len(model.get("merges", ())) != 50000:
        return None
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    names = tokens[50257:]
    if not _are_added(names, definition):
        return None
    try:
        found = Gpt2Tokenizer(tokens[:50256])
    except UserError:
        return None
    return with_tokens(found, names) if found.published else None
