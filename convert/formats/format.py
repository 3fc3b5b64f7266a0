"""What a format declares: how it is recognised, read and written, and what the commands must know about it.

A format is one file or package in this folder that ends with `FORMAT = Format(...)`; registry.py finds it there. None
of them imports a framework.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from convert.contents import Contents
from convert.options import ReadOptions, WriteOptions
from gpt_common.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Format:
    """One kind of checkpoint."""

    name: str
    """What it is, for people."""
    order: int
    """A source belongs to the first format, in this order, that recognises it: what says most of itself comes first."""
    model_type: str = ""
    """What config.json says in a folder of this format."""
    recognise: Callable[[Path], bool] = lambda _: True
    """Whether a file or folder, with that config.json, is of this format: by its content, never by its name alone."""
    describe: Callable[[Path], ModelConfig] | None = None
    """The model that its config.json describes, of which nothing else may be there yet. Raises UserError."""
    read: Callable[[Path, ReadOptions], Contents]
    """What is in it, from headers alone. Raises UserError."""
    family: str = "a GPT-2 model"
    """Whose tensors it holds, for people."""
    bare: bool = False
    """Whether it holds tensors alone, so that `--preset` or `--config` must say which model they are."""
    write: Callable[[Contents, Path, WriteOptions], tuple[str, ...]] | None = None
    """Writes to a path that does not exist and returns what a person should know about the result; None where there is
    no writing it. Raises UserError where it cannot hold the model."""
    target: str = ""
    """What `--to` calls it. Several formats may share one: then the model's kind of attention decides."""
    attention: str = ""
    """The only kind of attention it can hold; empty if its writer decides."""
    commands: tuple[str, ...] = ("mlx2torch",)
    """The commands whose `--to` offers it."""
    suffix: str = ""
    """What is appended to the source's name where no destination is given; empty: a hyphen and the target."""
    files: frozenset[str] = frozenset()
    """All that lies in a folder it wrote: only such a folder may be replaced."""
    single_file: str | None = None
    """Suffix of a destination that becomes one file instead of a folder."""
    blocks: tuple[str, ...] | None = None
    """What `--dtype` offers besides floats; where it is not None, the writer casts, since some tensors stay float32."""
    beside: Callable[[Contents, Path, WriteOptions], tuple[str, ...]] | None = None
    """Writes what belongs beside a destination that is one file, once it is there; returns what to say of it."""
    holds_optimizer: bool = False
    """Whether it keeps the optimiser's state and the step."""
    keeps_words: bool = False
    """Whether it holds quantised matrices as words; others hold what these stand for."""
