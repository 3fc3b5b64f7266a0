"""Files of `torch.save`, streamed: a zip archive with one pickle and one uncompressed record per storage.

Reading checks every record's CRC-32 as it streams, which `torch.load` does not, and never holds more than a block, or
one tensor where strides must be gathered. Writing puts the checksums in.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.storage.disk import create
from convert.storage.pickles import Refused, StoredTensor, read_pickle, shown, write_pickle
from convert.storage.tensors import BLOCK, COPY_AGAIN, NUMPY, Tensor, extent, from_array, item_size, load
from gpt_common.errors import UserError

ZIP_MAGIC, LOCAL_HEADER = b"PK\x03\x04", 30
# Before PyTorch 1.6 a file was a row of pickles that begins with this number, or a tar archive.
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
LARGEST_PICKLE = 1 << 23
ALIGNMENT = 64


def is_torch_file(path: Path) -> bool:
    """Whether the content begins as a file of `torch.save` does.

    Raises:
        UserError: it is one in the format of before PyTorch 1.6.
    """
    with path.open("rb") as file:
        start = file.read(512)
    if LEGACY_MAGIC in start[:32]:
        raise UserError(
            f"{path} is in the format of before PyTorch 1.6, which cannot be checked: save it again with "
            "torch.save(torch.load(path, weights_only=True), path)"
        )
    return start.startswith(ZIP_MAGIC)


class TorchFile:
    """An opened file: its value, with `StoredTensor` in place of tensors, and the tensors' bytes on demand.

    Raises:
        UserError: not an archive of `torch.save`, damaged, or its pickle holds more than tensors and plain values.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._records = _records(path)
        except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError) as error:
            raise UserError(f"{path} is damaged: its zip directory cannot be read ({error}): {COPY_AGAIN}") from None
        self._unverified = set(self._records)
        if "constants.pkl" in self._records:
            raise UserError(f"{path} is a TorchScript archive with code in it: save model.state_dict() with torch.save")
        if "data.pkl" not in self._records:
            raise UserError(
                f"{path} is a zip archive without data.pkl, so torch.save did not write it: save the state dict with it"
            )
        if self._small("byteorder", b"little").strip() != b"little":
            raise UserError(f"{path} was written on a big-endian machine: save it again on another one")
        if self._records["data.pkl"][1] > LARGEST_PICKLE:
            raise UserError(
                f"{path}: data.pkl has {self._records['data.pkl'][1]:,} bytes, too many for tensors: save only those"
            )
        try:
            self.value = read_pickle(self._small("data.pkl", b""))
        except Refused as error:
            raise UserError(
                f"{path} is not opened: {error}. Nothing in it was run; save only tensors and plain values"
            ) from None

    def tensor(self, stored: StoredTensor, name: str) -> Tensor:
        """The tensor of a view, to be streamed.

        Raises:
            UserError: its storage is missing or too small for it.
        """
        size = item_size(stored.dtype)
        record = f"data/{stored.storage}"
        if record not in self._records:
            raise UserError(f"{self.path}: the bytes of tensor {name} ({record}) are missing: {COPY_AGAIN}")
        available = self._records[record][1] // size
        if stored.storage_size * size != self._records[record][1]:
            raise UserError(
                f"{self.path}: tensor {name} claims {stored.storage_size} elements in {record}, which has "
                f"{available}: {COPY_AGAIN}"
            )
        last = stored.offset + sum((n - 1) * stride for n, stride in zip(stored.shape, stored.stride, strict=True))
        count = math.prod(stored.shape)
        # More elements than there are would be one repeated by a stride of 0: a small file, a huge tensor.
        if count and max(last, count - 1) >= available:
            raise UserError(
                f"{self.path}: tensor {name} of shape {list(stored.shape)} reaches beyond the "
                f"{available} elements that are stored for it: {COPY_AGAIN}"
            )
        usual = _contiguous(stored.shape)
        contiguous = all(n == 1 or a == b for n, a, b in zip(stored.shape, stored.stride, usual, strict=True))

        def blocks() -> Iterator[bytes]:
            if contiguous or not count:
                return self._read(record, stored.offset * size, count * size, BLOCK * size)
            span = last + 1 - stored.offset
            part = self._read(record, stored.offset * size, span * size, BLOCK * size)
            flat = load(Tensor(dtype=stored.dtype, shape=(span,), blocks=lambda: part))
            steps = [n * size for n in stored.stride]
            view = np.lib.stride_tricks.as_strided(flat, stored.shape, steps, writeable=False)
            return from_array(np.ascontiguousarray(view), stored.dtype).blocks()

        return Tensor(dtype=stored.dtype, shape=stored.shape, blocks=blocks, origin=(self.path, stored))

    def tensors(self, stored: Any, what: str) -> dict[str, Tensor]:
        """The tensors of a state dict that the file calls `what`.

        Raises:
            UserError: it is none, something in it is no named tensor, or the bytes of one are not there.
        """
        if not isinstance(stored, dict) or not stored:
            raise UserError(
                f"{self.path} holds a {type(stored).__name__} and no tensors: save model.state_dict() alone"
            )
        for name, value in stored.items():
            if not isinstance(name, str) or not isinstance(value, StoredTensor):
                raise UserError(
                    f"{self.path}: {shown(name)} in {what} is a {type(value).__name__} and not a tensor: "
                    "save model.state_dict() alone"
                )
        return {name: self.tensor(value, name) for name, value in stored.items()}

    def scalar(self, stored: StoredTensor, name: str) -> float:
        """The value of a tensor with one element.

        Raises:
            UserError: it has more, or is damaged.
        """
        tensor = self.tensor(stored, name)
        if tensor.size != 1 or tensor.dtype == "BF16":
            shape = list(tensor.shape)
            raise UserError(f"{self.path}: {name} should be one number and has shape {shape}: {COPY_AGAIN}")
        return float(np.frombuffer(b"".join(tensor.blocks()), NUMPY[tensor.dtype])[0])

    def verify(self) -> None:
        """Check the CRC-32 of every record that has not been read from end to end.

        Raises:
            UserError: one is wrong.
        """
        for record in sorted(self._unverified):
            for _ in self._read(record, 0, self._records[record][1], 4 * BLOCK):
                pass

    def _small(self, record: str, default: bytes) -> bytes:
        if record not in self._records:
            return default
        return b"".join(self._read(record, 0, self._records[record][1], BLOCK))

    def _read(self, record: str, begin: int, length: int, block: int) -> Iterator[bytes]:
        """Bytes of a record; the whole record is checked before the end of a part of it is reached."""
        start, size, expected = self._records[record]
        if record in self._unverified and (begin, length) != (0, size):
            for _ in self._read(record, 0, size, 4 * BLOCK):
                pass
        if record not in self._unverified:
            yield from extent(self.path, start + begin, length, block)
            return
        crc = 0
        for data in extent(self.path, start, size, block):
            # In this thread: hashing fills the second core, and reading, checksum and writing together this one.
            crc = zlib.crc32(data, crc)
            yield data
        if crc != expected:
            raise UserError(f"{self.path} is damaged: record {record} has a wrong checksum: {COPY_AGAIN}")
        self._unverified.discard(record)


def _records(path: Path) -> dict[str, tuple[int, int, int]]:
    """First byte, length and CRC-32 of every record, by its name without the archive's.

    Raises:
        ValueError, BadZipFile, OSError: it is no archive that torch.save could have written.
    """
    records: dict[str, tuple[int, int, int]] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        end, previous = 0, "the start"
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise ValueError(f"{entry.filename} is compressed, which torch.save never does")
            if entry.flag_bits & 1:
                raise ValueError(f"{entry.filename} is encrypted")
            name = entry.filename.partition("/")[2]
            if name in records:
                raise ValueError(f"{entry.filename} appears twice")
            file.seek(entry.header_offset)
            header = file.read(LOCAL_HEADER)
            if header[:4] != ZIP_MAGIC or entry.header_offset < end:
                raise ValueError(f"{previous} reaches into {entry.filename}, or that is not where it should be")
            name_length, extra_length = struct.unpack("<HH", header[26:30])
            if file.read(name_length) != entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437"):
                raise ValueError(f"{entry.filename} has another name in the directory")
            start = entry.header_offset + LOCAL_HEADER + name_length + extra_length
            previous = entry.filename
            end = start + entry.file_size
            records[name] = (start, entry.file_size, entry.CRC)
        if end > archive.start_dir:
            raise ValueError("the last record reaches into the directory")
    return records


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def plan(tensors: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    """A storage for every tensor, numbered in order: what to put into the value of `write_torch_file`."""
    return {
        name: StoredTensor(str(i), tensor.dtype, tensor.size, 0, tensor.shape, _contiguous(tensor.shape))
        for i, (name, tensor) in enumerate(tensors.items())
    }


def write_torch_file(path: Path, value: Any, tensors: Mapping[str, Tensor], progress: Callable[[int], None]) -> None:
    """Write what `torch.load(path, weights_only=True)` reads as `value`.

    Args:
        value: plain values, and the stored tensors that `plan` made of `tensors`, each at least once.
        tensors: their bytes are streamed.
        progress: is told the number of bytes of every block.

    Raises:
        UserError: a tensor cannot be read.
        OSError: the file cannot be written.
    """
    with create(path) as opened, zipfile.ZipFile(opened, "w") as archive:

        def record(name: str, blocks: Iterator[bytes]) -> None:
            entry = zipfile.ZipInfo(f"archive/{name}")
            # PyTorch aligns records with an extra field, so that they can be mapped; zip64's own one has 20 bytes.
            position = archive.fp.tell() + LOCAL_HEADER + len(entry.filename) + 20 + 4  # type: ignore[union-attr]
            padding = -position % ALIGNMENT
            entry.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
            with archive.open(entry, "w", force_zip64=True) as file:
                for block in blocks:
                    file.write(block)

        record("data.pkl", iter([write_pickle(value)]))
        record("byteorder", iter([b"little"]))
        for i, tensor in enumerate(tensors.values()):
            record(f"data/{i}", _counted(tensor.blocks(), progress))
        record("version", iter([b"3\n"]))


def _counted(blocks: Iterator[bytes], progress: Callable[[int], None]) -> Iterator[bytes]:
    for block in blocks:
        yield block
        progress(len(block))
