"""Tensor files: headers that lie, tensors that are missing, misshapen, of other dtypes, not finite, or changed."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from gpt_common.training.manifest import MODEL_FILE, OPTIMIZER_FILE
from tests.gpt_common.training.hostile.case import CHECKPOINT, READING, TRAINING, Case
from tests.gpt_common.training.hostile.sound import Damage, Tensors, content, state, tensors

NORM, UP = "final_norm.weight", "blocks.1.feed_forward.up_proj.weight"
EXP, SQ = f"exp_avg.{NORM}", f"exp_avg_sq.{UP}"
RESUME = frozenset({"resume"})


def _header(file: str, change: Callable[[dict[str, Any]], object], *, tail: bytes = b"") -> Damage:
    """The file's own words on its tensors, edited; the numbers stay."""

    def edited(data: bytes) -> bytes:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        change(header)
        written = json.dumps(header).encode()
        return struct.pack("<Q", len(written)) + written + data[8 + length :] + tail

    return content(file, edited)


def _twice(data: bytes) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + length].rstrip()
    entry = json.dumps(json.loads(header)[NORM]).encode()
    written = header[:-1] + b', "' + NORM.encode() + b'": ' + entry + b"}"
    return struct.pack("<Q", len(written)) + written + data[8 + length :]


def _first(value: float) -> Callable[[Tensors], object]:
    def change(found: Tensors) -> None:
        for array in found.values():
            array.flat[0] = value

    return change


def _lies(file: str, norm: str) -> dict[str, tuple[Damage, str]]:
    """What is wrong with the bytes of a file, and what is said of it."""
    return {
        "empty": (content(file, lambda _: b""), file),
        "seven bytes": (content(file, lambda data: data[:7]), file),
        "cut in its header": (content(file, lambda data: data[:100]), file),
        "cut in its tensors": (content(file, lambda data: data[:-10]), file),
        "bytes behind its tensors": (content(file, lambda data: data + bytes(64)), file),
        "a header of 2^63 bytes": (content(file, lambda data: b"\xff" * 7 + b"\x7f" + data[8:]), file),
        "a header of 10^8 bytes": (
            content(file, lambda data: struct.pack("<Q", 10**8) + data[8:] + bytes(10**8)),
            file,
        ),
        "a header longer than the file": (content(file, lambda data: struct.pack("<Q", len(data)) + data[8:]), file),
        "a header 100 000 deep": (content(file, lambda _: struct.pack("<Q", 500_000) + b'{"a":' * 100_000), file),
        "a header that is a list": (content(file, lambda data: struct.pack("<Q", 8) + b"[1,2,3 ]" + data[8:]), file),
        "no safetensors": (content(file, lambda _: b"PK\x03\x04" + bytes(1000)), file),
        "overlapping tensors": (
            _header(file, lambda header: header[norm].update(data_offsets=[0, 32])),
            file,
        ),
        "offsets backwards": (
            _header(file, lambda header: header[norm].update(data_offsets=header[norm]["data_offsets"][::-1])),
            file,
        ),
        "offsets of 2^62": (
            _header(file, lambda header: header[norm].update(data_offsets=[2**62, 2**62 + 32])),
            file,
        ),
        "a shape of 2^40": (_header(file, lambda header: header[norm].update(shape=[2**40])), file),
        "a shape that overflows": (_header(file, lambda header: header[norm].update(shape=[2**33, 2**33])), file),
        "a shape below nothing": (_header(file, lambda header: header[norm].update(shape=[-8])), file),
        "an unknown dtype": (_header(file, lambda header: header[norm].update(dtype="F7")), file),
        "a changed byte": (content(file, lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]), "changed"),
        "a hash that is wrong": (state(lambda entries: entries["tensors"][file].update({norm: "0" * 64})), norm),
        "a hash too few": (state(lambda entries: entries["tensors"][file].pop(norm)), norm),
        "a hash too many": (state(lambda entries: entries["tensors"][file].update(x="0" * 64)), "tensor x"),
    }


def _changes(norm: str, matrix: str) -> dict[str, tuple[Callable[[Tensors], object], str]]:
    """What is wrong with tensors that the manifest knows all about."""
    return {
        "a tensor missing": (lambda found: found.pop(norm), norm),
        "a tensor too many": (lambda found: found.update(extra=np.ones(3, np.float32)), "extra"),
        "a name with an escape": (lambda found: found.update({"\x1b[2J\u202e": np.ones(3, np.float32)}), "x1b"),
        "a vector of no numbers": (lambda found: found.update({norm: np.ones(0, np.float32)}), norm),
        "a vector too short": (lambda found: found.update({norm: found[norm][:7]}), norm),
        "a matrix on its side": (lambda found: found.update({matrix: found[matrix].T.copy()}), matrix),
        "one dimension more": (lambda found: found.update({norm: found[norm][None]}), norm),
        "float64": (lambda found: found.update({norm: found[norm].astype(np.float64)}), norm),
        "int8": (lambda found: found.update({norm: found[norm].astype(np.int8)}), norm),
        "bool": (lambda found: found.update({norm: found[norm].astype(bool)}), norm),
        "all tensors gone": (lambda found: [found.pop(name) for name in list(found)[1:]], "missing|too few"),
    }


NOT_FINITE = {"NaN": np.nan, "infinity": np.inf, "minus infinity": -np.inf}
CASES = [
    *(
        Case(f"{file}: {name}", damage, says, READING)
        for file, norm in ((MODEL_FILE, NORM), (OPTIMIZER_FILE, EXP))
        for name, (damage, says) in _lies(file, norm).items()
    ),
    Case("model.safetensors: one name twice", content(MODEL_FILE, _twice), "twice"),
    *(
        Case(f"weights: {name}", tensors(MODEL_FILE, change), says, READING)
        for name, (change, says) in _changes(NORM, UP).items()
    ),
    *(
        Case(f"moments: {name}", tensors(OPTIMIZER_FILE, change), says, RESUME)
        for name, (change, says) in _changes(EXP, SQ).items()
    ),
    *(
        Case(f"{file}: {name}", tensors(file, _first(value)), "NaN or infinity", TRAINING)
        for file in (MODEL_FILE, OPTIMIZER_FILE)
        for name, value in NOT_FINITE.items()
    ),
    Case(
        "moments: float16",
        tensors(OPTIMIZER_FILE, lambda found: found.update({EXP: found[EXP].astype(np.float16)})),
        EXP,
        RESUME,
    ),
    Case(
        "moments: not listed", state(lambda entries: entries["tensors"].pop(OPTIMIZER_FILE)), "optimiser state", RESUME
    ),
    Case(
        "moments: not listed, at step 0",
        state(lambda entries: (entries["tensors"].pop(OPTIMIZER_FILE), entries.update(step=0))),
        "",
        frozenset(),
    ),
    Case(
        "weights: those of the optimiser",
        tensors(MODEL_FILE, lambda found: found.update({f"exp_avg.{n}": a for n, a in found.items()})),
        "exp_avg",
        CHECKPOINT - {"inspect"},
    ),
]
