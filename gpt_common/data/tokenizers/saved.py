"""Saved tokenizers: ours, and Hugging Face's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt_common.data.tokenizers.bpe import BpeTokenizer
from gpt_common.data.tokenizers.characters import CharTokenizer
from gpt_common.data.tokenizers.extended import ExtendedTokenizer
from gpt_common.data.tokenizers.gpt2 import Gpt2Tokenizer
from gpt_common.data.tokenizers.tokenizer import Tokenizer
from gpt_common.errors import UserError, nearest
from gpt_common.files import read_json

FILE = "tokenizer.json"
LARGEST = 1 << 26
"""Bytes: twice the largest vocabulary that is published (262 thousand tokens)."""
KINDS = ("bpe", "char", "gpt2")


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a file that `Tokenizer.save` wrote, or in a Hugging Face `tokenizer.json`.

    Args:
        path: the file, or the folder of a dataset, checkpoint or run.

    Raises:
        UserError: missing, unreadable, or no tokenizer.
    """
    path = _file_in(path) if path.is_dir() else path
    try:
        document = read_json(path, LARGEST)
    except FileNotFoundError:
        raise UserError(f"no tokenizer at {path}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read tokenizer {path}: {error}") from None
    if isinstance(document, dict) and "kind" not in document and "model" in document:
        document = {"kind": "bpe", "tokenizer": document}
    try:
        match document:
            case {"added": list(names)}:
                base = {key: value for key, value in document.items() if key != "added"}
                return ExtendedTokenizer(_made_of(base), names)
            case _:
                return _made_of(document)
    except UserError as error:
        raise UserError(f"tokenizer {path}: {error}") from None
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError, OverflowError) as error:
        raise UserError(f"tokenizer {path}: not what it says it is ({type(error).__name__}: {error})") from None


def known_tokenizer(choice: str, made: Sequence[str]) -> Tokenizer:
    """What `--tokenizer` names and is there before the text is: GPT-2's vocabulary, or what a path leads to.

    Args:
        made: the other kinds, which are made of the text.

    Raises:
        UserError: neither.
    """
    if choice == "gpt2":
        return Gpt2Tokenizer()
    if not Path(choice).exists():
        hint = nearest(choice, ("gpt2", *made))
        raise UserError(f"--tokenizer '{choice}' is neither a kind ({hint}) nor the path of a tokenizer.json")
    return load_tokenizer(Path(choice))


def _made_of(document: Any) -> Tokenizer:
    """The tokenizer that a document describes, without what was added to it."""
    match document:
        case {"kind": "char", "characters": str(characters)}:
            return CharTokenizer(characters, end_of_text=document.get("end_of_text") is True)
        case {"kind": "gpt2", "tokens": list(names)}:
            return Gpt2Tokenizer(names)
        case {"kind": "gpt2"}:  # as it was saved at first, by its name alone
            return Gpt2Tokenizer()
        case {"kind": "bpe", "tokenizer": dict(definition)}:
            return BpeTokenizer(definition)
        case {"kind": str(kind)} if kind not in KINDS:
            raise UserError(f"unknown kind '{kind}': {nearest(kind, KINDS)}")
        case _:
            raise UserError("not a tokenizer")


def _file_in(folder: Path) -> Path:
    """The `tokenizer.json` in a folder, or that of the newest checkpoint where the folder is a run's."""
    if (folder / FILE).exists():
        return folder / FILE
    checkpoints = folder if folder.name == "checkpoints" else folder / "checkpoints"
    return max(checkpoints.glob(f"step-*/{FILE}"), default=folder / FILE)
