"""Fetching a known text: to a `.part` file, checked by size and SHA-256 before it takes its name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpt_common.errors import UserError
from gpt_common.files import cannot_write, discard_on_error, sha256_of

TIMEOUT_SECONDS = 30.0
BLOCK_BYTES = 1 << 16

Progress = Callable[[str, int, int], None]
"""Called with what is going on, how much is done, and how much there is."""


@dataclass(frozen=True)
class Text:
    """A text that can be had from somewhere and is known to the last byte."""

    title: str
    url: str
    file_name: str
    size: int
    sha256: str


TINY_SHAKESPEARE = Text(
    title="Tiny Shakespeare",
    url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    file_name="tinyshakespeare.txt",
    size=1_115_394,
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)
# Sizes and digests as many repositories publish them for this revision: the files were not downloaded here.
_TINY_STORIES = (
    "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
)
TINY_STORIES = Text(
    title="TinyStories",
    url=f"{_TINY_STORIES}/TinyStoriesV2-GPT4-train.txt",
    file_name="TinyStoriesV2-GPT4-train.txt",
    size=2_227_753_162,
    sha256="6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",
)
TINY_STORIES_VALIDATION = Text(
    title="TinyStories' validation text",
    url=f"{_TINY_STORIES}/TinyStoriesV2-GPT4-valid.txt",
    file_name="TinyStoriesV2-GPT4-valid.txt",
    size=22_502_601,
    sha256="6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d",
)


def fetch(text: Text, folder: Path, on_progress: Progress, *, timeout: float = TIMEOUT_SECONDS) -> Path:
    """The file of `text` in `folder`, downloaded if it is not there or not the right one.

    Args:
        timeout: seconds to wait for a connection, and for each further piece of the answer.

    Raises:
        UserError: no network, refused, cut short, not the expected text, or `folder` cannot be written.
    """
    path = folder / text.file_name
    if path.exists() and sha256_of(path) == text.sha256:
        return path
    part = folder / f"{text.file_name}.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with discard_on_error(part):
            _download(text, part, on_progress, timeout)
            part.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from None
    return path


def check_local(text: Text, path: Path) -> None:
    """Refuse a file that is not `text`.

    Raises:
        UserError: missing, unreadable, or another text.
    """
    try:
        found = sha256_of(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if found != text.sha256:
        raise UserError(
            f"{path} is not {text.title} (its SHA-256 is {found[:8]}..., not {text.sha256[:8]}...): "
            "to prepare a text of your own, use --text FILE --name NAME --tokenizer char"
        )


def _download(text: Text, part: Path, on_progress: Progress, timeout: float) -> None:
    # requests, because it brings its own certificates: Python from python.org has none on a fresh Mac.
    import requests

    remedy = "try again, or give the file with --from-file PATH"
    broke_off = f"{text.url} broke off before all {text.size:,} bytes were here: {remedy}"
    digest, received, answered = hashlib.sha256(), 0, False
    try:
        # identity: the length that the server announces is then that of the text
        with requests.get(text.url, stream=True, timeout=timeout, headers={"Accept-Encoding": "identity"}) as answer:
            if not answer.ok:
                raise UserError(f"{text.url} answers {answer.status_code} {answer.reason}: {remedy}")
            answered = True
            with part.open("wb") as file:
                for block in answer.iter_content(BLOCK_BYTES):
                    file.write(block)
                    digest.update(block)
                    received += len(block)
                    on_progress(f"downloading {text.title}", min(received, text.size), text.size)
                    if received > text.size:
                        break
    except requests.Timeout:
        raise UserError(f"{text.url} does not answer within {timeout:g} s: {remedy}") from None
    except requests.RequestException as error:
        unreachable = f"cannot reach {text.url} ({type(error).__name__}): {remedy}"
        raise UserError(broke_off if answered else unreachable) from None
    if received < text.size:
        raise UserError(broke_off)
    if digest.hexdigest() != text.sha256:
        raise UserError(f"{text.url} is not {text.title} any more (its SHA-256 differs): give it with --from-file PATH")
