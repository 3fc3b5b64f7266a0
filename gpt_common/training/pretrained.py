"""Models from elsewhere: by name on the hub, or as a folder or file that another program wrote.

They come in through `python -m convert import`, in a process of its own: nothing here knows their formats.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from gpt_common.errors import UserError
from gpt_common.files import open_file, read_json
from gpt_common.training.folder import RUNS

PREFIX = "hf:"
HUB_RUNS = RUNS / "hub"
"""Where models that came in by name lie, one folder each."""
LARGEST_SETTINGS = 1 << 24
"""Bytes of another program's config.json."""
MODEL_FILES = (".safetensors", ".bin", ".pt", ".pth")


def is_local(source: Path) -> bool:
    """Whether nothing has to be fetched for `source`: it is a path, or its name on the hub was brought in before."""
    return not str(source).startswith(PREFIX) or _folder_of(str(source)).exists()


def _folder_of(name: str) -> Path:
    return HUB_RUNS / name.removeprefix(PREFIX).replace("/", "--")


def local_run(source: Path) -> Path:
    """The run or checkpoint that `source` means: a path is itself; `hf:OWNER/NAME[@REVISION]` is brought in, once.

    Raises:
        UserError: it cannot be brought in; the line is the importer's own.
    """
    name = str(source)
    if not name.startswith(PREFIX):
        return source
    folder = _folder_of(name)
    if folder.exists():
        return folder
    command = [sys.executable, "-m", "convert", "import", name, "-o", str(folder)]
    print(f"bringing in {name}, once: it stays in {folder}", file=sys.stderr, flush=True)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as importer:
        assert importer.stderr is not None
        errors = _pass_on(importer.stderr)
    if importer.returncode == 0 or folder.exists():  # another process may have been faster
        return folder
    raise UserError(errors or f"{' '.join(command[1:])} ended with code {importer.returncode}: run it to see why")


def _pass_on(lines: Iterable[str]) -> str:
    """Show how far the importer is; returns its error, which may have a second line."""
    error: list[str] = []
    for line in lines:
        if error or line.startswith("error: "):
            error.append(line.strip().removeprefix("error: "))
        else:
            print(line, end="", file=sys.stderr, flush=True)
    return "\n".join(error)


def missing(path: Path) -> str:
    """The message for a path where nothing is, with the name on the hub that may have been meant."""
    owner, slash, name = str(path).partition("/")
    on_the_hub = slash and re.fullmatch(r"[\w.-]+", name) and re.fullmatch(r"\w[\w.-]*", owner)
    if on_the_hub and not Path(owner).exists() and owner != str(RUNS):
        return f"no such run or checkpoint: {path}; a model on the hub is {PREFIX}{path}"
    return f"no such run or checkpoint: {path}"


def foreign(path: Path) -> str | None:
    """What another program's folder or file is, and the command that brings it in; None if it is nothing known."""
    said = unusable(path)
    if said is not None:
        return said
    try:
        return _foreign_folder(path) if path.is_dir() else _foreign_file(path)
    except OSError:
        return None


def unusable(path: Path) -> str | None:
    """What a folder or file is, if it is known and no model that can be brought in; None otherwise."""
    try:
        return _unusable_folder(path) if path.is_dir() else None
    except OSError:
        return None


def _unusable_folder(path: Path) -> str | None:
    names = {entry.name for entry in path.iterdir()}
    if "adapter_config.json" in names or names & {"adapters.safetensors", "adapter_model.safetensors"}:
        merge = "mlx_lm.fuse" if "adapters.safetensors" in names else "peft's merge_and_unload"
        return f"{path} is an adapter, a part of a model: merge it into its base ({merge}), then import what that makes"
    if {"train.bin", "meta.json"} <= names:
        return f"{path} is a dataset, not a model: --dataset {path.name} trains on it"
    found = sorted(name for name in names if name.endswith(".gguf"))
    whole = "config.json" in names or any(name.endswith(MODEL_FILES) for name in names)
    return _bring_in(f"{path / found[0]} is a GGUF file", path / found[0]) if found and not whole else None


def _foreign_folder(path: Path) -> str | None:
    kind = _model_type(path)
    if kind is not None:
        return _bring_in(f"{path} is a model folder of transformers or mlx-lm ({kind})", path)
    if (path / "ckpt.pt").is_file():
        return _bring_in(f"{path} holds nanoGPT's ckpt.pt", path)
    files = sorted(file for file in path.iterdir() if file.suffix in MODEL_FILES and file.is_file())
    if not files:
        return None
    return _bring_in(f"{path} holds weights without a config.json ({files[0].name})", files[0], " --preset NAME")


def _foreign_file(path: Path) -> str | None:
    with open_file(path) as file:
        start = file.read(9)
    if (path.parent / "state.json").exists():
        return f"{path} is a file of a checkpoint: give its folder, {path.parent}"
    if start.startswith(b"GGUF"):
        return _bring_in(f"{path} is a GGUF file", path)
    if path.suffix in MODEL_FILES and _model_type(path.parent) is not None:
        return _bring_in(f"{path} is a file of a model folder", path.parent)
    if start[8:9] == b"{" or (path.suffix in MODEL_FILES and path.suffix != ".pt" and start[:2] == b"PK"):
        return _bring_in(f"{path} holds weights and does not say of which model", path, " --preset NAME")
    if start[:2] == b"PK" or path.suffix in (".pt", ".pth"):
        return _bring_in(f"{path} is a checkpoint of PyTorch", path)
    return None


def _model_type(folder: Path) -> str | None:
    try:
        found = read_json(folder / "config.json", LARGEST_SETTINGS).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def _bring_in(what: str, path: Path, more: str = "") -> str:
    return f"{what}: bring it in with `python -m convert import {shlex.quote(str(path))}{more}`"
