"""import and export, torch2mlx and mlx2torch: read anything, write one format, all of it or nothing."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias

from tyro.conf import arg

from convert import hub
from convert.adapters import exchange
from convert.contents import OPTIMIZERS, Contents, FoundTokenizer, finite, with_dtype
from convert.destination import beside, check_apart, check_not_missed
from convert.formats import native, registry
from convert.formats.format import Format
from convert.formats.tokenizer_files import given_tokenizer, read_tokenizer
from convert.hub import HubModel
from convert.options import ReadOptions, Source, WriteOptions
from convert.soundness import checked
from convert.storage.tensors import WEIGHT_DTYPES
from gpt_common.errors import UserError
from gpt_common.files import cannot_write, is_system_file, temporary_beside, written_whole
from gpt_common.progress import Progress
from gpt_common.training.folder import RUNS
from gpt_common.training.pretrained import HUB_RUNS, PREFIX
from gpt_common.words import in_bytes, say

if TYPE_CHECKING:
    ToMlx: TypeAlias = str
    FromMlx: TypeAlias = str
    Target: TypeAlias = str
    ExportDtype: TypeAlias = str
else:
    ToMlx, FromMlx = Literal[registry.targets("torch2mlx")], Literal[registry.targets("mlx2torch")]
    Target = Literal[(*registry.targets(), "peft")]
    ExportDtype = Literal[("float32", "bfloat16", "float16", *registry.blocks())]
Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES = {people: ours for ours, people in WEIGHT_DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What all directions share."""

    src: Source
    """What to convert: a run, a checkpoint file, a folder, or hf:OWNER/NAME[@REVISION]; recognised by its content."""
    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    """Where to write; if not given, beside SRC under its name and the target's; an import into runs/."""
    tokenizer: Literal["none"] | Path | None = None
    """Take the tokenizer from this tokenizer.json, or from nanoGPT's meta.pkl; none: go without."""
    optimizer: bool = True
    """Take the optimiser's state along where there is one."""
    overwrite: bool = False
    """Replace an earlier conversion at the destination."""


@dataclass(frozen=True, kw_only=True)
class Import(Conversion):
    """Bring in a GPT-2, Llama or DeepSeek-V3 folder, a GGUF file, nanoGPT's ckpt.pt, a state dict or hf:OWNER/NAME."""

    examples: ClassVar[tuple[str, ...]] = ("hf:openai-community/gpt2", "ckpt.pt -o runs/FIRST")
    to: ClassVar[str] = "native"
    other_gelu: ClassVar[bool] = False
    dtype: Dtype | None = None
    """Cast the weights; without it they stay bit for bit what they are. Moments are float32 always."""
    base: Path | None = None
    """Of an adapter of peft or mlx-lm: the run that it stands beside."""
    preset: str | None = None
    """Which model a bare state dict is: a preset."""
    config: Path | None = None
    """Which model a bare state dict is: a TOML file."""


@dataclass(frozen=True, kw_only=True)
class WithChoice(Conversion):
    """What those share that say for whom they write."""

    other_gelu: bool = False
    """Write even where the target computes another form of GELU (logits differ by about 1e-3)."""


@dataclass(frozen=True, kw_only=True)
class Export(WithChoice):
    """Write a run, or any other model, as the files of another library."""

    examples: ClassVar[tuple[str, ...]] = (
        "runs/FIRST --to mlx-lm",
        "runs/FIRST --to nanogpt -o ckpt.pt",
        "runs/FIRST --to gguf -o x.gguf",
    )
    to: Target
    """For whom; native is a run of this project, with one checkpoint; peft takes adapters; gguf is for llama.cpp."""
    dtype: ExportDtype | None = None
    """Cast the weights; without it they stay bit for bit what they are. Blocks of 4 to 8 bits are for gguf."""
    latest: bool = False
    """Of a run folder, take the latest checkpoint and not the best."""
    preset: str | None = None
    """Which model a bare state dict is: a preset."""
    config: Path | None = None
    """Which model a bare state dict is: a TOML file."""


@dataclass(frozen=True, kw_only=True)
class Torch2mlx(WithChoice):
    """Turn a nanoGPT ckpt.pt, a state dict, or a GPT-2, Llama or DeepSeek-V3 folder of transformers into a run."""

    dtype: Dtype | None = None
    """Cast the weights; without it they stay bit for bit what they are. Moments are float32 always."""
    preset: str | None = None
    """Which model a bare state dict is: a preset."""
    config: Path | None = None
    """Which model a bare state dict is: a TOML file."""
    to: ToMlx = "native"
    """A run of this project, or a folder for mlx-lm."""


@dataclass(frozen=True, kw_only=True)
class Mlx2torch(WithChoice):
    """Turn a checkpoint of this project into what nanoGPT, transformers or mlx-lm load."""

    dtype: Dtype | None = None
    """Cast the weights; without it they stay bit for bit what they are. Moments are float32 always."""
    latest: bool = False
    """Of a run folder, take the latest checkpoint and not the best."""
    to: FromMlx = "nanogpt"
    """For whom: a folder with ckpt.pt (or that file, if --out ends in .pt), or a folder of the library."""


Command = Import | Export | Torch2mlx | Mlx2torch


def convert(command: Command) -> Path:
    """Convert; returns the destination.

    Raises:
        UserError: anything wrong with source, destination or the pair of them; nothing is left behind.
    """
    named = hub.named(command.src)
    if named is None and (adapted := _adapted(command)) is not None:
        return adapted
    destination = command.out or _default_destination(command, named)
    _check_destination(command.src, destination, command.to, command.overwrite)
    if named is None:
        return _convert(command, destination, None)

    def check(folder: Path) -> None:
        """Before the weights are fetched."""
        with _called(named, folder):
            _tokenizer(folder, lambda: read_tokenizer(folder), command.tokenizer, registry.describe(folder).vocab_size)

    folder, commit = hub.fetch(named, check)
    with _called(named, folder):
        published = {"repository": named.name, "revision": commit}
        return _convert(dataclasses.replace(command, src=folder), destination, published)


def _adapted(command: Command) -> Path | None:
    """The destination of an adapter; None where the source is none."""
    if isinstance(command, Import):
        if exchange.is_adapter(command.src):
            return exchange.bring_in(command.src, command.base, command.out, command.overwrite)
        if command.base is not None:
            raise UserError(f"{command.src} is no adapter of peft or mlx-lm, and --base belongs to one: leave it out")
        return None
    found = exchange.held(command.src, getattr(command, "latest", False))
    if found is not None:
        return exchange.hand_out(command.src, found, command.to, command.out, command.overwrite)
    if command.to == "peft":
        raise UserError(f"{command.src} is no run with an adapter, and peft holds nothing else: --to transformers")
    return None


@contextmanager
def _called(model: HubModel, folder: Path) -> Iterator[None]:
    """In messages, the folder in the cache of a model on the hub is called by the model's name."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(folder), str(model))) from None


def _convert(command: Command, destination: Path, published: Mapping[str, str] | None) -> Path:
    started = time.monotonic()
    source = finite(dataclasses.replace(_read(command), published=published))
    config = checked(source)
    target = registry.format_for(command.to, config.model)
    assert target.write is not None  # it has a name in --to
    contents, rounding = with_dtype(source, _cast_before(command, target))
    tokenizer, notes = _tokenizer(source.path, source.find_tokenizer, command.tokenizer, config.model.vocab_size)
    template = source.find_template() if tokenizer is not None and command.tokenizer is None else None
    for note in (*source.notes, *notes):
        say(f"note: {note}")
    weights = contents.stored if target.keeps_words else contents.tensors
    total = sum(tensor.nbytes for tensor in (*weights.values(), *contents.moments.values()))
    temporary = temporary_beside(destination)
    if destination.suffix == target.single_file:  # which tells the writer to make a file and not a folder
        temporary = temporary.with_name(temporary.name + destination.suffix)
    with written_whole(destination, temporary), Progress(of_bytes=True) as progress:
        advance = progress.counting(f"writing {destination}", total)
        options = WriteOptions(
            other_gelu=command.other_gelu,
            overwrite=command.overwrite,
            dtype=command.dtype,
            tokenizer=tokenizer,
            template=template,
            progress=advance,
        )
        remarks = target.write(contents, temporary, options)
        contents.verify()
    if target.beside is not None and destination.is_file():
        remarks += _beside(target.beside, contents, destination, options)
    for remark in remarks:
        say(f"note: {remark}")
    if contents.grids and not target.keeps_words:
        say(f"note: {len(contents.grids)} quantised matrices were written as the floats that they stand for")
    if target.blocks is not None:
        total = sum(file.stat().st_size for file in (destination, *destination.glob("*")) if file.is_file())
    elif command.dtype is not None:
        say(f"cast to {command.dtype}: {rounding}")
    model = config.model
    say(
        f"{destination}: {target.name} from {contents.format}, {model.n_layer} layers, {in_bytes(total)}"
        f" in {time.monotonic() - started:.1f} s; {_state(contents, target)}"
    )
    if isinstance(command, Import):
        sample = f"sample it with `python -m mlx_gpt.sample {destination}`, or " if tokenizer else ""
        say(f"{sample}fine-tune it with --init-from {destination}")
    return destination


def _cast_before(command: Command, target: Format) -> str | None:
    """What the weights are cast to before a format gets them.

    Raises:
        UserError: `--dtype` asks for blocks that the format does not have.
    """
    if target.blocks is not None:
        return command.dtype and "F32"  # it casts from there
    if command.dtype is not None and command.dtype not in DTYPES:
        raise UserError(f"--dtype {command.dtype} is for --to gguf: {target.name} holds {', '.join(DTYPES)}")
    return command.dtype and DTYPES[command.dtype]


def _beside(
    write: Callable[[Contents, Path, WriteOptions], tuple[str, ...]],
    contents: Contents,
    destination: Path,
    options: WriteOptions,
) -> tuple[str, ...]:
    try:
        return write(contents, destination, options)
    except OSError as error:
        raise cannot_write(destination, error) from None


def _tokenizer(
    path: Path, find: Callable[[], FoundTokenizer], given: Path | Literal["none"] | None, vocab_size: int
) -> FoundTokenizer:
    """The tokenizer that was asked for, else the source's own."""
    if given == "none":
        return None, ()
    tokenizer, notes = (given_tokenizer(given), ()) if given is not None else find()
    if tokenizer is not None and tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{given or path}: the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}: "
            "give the model's own with --tokenizer FILE, or do without with --tokenizer none"
        )
    return tokenizer, notes


def _read(command: Command) -> Contents:
    """The source, of the kind that the command is for."""
    given = {name: getattr(command, name) for name in ("preset", "config", "latest") if hasattr(command, name)}
    source = registry.read(command.src, ReadOptions(optimizer=command.optimizer, **given))
    ours = source.format == native.FORMAT.name
    if ours and isinstance(command, Torch2mlx | Import):
        export = "mlx2torch to export it" if isinstance(command, Torch2mlx) else "it as it is, or export it"
        raise UserError(f"{command.src} is already a checkpoint of this project: use {export}")
    if not ours and isinstance(command, Mlx2torch):
        raise UserError(f"{command.src} is a {source.format}, not a run of this project: use torch2mlx first")
    return source


def _state(contents: Contents, target: Format) -> str:
    if not target.holds_optimizer:
        return "weights alone, which is all that this format holds"
    if not contents.moments:
        return f"step {contents.step:,}, no optimiser state"
    assert contents.config is not None
    return f"step {contents.step:,} with {OPTIMIZERS[contents.config.optim.optimizer]}'s state"


def _default_destination(command: Command, named: HubModel | None) -> Path:
    """Beside the source; an import among the runs."""
    if named is not None:
        src = HUB_RUNS / str(named).removeprefix(PREFIX).replace("/", "--")
        return src if command.to == native.FORMAT.target else Path(f"{src.name}-{command.to}")
    if isinstance(command, Import):
        src = Path(os.path.realpath(command.src))
        return RUNS / (src.name if src.is_dir() else src.stem)
    return beside(command.src, registry.formats_of(command.to)[0].suffix or f"-{command.to}")


def _check_destination(src: Path, destination: Path, to: str, overwrite: bool) -> None:
    """Refuse to replace anything but an earlier conversion, and anything at all unless that was asked for."""
    check_apart(destination, (src,))
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
        check_not_missed(destination)
