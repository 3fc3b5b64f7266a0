"""torch2mlx and mlx2torch: read anything, write one format, all of it or nothing."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from tyro.conf import arg

from convert.contents import OPTIMIZERS, Contents, FoundTokenizer, checked, with_dtype
from convert.formats import native, registry
from convert.formats.format import Format
from convert.formats.tokenizer_files import given_tokenizer
from convert.options import ReadOptions, Source, WriteOptions
from convert.storage.tensors import WEIGHT_DTYPES
from gpt_common.errors import UserError
from gpt_common.files import (
    cannot_write,
    discard_on_error,
    is_system_file,
    move_into_place,
    sweep_leftovers,
    temporary_beside,
)
from gpt_common.progress import Progress
from gpt_common.words import in_bytes

if TYPE_CHECKING:
    ToMlx: TypeAlias = str
    FromMlx: TypeAlias = str
else:
    ToMlx, FromMlx = Literal[registry.targets("torch2mlx")], Literal[registry.targets("mlx2torch")]
DTYPES = {people: ours for ours, people in WEIGHT_DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What both directions share."""

    src: Source
    """What to convert: a run, a checkpoint file or a folder; recognised by its content."""
    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    """Where to write; if not given, beside SRC under its name and the target's."""
    tokenizer: Literal["none"] | Path | None = None
    """Take the tokenizer from this tokenizer.json, or from nanoGPT's meta.pkl; none: go without."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Cast the weights; without it they stay bit for bit what they are. Moments are float32 always."""
    optimizer: bool = True
    """Take the optimiser's state along where there is one."""
    other_gelu: bool = False
    """Write even where the target computes another form of GELU (logits differ by about 1e-3)."""
    overwrite: bool = False
    """Replace an earlier conversion at the destination."""


@dataclass(frozen=True, kw_only=True)
class Torch2mlx(Conversion):
    """Turn a nanoGPT ckpt.pt, a state dict, or a GPT-2, Llama or DeepSeek-V3 folder of transformers into a run."""

    preset: str | None = None
    """Which model a bare state dict is: a preset."""
    config: Path | None = None
    """Which model a bare state dict is: a TOML file."""
    to: ToMlx = "native"
    """A run of this project, or a folder for mlx-lm."""


@dataclass(frozen=True, kw_only=True)
class Mlx2torch(Conversion):
    """Turn a checkpoint of this project into what nanoGPT, transformers or mlx-lm load."""

    latest: bool = False
    """Of a run folder, take the latest checkpoint and not the best."""
    to: FromMlx = "nanogpt"
    """For whom: a folder with ckpt.pt (or that file, if --out ends in .pt), or a folder of the library."""


def convert(command: Torch2mlx | Mlx2torch) -> Path:
    """Convert; returns the destination.

    Raises:
        UserError: anything wrong with source, destination or the pair of them; nothing is left behind.
    """
    started = time.monotonic()
    destination = command.out or _default_destination(command.src, command.to)
    _check_destination(command.src, destination, command.to, command.overwrite)
    source = _read(command)
    config = checked(source)
    target = registry.format_for(command.to, config.model)
    assert target.write is not None  # it has a name in --to
    contents, rounding = with_dtype(source, command.dtype and DTYPES[command.dtype])
    tokenizer, notes = _tokenizer(source, command.tokenizer, config.model.vocab_size)
    for note in (*source.notes, *notes):
        print(f"note: {note}")
    total = sum(tensor.nbytes for tensor in (*contents.tensors.values(), *contents.moments.values()))
    temporary = temporary_beside(destination)
    if destination.suffix == target.single_file:  # which tells the writer to make a file and not a folder
        temporary = temporary.with_name(temporary.name + destination.suffix)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        sweep_leftovers(destination.parent, destination.name)
        with discard_on_error(temporary), Progress(of_bytes=True) as progress:
            advance = progress.counting(f"writing {destination}", total)
            options = WriteOptions(other_gelu=command.other_gelu, tokenizer=tokenizer, progress=advance)
            remarks = target.write(contents, temporary, options)
            contents.verify()
            move_into_place(temporary, destination)
    except OSError as error:
        raise cannot_write(destination, error) from None
    for remark in remarks:
        print(f"note: {remark}")
    if command.dtype is not None:
        print(f"cast to {command.dtype}: {rounding}")
    model = config.model
    print(
        f"{destination}: {target.name} from {contents.format}, {model.n_layer} layers, {in_bytes(total)}"
        f" in {time.monotonic() - started:.1f} s; {_state(contents, target)}"
    )
    return destination


def _tokenizer(source: Contents, given: Path | Literal["none"] | None, vocab_size: int) -> FoundTokenizer:
    """The tokenizer that was asked for, else the source's own.

    Raises:
        UserError: it cannot be read, or has more tokens than the model.
    """
    if given == "none":
        return None, ()
    tokenizer, notes = (given_tokenizer(given), ()) if given is not None else source.find_tokenizer()
    if tokenizer is not None and tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{given or source.path}: the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}: "
            "give the model's own with --tokenizer FILE, or do without with --tokenizer none"
        )
    return tokenizer, notes


def _read(command: Torch2mlx | Mlx2torch) -> Contents:
    """The source, of the kind that the command is for.

    Raises:
        UserError: it is of the other kind, unknown or damaged.
    """
    if isinstance(command, Torch2mlx):
        options = ReadOptions(preset=command.preset, config=command.config, optimizer=command.optimizer)
        source = registry.read(command.src, options)
        if source.format == native.FORMAT.name:
            raise UserError(f"{command.src} is already a checkpoint of this project: use mlx2torch to export it")
        return source
    source = registry.read(command.src, ReadOptions(latest=command.latest, optimizer=command.optimizer))
    if source.format != native.FORMAT.name:
        raise UserError(f"{command.src} is a {source.format}, not a run of this project: use torch2mlx first")
    return source


def _state(contents: Contents, target: Format) -> str:
    if not target.holds_optimizer:
        return "weights alone, which is all that this format holds"
    if not contents.moments:
        return f"step {contents.step:,}, no optimiser state"
    assert contents.config is not None
    return f"step {contents.step:,} with {OPTIMIZERS[contents.config.optim.optimizer]}'s state"


def _default_destination(src: Path, to: str) -> Path:
    src = Path(os.path.realpath(src))
    suffix = registry.formats_of(to)[0].suffix or f"-{to}"
    return src.with_name((src.name if src.is_dir() else src.stem) + suffix)


def _check_destination(src: Path, destination: Path, to: str, overwrite: bool) -> None:
    """Refuse to replace anything but an earlier conversion, and anything at all unless that was asked for.

    Raises:
        UserError: says what is in the way.
    """
    source, place = Path(os.path.realpath(src)), Path(os.path.realpath(destination))
    if source == place or place in source.parents:
        raise UserError(f"{destination} is where the source is: choose another -o")
    if not destination.exists():
        return
    if not overwrite:
        raise UserError(f"{destination} exists: choose another -o, or add --overwrite to replace it")
    formats = registry.formats_of(to)
    if destination.is_dir() == any(found.single_file == destination.suffix for found in formats):
        kind = "folder" if destination.is_dir() else "file"
        raise UserError(f"{destination} is a {kind}, which --to {to} cannot replace: choose another -o")
    if destination.is_dir():
        names = {path.name for path in destination.iterdir() if not is_system_file(path)}
        others = sorted(names.difference(*(f.files for f in formats)))
        if others:
            raise UserError(f"{destination} holds {others[0]}, which no conversion wrote: choose another -o")
