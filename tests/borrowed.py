"""What the project does not ship: Tiny Shakespeare and GPT-2's vocabulary.

Tests take the real thing where this machine has it (the text where `gpt_common.data prepare shakespeare` downloads it
to, the vocabulary in tiktoken's cache), and otherwise something of the same shape, made here. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import os
import string
import tempfile
from itertools import islice, product
from pathlib import Path

import numpy as np

from gpt_common.data import encode
from gpt_common.data.download import TINY_SHAKESPEARE, Text
from gpt_common.data.tokenizers import gpt2

# The characters that data/shakespeare_char/prepare.py of nanoGPT prints.
SHAKESPEARE_CHARACTERS = "\n !$&',-.3:;?" + string.ascii_uppercase + string.ascii_lowercase
_DOWNLOADED = Path(__file__).parents[1] / "data" / "downloads" / TINY_SHAKESPEARE.file_name
_GPT2_FILES = ("vocab.bpe", "encoder.json")
_GPT2_FOLDER = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"


def tiny_shakespeare(folder: Path) -> tuple[Path, Text]:
    """The text and what it must be: the real one, or one of the same size and characters, written to `folder`."""
    if _DOWNLOADED.is_file() and hashlib.sha256(_DOWNLOADED.read_bytes()).hexdigest() == TINY_SHAKESPEARE.sha256:
        return _DOWNLOADED, TINY_SHAKESPEARE
    choose = np.random.default_rng(1)
    letters = np.array(list(string.ascii_lowercase))
    words = ["".join(choose.choice(letters, size)) for size in choose.integers(1, 9, 500)]
    lines = [SHAKESPEARE_CHARACTERS]
    while sum(map(len, lines)) < TINY_SHAKESPEARE.size:
        speech = [" ".join(choose.choice(words, 8)).capitalize() + choose.choice(list(",;.!?")) for _ in range(200)]
        lines += [f"{choose.choice(words).upper()}:\n" + "\n".join(speech) + "\n\n"]
    body = "".join(lines)[: TINY_SHAKESPEARE.size].encode()
    path = folder / "tinyshakespeare.txt"
    path.write_bytes(body)
    return path, Text("made-up Shakespeare", "", path.name, len(body), hashlib.sha256(body).hexdigest())


def has_gpt2_vocabulary() -> bool:
    """Whether tiktoken's cache has OpenAI's two files."""
    cache = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    folder = Path(cache) if cache else Path(tempfile.gettempdir()) / "data-gym-cache"
    return all((folder / hashlib.sha1((_GPT2_FOLDER + name).encode()).hexdigest()).is_file() for name in _GPT2_FILES)


def provide_gpt2_vocabulary() -> None:
    """Give tiktoken 50,257 tokens under GPT-2's name in this process, if it has not the real ones."""
    import tiktoken
    import tiktoken.registry

    if not has_gpt2_vocabulary():
        tiktoken.registry.ENCODINGS["gpt2"] = tiktoken.Encoding(
            "gpt2",
            pat_str=r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s""",
            mergeable_ranks=made_up_ranks(),
            special_tokens={"<|endoftext|>": 50256},
        )
        gpt2.PUBLISHED = gpt2.Gpt2Tokenizer().fingerprint


def made_up_ranks() -> dict[bytes, int]:
    """As many tokens as GPT-2 has: its 256 bytes in its order, then merges of whitespace, letters, digits and UTF-8.

    Every token is two earlier ones side by side, as in any byte-pair encoding.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    tokens = [bytes([byte]) for byte in printable + [byte for byte in range(256) if byte not in printable]]
    tokens += [b"\n\n", b"  ", b"    ", b"\t\t", b"\r\n", b"12", b"20", b"24", b"2024", "é".encode(), b"\xe4\xb8"]
    letters = [bytes([ordinal]) for ordinal in b"etaoinshrdlucmfwypvbgkqjxzH"]
    words = (
        start + b"".join(word)
        for length in range(1, 5)
        for start in (b"", b" ")
        for word in product(letters, repeat=length)
    )
    merges = (word for word in words if len(word) > 1)
    return {token: rank for rank, token in enumerate([*tokens, *islice(merges, 50256 - len(tokens))])}


def start_worker(path: Path) -> None:
    """A process of `gpt_common.data.encode` that has the vocabulary too: a spawned one begins with nothing."""
    provide_gpt2_vocabulary()
    _start_worker(path)


_start_worker = encode._start_worker
