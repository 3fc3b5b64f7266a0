"""Pickles that run code when they are read, abuse what PyTorch allows, describe impossible tensors, or never end."""

# ruff: noqa: ARG005 (every edit is given what it edits, whether it looks or not)

from __future__ import annotations

import builtins
import functools
import io
import operator
import os
import pickle
import runpy
import shutil
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.convert.hostile.corpus import CANARY, Case, Make, gpt2_pickled, nanogpt_file


class Call:
    """Pickles as a call of `function(*arguments)`, which reading the pickle carries out."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.parts


def bait(folder: Path) -> Call:
    """The plainest attack: a shell command that leaves the canary in `folder`."""
    return Call(os.system, f"touch '{folder / CANARY}'")


def opcodes(body: bytes) -> bytes:
    """A pickle from raw opcodes: protocol 2, and a full stop."""
    return b"\x80\x02" + body + b"."


def text(value: str) -> bytes:
    """Opcode that pushes a string."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


# --- attacks that plant the canary -------------------------------------------------------------------------------


def _nested(place: Callable[[dict[str, Any], Call], Any], *, legacy: bool = False) -> Make:
    """A sound checkpoint in which `place` puts the bait."""

    def make(folder: Path) -> Path:
        return nanogpt_file(lambda entries: place(entries, bait(folder)), legacy=legacy)(folder)

    return make


def _whole(attack: Callable[[Path], Any], file: str = "ckpt.pt") -> Make:
    """A bare pickle of `attack(canary)`."""

    def make(folder: Path) -> Path:
        (folder / file).write_bytes(pickle.dumps(attack(folder / CANARY), protocol=2))
        return folder / file

    return make


def _zipped(attack: Callable[[Path], Any], file: str = "ckpt.pt") -> Make:
    """The same in PyTorch's zip container."""

    def make(folder: Path) -> Path:
        torch.save(attack(folder / CANARY), folder / file)
        return folder / file

    return make


def _raw(body: Callable[[str], bytes]) -> Make:
    """A zip container whose pickle is `body(shell command)`, opcode by opcode."""

    def make(folder: Path) -> Path:
        return container(folder / "ckpt.pt", body(f"touch '{folder / CANARY}'"))

    return make


def _pickled_folder(folder: Path) -> Path:
    return gpt2_pickled(lambda source: torch.save({"wte.weight": bait(folder)}, source / "pytorch_model.bin"))(folder)


def _run_through_torch(canary: Path) -> Call:
    """PyTorch's own loader as the gadget, told to read a second pickle without its guard."""
    inner = io.BytesIO(pickle.dumps(Call(os.system, f"touch '{canary}'"), protocol=2))
    return Call(functools.partial(torch.load, weights_only=False), inner)


SYSTEM = r"(os|posix)\.system"
NO_CHECKPOINT = "no checkpoint"
ATTACKS = [
    Case("os.system as a bare pickle", _whole(lambda c: Call(os.system, f"touch '{c}'")), (NO_CHECKPOINT,)),
    Case("eval in a zip", _zipped(lambda c: {"model": Call(builtins.eval, f"open({str(c)!r}, 'w')")}), ("eval",)),
    Case("exec in a list", _zipped(lambda c: [Call(builtins.exec, f"open({str(c)!r}, 'w')")]), ("exec",)),
    Case("open for writing", _zipped(lambda c: Call(builtins.open, str(c), "w")), (r"io\.open|builtins\.open",)),
    Case(
        "subprocess",
        _zipped(lambda c: Call(subprocess.check_call, ["touch", str(c)])),
        (r"(subprocess|commands)\.check_call",),
    ),
    Case("shutil.copy", _zipped(lambda c: Call(shutil.copy, sys.executable, str(c))), (r"shutil\.copy",)),
    Case(
        "a method by name",
        _zipped(lambda c: Call(operator.methodcaller("touch"), Path(c))),
        (r"operator\.methodcaller|pathlib",),
    ),
    Case(
        "runpy in a state dict",
        _zipped(lambda c: OrderedDict(w=Call(vars(runpy)["_run_code"], f"open({str(c)!r}, 'w')", {})), "model.pth"),
        (r"runpy\._run_code",),
    ),
    Case(
        "a pickle that reads a pickle",
        _zipped(lambda c: Call(pickle.loads, pickle.dumps(Call(os.system, f"touch '{c}'")))),
        (r"pickle\.loads",),
    ),
    Case("torch.load as a gadget", _zipped(_run_through_torch), (r"functools\.partial|torch\.\S*load",)),
    Case(
        "a folder made without a shell",
        _whole(lambda c: Call(os.mkdir, str(c)), "weights.bin"),
        (NO_CHECKPOINT,),
    ),
    Case("in the model's tensors", _nested(lambda e, b: e["model"].update({"lm_head.weight": b})), (SYSTEM,)),
    Case("in the model arguments", _nested(lambda e, b: e["model_args"].update(dropout=b)), (SYSTEM,)),
    Case("in the configuration", _nested(lambda e, b: e["config"].update(dataset=[{"deep": (b,)}])), (SYSTEM,)),
    Case("as a key", _nested(lambda e, b: e["config"].update({b: 1})), (SYSTEM,)),
    Case("in the optimiser's groups", _nested(lambda e, b: e["optimizer"]["param_groups"][1].update(lr=b)), (SYSTEM,)),
    Case("as a moment", _nested(lambda e, b: e["optimizer"]["state"][0].update(exp_avg=b)), (SYSTEM,)),
    Case("as the best loss", _nested(lambda e, b: e.update(best_val_loss=b)), (SYSTEM,)),
    Case("in a legacy file", _nested(lambda e, b: e.update(best_val_loss=b), legacy=True), (r"1\.6",)),
    Case("in pytorch_model.bin", _pickled_folder, (SYSTEM,), file="pytorch_model.bin"),
    Case("opcode INST", _raw(lambda s: b"(S" + repr(s).encode() + b"\nios\nsystem\n."), ("opcode",)),
    Case("opcode OBJ", _raw(lambda s: b"(cos\nsystem\nS" + repr(s).encode() + b"\no."), (SYSTEM,)),
    Case(
        "opcode STACK_GLOBAL",
        _raw(lambda s: b"\x80\x04" + text("os") + text("system") + b"\x93" + text(s) + b"\x85R."),
        (SYSTEM,),
    ),
    Case(
        "opcode REDUCE on what BUILD left behind",
        _raw(lambda s: opcodes(b"ccollections\nOrderedDict\n)R}" + text("__class__") + b"cos\nsystem\nsb")),
        (SYSTEM,),
    ),
]

# --- nothing runs, but a reader may stumble ------------------------------------------------------------------------


def container(path: Path, data: bytes, storages: dict[str, bytes] | None = None, compression: int = 0) -> Path:
    """PyTorch's zip container around any pickle and storages."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content)
        archive.writestr("archive/version", "3\n")
    return path


def _tensor(
    shape: bytes,
    stride: bytes,
    *,
    offset: bytes = b"K\x00",
    kind: bytes = b"ctorch\nFloatStorage\n",
    key: str = "0",
    count: bytes = b"K\x08",
    storage: bytes = bytes(32),
) -> Make:
    """A state dict of one tensor, `transformer.ln_f.weight`, described by raw opcodes."""

    def make(folder: Path) -> Path:
        persistent = b"(" + text("storage") + kind + text(key) + text("cpu") + count + b"tQ"
        rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + persistent + offset + shape + stride + b"\x89"
        tensor = rebuilt + b"ccollections\nOrderedDict\n)RtR"
        return container(
            folder / "ckpt.pt", opcodes(b"}" + text("transformer.ln_f.weight") + tensor + b"s"), {"0": storage}
        )

    return make


def _laughs() -> list[Any]:
    """Fifty lists of two that are the same: a few bytes on disk, 2^50 entries for whoever walks or prints them all."""
    level: list[Any] = ["ha"]
    for _ in range(50):
        level = [level, level]
    return level


def _deep(folder: Path) -> Path:
    return container(folder / "ckpt.pt", opcodes(b"]" * 30_000 + b"a" * 29_999))


EIGHT, ONE = b"K\x08\x85", b"K\x01\x85"
HUGE = b"\x8a\x08" + struct.pack("<q", 1 << 50)
MINUS_ONE = b"J\xff\xff\xff\xff"
EIGHT_AS_FLOAT = b"G" + struct.pack(">d", 8.0)

TENSOR = (r"ln_f\.weight|data/0",)
SHAPE = ("shape", "stride")
BROKEN = [
    Case("strides that leave the storage", _tensor(EIGHT, b"K\x40\x85"), TENSOR),
    Case("a shape larger than the storage", _tensor(HUGE + b"\x85", ONE), TENSOR),
    Case("an offset outside the storage", _tensor(EIGHT, ONE, offset=b"K\x09"), TENSOR),
    Case("a negative offset", _tensor(EIGHT, ONE, offset=MINUS_ONE), SHAPE),
    Case("a negative dimension", _tensor(MINUS_ONE + b"\x85", ONE), SHAPE),
    Case("a fractional dimension", _tensor(EIGHT_AS_FLOAT + b"\x85", ONE), SHAPE),
    Case("a negative stride", _tensor(EIGHT, MINUS_ONE + b"\x85"), SHAPE),
    Case("fewer strides than dimensions", _tensor(EIGHT, b")"), SHAPE),
    Case("a storage shorter than claimed", _tensor(EIGHT, ONE, storage=bytes(12)), TENSOR),
    Case("a storage of 2^50 elements claimed", _tensor(EIGHT, ONE, count=HUGE), TENSOR),
    Case("a storage that is not there", _tensor(EIGHT, ONE, key="7"), ("data/7|ln_f",)),
    Case("a storage key that climbs out", _tensor(EIGHT, ONE, key="../../../etc/passwd"), ("passwd|ln_f",)),
    Case("a storage of no known kind", _tensor(EIGHT, ONE, kind=b"ctorch\nBananaStorage\n"), ("BananaStorage",)),
    Case(
        "bytearray of 2^40",
        lambda f: container(
            f / "ckpt.pt", opcodes(b"cbuiltins\nbytearray\n" + b"\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"\x85R")
        ),
        ("bytearray",),
    ),
    Case(
        "a string of 2^31 bytes announced",
        lambda f: container(f / "ckpt.pt", opcodes(b"X\xff\xff\xff\x7fabc")),
        ("damaged", "bytes"),
    ),
    Case("30 000 nested lists", _deep, ("model|nest|deep",)),
    Case("2^50 entries as an argument", nanogpt_file(lambda e: e["model_args"].update(n_head=_laughs())), ("n_head",)),
    Case("2^50 entries as an iteration", nanogpt_file(lambda e: e.update(iter_num=_laughs())), ("iter_num",)),
    Case(
        "2^50 entries as a step", nanogpt_file(lambda e: e["optimizer"]["state"][0].update(step=_laughs())), ("step",)
    ),
    Case(
        "2^50 entries as a key",
        lambda f: container(f / "ckpt.pt", opcodes(b"}K\x00" + b"q\x00h\x00\x86" * 50 + b"Ns")),
        ("key",),
    ),
    Case(
        "a TorchScript module",
        lambda f: container(f / "ckpt.pt", opcodes(b"c__torch__.model\nGPT\n)\x81")),
        (r"__torch__",),
    ),
    Case("a reference to nothing", lambda f: container(f / "ckpt.pt", opcodes(b"h\x05")), ("damaged",)),
    Case("a pickle without its end", lambda f: container(f / "ckpt.pt", b"\x80\x02}"), ("damaged",)),
    Case("a whole module instead of tensors", nanogpt_file(lambda e: torch.nn.Linear(2, 2)), ("Linear",)),
    Case("a list of tensors", nanogpt_file(lambda e: list(e["model"].values())), ("list",)),
    Case("a single tensor", nanogpt_file(lambda e: e["model"]["lm_head.weight"]), ("tensor",)),
    Case("a number", nanogpt_file(lambda e: 42), ("int",)),
]
