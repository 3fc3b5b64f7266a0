"""torch2mlx and mlx2torch: read anything, write one format, all of it or nothing."""

from __future__ import annotations

import glob
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from convert.contents import OPTIMIZERS, Contents, FoundTokenizer, checked, with_dtype
from convert.formats import (
    mlx_lm_deepseek_v3,
    mlx_lm_gpt2,
    mlx_lm_llama,
    nanogpt,
    native,
    registry,
    transformers_deepseek_v3,
    transformers_gpt2,
    transformers_llama,
)
from convert.formats.tokenizer_files import given_tokenizer
from convert.options import ReadOptions, WriteOptions
from convert.progress import readable, show
from convert.storage.tensors import WEIGHT_DTYPES
from gpt_common.config import ModelConfig
from gpt_common.errors import UserError
from gpt_common.training.checkpoint import cannot_write, discard_on_error, sync

DTYPES = {people: ours for ours, people in WEIGHT_DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What both directions share."""

    src: Positional[Path]
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
    to: Literal["native", "mlx-lm"] = "native"
    """A run of this project, or a folder for mlx-lm."""


@dataclass(frozen=True, kw_only=True)
class Mlx2torch(Conversion):
    """Turn a checkpoint of this project into what nanoGPT, transformers or mlx-lm load."""

    latest: bool = False
    """Of a run folder, take the latest checkpoint and not the best."""
    to: Literal["nanogpt", "transformers", "mlx-lm"] = "nanogpt"
    """For whom: a folder with ckpt.pt (or that file, if --out ends in .pt), or a folder of the library."""


CARD = frozenset({"README.md"})
FOLDER = frozenset({"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"})
TARGETS: dict[str, tuple[str, frozenset[str]]] = {
    "native": ("-mlx", frozenset({"config.toml", "checkpoints"})),
    "nanogpt": ("-nanogpt", frozenset({nanogpt.FILE, nanogpt.META})),
    "transformers": ("-transformers", FOLDER | CARD),
    "mlx-lm": ("-mlx-lm", FOLDER),
}
"""For each --to: what the default destination is called, and what lies in a folder that it wrote."""
LIBRARIES: dict[str, dict[str, ModuleType]] = {
    "transformers": {
        "multi_head": transformers_gpt2,
        "grouped_query": transformers_llama,
        "latent": transformers_deepseek_v3,
    },
    "mlx-lm": {"multi_head": mlx_lm_gpt2, "grouped_query": mlx_lm_llama, "latent": mlx_lm_deepseek_v3},
}
"""Which of a library's models could be ours: the kind of attention tells, and its format refuses what else differs."""


def target_of(to: str, model: ModelConfig) -> ModuleType:
    """The format that `--to` means for a model.

    Raises:
        UserError: the library has no such model.
    """
    if to not in LIBRARIES:
        return native if to == "native" else nanogpt
    if model.attention not in LIBRARIES[to]:
        known = ", ".join(LIBRARIES[to])
        raise UserError(f"the model's attention is {model.attention}, and {to} has only {known}: keep the run as it is")
    return LIBRARIES[to][model.attention]


def convert(command: Torch2mlx | Mlx2torch) -> Path:
    """Convert; returns the destination.

    Raises:
        UserError: anything wrong with source, destination or the pair of them; nothing is left behind.
    """
    started = time.monotonic()
    destination = command.out or _beside(command.src, TARGETS[command.to][0])
    _check_destination(command.src, destination, command.to, command.overwrite)
    source = _read(command)
    config = checked(source)
    target = target_of(command.to, config.model)
    contents, loss = with_dtype(source, command.dtype and DTYPES[command.dtype])
    tokenizer, notes = _tokenizer(source, command.tokenizer, config.model.vocab_size)
    for note in (*source.notes, *notes):
        print(f"note: {note}")
    total = sum(tensor.nbytes for tensor in (*contents.tensors.values(), *contents.moments.values()))
    # nanoGPT's writer makes a file of what ends in .pt, and a folder of anything else.
    kind = ".pt" if destination.suffix == ".pt" else ""
    temporary = destination.with_name(f"{destination.name}.tmp-{os.getpid()}{kind}")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        _sweep(destination)
        with discard_on_error(temporary), show(f"writing {destination}", total) as progress:
            options = WriteOptions(other_gelu=command.other_gelu, tokenizer=tokenizer, progress=progress)
            remarks = target.write(contents, temporary, options)
            contents.verify()
            _commit(temporary, destination)
    except OSError as error:
        raise cannot_write(destination, error) from None
    for remark in remarks:
        print(f"note: {remark}")
    if command.dtype is not None:
        print(f"cast to {command.dtype}: {loss}")
    model = config.model
    print(
        f"{destination}: {target.NAME} from {contents.format}, {model.n_layer} layers, {readable(total)}"
        f" in {time.monotonic() - started:.1f} s; {_state(contents, command.to)}"
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
        if source.format == native.NAME:
            raise UserError(f"{command.src} is already a checkpoint of this project: use mlx2torch to export it")
        return source
    source = registry.read(command.src, ReadOptions(latest=command.latest, optimizer=command.optimizer))
    if source.format != native.NAME:
        raise UserError(f"{command.src} is a {source.format}, not a run of this project: use torch2mlx first")
    return source


def _state(contents: Contents, to: str) -> str:
    if to in ("transformers", "mlx-lm"):
        return "weights alone, which is all that this format holds"
    if not contents.moments:
        return f"step {contents.step:,}, no optimiser state"
    assert contents.config is not None
    return f"step {contents.step:,} with {OPTIMIZERS[contents.config.optim.optimizer]}'s state"


def _beside(src: Path, suffix: str) -> Path:
    src = Path(os.path.realpath(src))
    return src.with_name((src.name if src.is_dir() else src.stem) + suffix)


def _check_destination(src: Path, destination: Path, to: str, overwrite: bool) -> None:
    """Refuse to replace anything but an earlier conversion, and anything at all unless that was asked for.

    Raises:
        UserError: says what is in the way.
    """
    source, place = Path(os.path.realpath(src)), Path(os.path.realpath(destination))
    if source == place or place in source.parents:
        raise UserError(f"{destination} is where the source lies: choose another -o")
    if not destination.exists():
        return
    if not overwrite:
        raise UserError(f"{destination} exists: choose another -o, or add --overwrite to replace it")
    if destination.is_dir() == (to == "nanogpt" and destination.suffix == ".pt"):
        kind = "folder" if destination.is_dir() else "file"
        raise UserError(f"{destination} is a {kind}, which --to {to} cannot replace: choose another -o")
    if destination.is_dir():
        others = sorted({path.name for path in destination.iterdir()} - TARGETS[to][1])
        if others:
            raise UserError(f"{destination} holds {others[0]}, which no conversion wrote: choose another -o")


def _sweep(destination: Path) -> None:
    """Remove what earlier conversions to this place left when they were killed."""
    for leftover in destination.parent.glob(f"{glob.escape(destination.name)}.tmp-*"):
        process = leftover.name.removeprefix(f"{destination.name}.tmp-").removesuffix(".pt")
        if not process.isdigit() or _runs(int(process)):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _commit(temporary: Path, destination: Path) -> None:
    """Force what was written to disk and move it into place; what was there before goes last."""
    for path in (temporary, *temporary.rglob("*")):
        sync(path)
    replaced = destination.with_name(f"{destination.name}.tmp-replaced-{os.getpid()}")
    if destination.is_dir():
        destination.rename(replaced)
    os.replace(temporary, destination)
    sync(destination.parent)
    shutil.rmtree(replaced, ignore_errors=True)
