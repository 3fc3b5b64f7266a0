"""What the command line says about reading and writing, for every format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from gpt_common.data.conversations.written import Template
from gpt_common.data.tokenizers import Tokenizer

Source = Annotated[Positional[Path], arg(metavar="SRC")]
"""What a command reads: its first argument."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How to read a source."""

    preset: str | None = None
    config: Path | None = None
    latest: bool = False
    optimizer: bool = True
    adapter: bool = False
    """Take an adapter as it is, too: a part of a model."""


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """How to write a destination."""

    other_gelu: bool = False
    overwrite: bool = False
    dtype: str | None = None
    """What the weights shall be, for formats that cast them themselves."""
    tokenizer: Tokenizer | None = None
    template: Template | None = None
    """Of conversations, if the source has one that is not ours."""
    progress: Callable[[int], None] = lambda _: None
    """Is told the bytes of every block that was written."""
