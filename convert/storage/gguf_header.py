"""The header of a GGUF file: settings by key, and where each tensor lies. Nothing in it is believed unchecked.

A count or a length in it is a claim about bytes that follow: it is compared with what the file has, and with what any
model needs, before memory is taken for it. Little-endian, versions 2 and 3, which differ in nothing that is read here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from convert.storage.tensors import COPY_AGAIN, Array
from gpt_common.errors import UserError
from gpt_common.files import open_file

MAGIC = b"GGUF"
VERSION, VERSIONS = 3, (2, 3)
ALIGNMENT = 32
"""Bytes, where `general.alignment` says nothing: every tensor begins at a multiple."""
LARGEST_ALIGNMENT = 1 << 16
MOST_DIMENSIONS, LARGEST_DIMENSION = 4, 1 << 32
MOST_ENTRIES = 1 << 16
"""Settings, and tensors."""
MOST_STRINGS = 1 << 20
"""In all arrays together: the largest vocabulary that is published has 262 thousand tokens and twice as many merges."""
LARGEST_NAME, LARGEST_WORD, LARGEST_TEXT, LARGEST_HEADER = 1 << 10, 1 << 13, 1 << 20, 1 << 26
"""Bytes: of a key or a tensor's name, of a string in an array, of any other, of everything before the tensors."""

Value: TypeAlias = int | float | bool | str | list[str] | Array
"""Arrays of strings are lists, those of numbers numpy's."""


@dataclass(frozen=True)
class Kind:
    """How the elements of a tensor are stored: some of them together in a block of bytes."""

    name: str
    number: int
    elements: int
    nbytes: int

    def size_of(self, count: int) -> int:
        """Bytes of `count` elements."""
        return count // self.elements * self.nbytes


KINDS = {
    name: Kind(name, number, elements, nbytes)
    for name, number, elements, nbytes in (
        ("F32", 0, 1, 4), ("F16", 1, 1, 2), ("BF16", 30, 1, 2), ("Q4_0", 2, 32, 18), ("Q4_1", 3, 32, 20),
        ("Q5_0", 6, 32, 22), ("Q5_1", 7, 32, 24), ("Q8_0", 8, 32, 34), ("Q2_K", 10, 256, 84), ("Q3_K", 11, 256, 110),
        ("Q4_K", 12, 256, 144), ("Q5_K", 13, 256, 176), ("Q6_K", 14, 256, 210), ("IQ4_NL", 20, 32, 18),
        ("IQ4_XS", 23, 256, 136),
    )
}  # fmt: skip
"""ggml's types that are read here; the first eight are written too."""
NUMBERS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies."""

    kind: Kind
    shape: tuple[int, ...]
    """As in numpy: rows first."""
    offset: int
    """Bytes from the beginning of the file."""

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.kind.size_of(math.prod(self.shape))


@dataclass(frozen=True)
class Header:
    """What stands before the tensors."""

    settings: dict[str, Value]
    tensors: dict[str, Stored]


def is_gguf(path: Path) -> bool:
    """Whether the content begins as a GGUF file does."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_gguf_header(path: Path) -> Header:
    """Settings and places, when every tensor is known to lie in the file and beside the others.

    Raises:
        UserError: anything in it is not as it must be.
        OSError: the file cannot be read.
    """
    with open_file(path) as file:
        return _Reader(path, file).header()


class _Reader:
    """A header, read from front to back."""

    def __init__(self, path: Path, file: BufferedReader) -> None:
        self.path, self.file = path, file
        self.size = path.stat().st_size
        self.position = self.strings = 0

    def damaged(self, what: str) -> UserError:
        return UserError(f"{self.path} is not a valid GGUF file: {what}: {COPY_AGAIN}")

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes."""
        self.require(count, what)
        self.position += count
        data = self.file.read(count)
        if len(data) < count:
            raise self.damaged(f"it ends in {what}")
        return data

    def require(self, count: int, what: str) -> None:
        """Refuse what the rest of the file has no room for."""
        if count > self.size - self.position:
            raise self.damaged(f"{what} would take {count:,} bytes, and {self.size - self.position:,} are left")
        if self.position + count > LARGEST_HEADER:
            raise self.damaged(f"its header is larger than {LARGEST_HEADER >> 20} MiB")

    def number(self, what: str, form: str = "<Q") -> int:
        value: int = struct.unpack(form, self.take(struct.calcsize(form), what))[0]
        return value

    def count(self, what: str, most: int, least_bytes: int) -> int:
        """How many entries follow, each of at least so many bytes."""
        found = self.number(f"the number of {what}")
        if found > most:
            raise self.damaged(f"it claims {found:,} {what}, and no model has more than {most:,}")
        self.require(found * least_bytes, f"{found:,} {what}")
        return found

    def text(self, what: str, largest: int) -> str:
        length = self.number(f"the length of {what}")
        if length > largest:
            raise self.damaged(f"{what} claims {length:,} bytes, and at most {largest:,} are read")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"{what} is no UTF-8") from None

    def name(self, what: str) -> str:
        """Of a setting or a tensor: what can stand in a message."""
        name = self.text(what, LARGEST_NAME)
        if not name.isprintable():
            raise self.damaged(f"{what} is no name, but {name[:40]!r}")
        return name

    def header(self) -> Header:
        if self.take(min(len(MAGIC), self.size), "its first word") != MAGIC:
            raise self.damaged("it does not begin with GGUF")
        version = self.number("its version", "<I")
        if version not in VERSIONS:
            if version.to_bytes(4, "little")[::-1] in (v.to_bytes(4, "little") for v in VERSIONS):
                raise UserError(f"{self.path} is a big-endian GGUF file: convert the little-endian one")
            raise UserError(f"{self.path} is GGUF of version {version}, and 2 and 3 are read: download a newer file")
        n_tensors = self.count("tensors", MOST_ENTRIES, 24)
        n_settings = self.count("settings", MOST_ENTRIES, 13)
        settings: dict[str, Value] = {}
        for _ in range(n_settings):
            key = self.name("a key")
            if key in settings:
                raise self.damaged(f"the key {key[:80]!r} stands in it twice")
            settings[key] = self.value(key[:80])
        claims = self.claims(n_tensors)
        alignment = settings.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or not 1 <= alignment <= LARGEST_ALIGNMENT or alignment & (alignment - 1):
            raise self.damaged(f"general.alignment is {str(alignment)[:40]}, and it must be a power of two")
        return Header(settings, self.placed(claims, alignment))

    def value(self, key: str) -> Value:
        form = self.number(f"the type of {key}", "<I")
        if form == STRING:
            return self.text(key, LARGEST_TEXT)
        if form == ARRAY:
            return self.array(key)
        return self.scalar(key, form)

    def scalar(self, key: str, form: int) -> Value:
        if form not in NUMBERS:
            raise self.damaged(f"{key} is of type {form}, which there is not")
        kind = np.dtype(NUMBERS[form])
        data = self.take(kind.itemsize, key)
        if form == BOOL and data not in (b"\0", b"\1"):
            raise self.damaged(f"{key} is neither true nor false")
        value = np.frombuffer(data, kind)[0]
        # A float32 stands for the shortest number that it is nearest to: 1e-05 and not 9.999999747378752e-06.
        return float(str(value)) if form == FLOAT32 else value.item()

    def array(self, key: str) -> Value:
        form = self.number(f"the type of {key}", "<I")
        if form == ARRAY:
            raise self.damaged(f"{key} is an array of arrays, which no model has")
        if form == STRING:
            found = self.count(f"strings in {key}", MOST_STRINGS, 8)
            self.strings += found
            if self.strings > MOST_STRINGS:
                raise self.damaged(f"it has more than {MOST_STRINGS:,} strings")
            return [self.text(f"string {i} of {key}", LARGEST_WORD) for i in range(found)]
        if form not in NUMBERS:
            raise self.damaged(f"{key} is an array of type {form}, which there is not")
        kind = np.dtype(NUMBERS[form])
        found = self.count(f"numbers in {key}", LARGEST_HEADER, kind.itemsize)
        return np.frombuffer(self.take(found * kind.itemsize, key), "<u1" if form == BOOL else kind)

    def claims(self, count: int) -> dict[str, Stored]:
        """What each tensor says of itself; offsets are still those from the end of the header."""
        known = {kind.number: kind for kind in KINDS.values()}
        found: dict[str, Stored] = {}
        for _ in range(count):
            name = self.name("the name of a tensor")
            shown = f"tensor {name[:80]}"
            if name in found:
                raise self.damaged(f"{shown} stands in it twice")
            dimensions = self.number(f"the dimensions of {shown}", "<I")
            if not 1 <= dimensions <= MOST_DIMENSIONS:
                raise self.damaged(f"{shown} has {dimensions:,} dimensions, and 1 to {MOST_DIMENSIONS} are possible")
            sizes = [self.number(f"a size of {shown}") for _ in range(dimensions)]
            if not all(1 <= size <= LARGEST_DIMENSION for size in sizes):
                raise self.damaged(f"{shown} has shape {sizes[::-1]}, which is not possible")
            number = self.number(f"the type of {shown}", "<I")
            if number not in known:
                names = ", ".join(KINDS)
                raise UserError(
                    f"{self.path}: {shown} is of ggml's type {number}, and {names} are read: choose a file of those"
                )
            kind = known[number]
            if sizes[0] % kind.elements:
                said = f"rows of {sizes[0]:,} numbers, and {kind.name} keeps {kind.elements} together"
                raise self.damaged(f"{shown} has {said}")
            found[name] = Stored(kind, tuple(sizes[::-1]), self.number(f"the offset of {shown}"))
        return found

    def placed(self, claims: Mapping[str, Stored], alignment: int) -> dict[str, Stored]:
        """The same with offsets in the file, when they lie in it, aligned, one behind the other."""
        begin = -(-self.position // alignment) * alignment
        placed, end, before = {}, begin, ""
        for name, stored in sorted(claims.items(), key=lambda item: item[1].offset):
            shown = f"tensor {name[:80]}"
            if stored.offset % alignment:
                raise self.damaged(f"{shown} begins at {stored.offset:,}, which is no multiple of {alignment}")
            start = begin + stored.offset
            if start < end:
                raise self.damaged(f"{shown} lies on top of {before}")
            end = start + stored.nbytes
            if end > self.size:
                raise self.damaged(f"{shown} ends at byte {end:,}, and the file has {self.size:,}")
            placed[name], before = Stored(stored.kind, stored.shape, start), shown
        return placed


def encoded_header(settings: Mapping[str, Value], tensors: Mapping[str, Stored]) -> bytes:
    """The header of a file, padded to where tensors begin, from which their offsets here are counted."""
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(settings))]
    for key, value in settings.items():
        parts += [_text(key), *_encoded(value)]
    for name, stored in tensors.items():
        sizes = stored.shape[::-1]
        parts += [_text(name), struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)]
        parts.append(struct.pack("<IQ", stored.kind.number, stored.offset))
    encoded = b"".join(parts)
    return encoded + bytes(-len(encoded) % ALIGNMENT)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _encoded(value: Value) -> list[bytes]:
    """Type and value; whole numbers are unsigned alone and signed in arrays, as llama.cpp wants them."""
    simple: dict[type, tuple[int, Callable[[Any], bytes]]] = {
        bool: (BOOL, lambda v: struct.pack("<?", v)),
        int: (UINT32, lambda v: struct.pack("<I", v)),
        float: (FLOAT32, lambda v: struct.pack("<f", v)),
        str: (STRING, _text),
    }
    if isinstance(value, list):
        return [struct.pack("<IIQ", ARRAY, STRING, len(value)), *map(_text, value)]
    if isinstance(value, np.ndarray):
        return [struct.pack("<IIQ", ARRAY, INT32, value.size), value.astype("<i4").tobytes()]
    form, encode = simple[type(value)]
    return [struct.pack("<I", form), encode(value)]
