"""PyTorch's zip container, damaged: cut, flipped, bombs, records twice; and files that are no container at all."""

# ruff: noqa: ARG005 (every edit is given what it edits, whether it looks or not)

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tests.convert.hostile.corpus import CANARY, Case, Make, gpt2_folder, gpt2_pickled, nanogpt_entries, nanogpt_file
from tests.convert.hostile.corpus_pickles import bait

CENTRAL = b"PK\x01\x02"
LOCAL = b"PK\x03\x04"


def damaged(change: Callable[[bytes], bytes], *, legacy: bool = False) -> Make:
    """A sound `ckpt.pt` with its bytes changed."""

    def make(folder: Path) -> Path:
        path = nanogpt_file(legacy=legacy)(folder)
        path.write_bytes(change(path.read_bytes()))
        return path

    return make


def flip(data: bytes, position: int) -> bytes:
    """One bit flipped."""
    return data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]


def _content(data: bytes, name: str) -> int:
    """Position in the middle of a record's content."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        record = next(r for r in archive.infolist() if r.filename.endswith(name))
    lengths = struct.unpack("<HH", data[record.header_offset + 26 :][:4])
    return record.header_offset + 30 + sum(lengths) + record.file_size // 2


def _header(data: bytes, signature: bytes, name: str) -> int:
    """Where the local or central header of the record called `name` begins."""
    length = 30 if signature == LOCAL else 46
    at = data.index(signature)
    while not data[at + length :].startswith(name.encode()):
        at = data.index(signature, at + 4)
    return at


def _overwrite(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def _central(name: str, field: int, value: bytes) -> Make:
    """A sound file with one field of a record's entry in the central directory overwritten."""
    return damaged(lambda data: _overwrite(data, _header(data, CENTRAL, name) + field, value))


def repacked(change: Callable[[zipfile.ZipFile, zipfile.ZipFile, Path], None]) -> Make:
    """A sound checkpoint's archive, written anew by `change(old, new, folder)`."""

    def make(folder: Path) -> Path:
        sound = io.BytesIO()
        torch.save(nanogpt_entries(), sound)
        with zipfile.ZipFile(sound) as old, zipfile.ZipFile(folder / "ckpt.pt", "w") as new:
            change(old, new, folder)
        return folder / "ckpt.pt"

    return make


def copy(old: zipfile.ZipFile, new: zipfile.ZipFile, *, without: str = "no such record", compression: int = 0) -> None:
    """Every record of `old` except one."""
    for record in old.infolist():
        if record.filename != without:
            new.writestr(record.filename, old.read(record), compress_type=compression)


def _data_twice(old: zipfile.ZipFile, new: zipfile.ZipFile, folder: Path) -> None:
    """Two pickles of one name: which of them a reader takes depends on the reader."""
    evil = io.BytesIO()
    torch.save(bait(folder), evil)
    with zipfile.ZipFile(evil) as archive:
        new.writestr("archive/data.pkl", archive.read("archive/data.pkl"))
    new.filelist.clear()
    new.NameToInfo.clear()
    copy(old, new)
    # The first one is not in the directory but is in the file, where a reader from the front finds it.


def _storage_twice(old: zipfile.ZipFile, new: zipfile.ZipFile, _: Path) -> None:
    copy(old, new)
    with warnings.catch_warnings(action="ignore"):
        new.writestr("archive/data/0", bytes(len(old.read("archive/data/0"))))


def _script(old: zipfile.ZipFile, new: zipfile.ZipFile, folder: Path) -> None:
    """What TorchScript keeps beside a pickle: code."""
    copy(old, new)
    new.writestr("archive/constants.pkl", b"\x80\x02).")
    new.writestr("archive/code/__torch__.py", f"open({str(folder / CANARY)!r}, 'w')")


def _big_endian(old: zipfile.ZipFile, new: zipfile.ZipFile, _: Path) -> None:
    copy(old, new, without="archive/byteorder")
    new.writestr("archive/byteorder", "big")


def _bomb(name: str) -> Make:
    """A record of 2 GiB of zeros in 2 MB; made without squeezing 2 GiB, for the compressed block repeats."""

    def make(folder: Path) -> Path:
        size, block = 1 << 31, 1 << 22
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
        unit = squeeze.compress(bytes(block)) + squeeze.flush(zlib.Z_FULL_FLUSH)
        content = unit * (size // block) + squeeze.flush(zlib.Z_FINISH)

        def change(old: zipfile.ZipFile, new: zipfile.ZipFile, _: Path) -> None:
            copy(old, new, without=name)
            new.writestr(name, content)

        path = repacked(change)(folder)
        data = path.read_bytes()
        for signature, method, sizes in ((LOCAL, 8, 18), (CENTRAL, 10, 20)):
            at = _header(data, signature, name)
            data = _overwrite(data, at + method, struct.pack("<H", zipfile.ZIP_DEFLATED))
            data = _overwrite(data, at + sizes, struct.pack("<II", len(content), size))
        path.write_bytes(data)
        return path

    return make


def written(content: bytes, file: str = "ckpt.pt") -> Make:
    """A file of these bytes."""

    def make(folder: Path) -> Path:
        (folder / file).write_bytes(content)
        return folder / file

    return make


def _tar(folder: Path) -> Path:
    path = nanogpt_file()(folder)
    with tarfile.open(folder / "ckpt.tar", "w") as archive:
        archive.add(path, "ckpt.pt")
    path.unlink()
    return folder / "ckpt.tar"


def _npz(folder: Path) -> Path:
    with (folder / "ckpt.pt").open("wb") as file:
        np.savez(file, weight=np.zeros(3))
    return folder / "ckpt.pt"


WHOLE = r"cut|truncat|incomplete|damaged|corrupt|not a (valid )?zip|copy"
CHECKSUM = r"crc|checksum|damaged|corrupt"
FORMAT = r"no checkpoint|not a"
ARCHIVES = [
    Case("cut after 10 bytes", damaged(lambda d: d[:10]), (f"{WHOLE}|{FORMAT}",)),
    Case("cut in the middle", damaged(lambda d: d[: len(d) // 2]), (WHOLE,)),
    Case("cut before the directory ends", damaged(lambda d: d[:-22]), (WHOLE,)),
    Case("cut by one byte", damaged(lambda d: d[:-1]), (WHOLE,)),
    Case("the format of before PyTorch 1.6", nanogpt_file(legacy=True), (r"1\.6",)),
    Case("the format of before PyTorch 1.6, cut", damaged(lambda d: d[: len(d) // 2], legacy=True), (r"1\.6",)),
    Case("a bit in a tensor", damaged(lambda d: flip(d, _content(d, "data/0"))), (CHECKSUM, "data/0")),
    Case("a bit in the pickle", damaged(lambda d: flip(d, _content(d, "data.pkl"))), (CHECKSUM, r"data\.pkl")),
    Case("a bit in a local header", damaged(lambda d: flip(d, 1)), (f"{CHECKSUM}|{WHOLE}|{FORMAT}",)),
    Case("a bit in a record's name", damaged(lambda d: flip(d, d.index(b"data.pkl"))), (CHECKSUM,)),
    Case("a bit in the central directory", damaged(lambda d: flip(d, d.index(CENTRAL) + 1)), (f"{CHECKSUM}|{WHOLE}",)),
    Case("a wrong checksum in the directory", _central("ckpt/data/0", 16, bytes(4)), (CHECKSUM, "data/0")),
    Case("a record that begins elsewhere", _central("ckpt/data/0", 42, b"\0\0\0\x10"), (f"{CHECKSUM}|{WHOLE}",)),
    Case("a record of 4 GB announced", _central("ckpt/data/0", 20, b"\xf0\xff\xff\xff" * 2), (WHOLE, "data/")),
    Case("an encrypted record", _central("ckpt/data/0", 8, b"\x01\0"), ("encrypt", "data/0")),
    Case("bytes in front", damaged(lambda d: b"#!/bin/sh\n" + d), (f"{FORMAT}|{CHECKSUM}|front|before",)),
    Case("a compressed tensor", _bomb("archive/data/0"), ("compress", "data/0")),
    Case("a compressed pickle", _bomb("archive/data.pkl"), ("compress", r"data\.pkl")),
    Case("all records compressed", repacked(lambda o, n, _: copy(o, n, compression=8)), ("compress",)),
    Case("one storage twice", repacked(_storage_twice), ("data/0", "twice|duplicate|more than once")),
    Case("no pickle inside", repacked(lambda o, n, _: copy(o, n, without="archive/data.pkl")), (r"data\.pkl",)),
    Case("a storage left out", repacked(lambda o, n, _: copy(o, n, without="archive/data/0")), ("data/0|lm_head|wte",)),
    Case("big-endian numbers", repacked(_big_endian), ("endian|byte ?order",)),
    Case("a zip of nothing", repacked(lambda o, n, f: None), (r"data\.pkl|empty|no record|not a",)),
    Case("an empty file", written(b""), ("empty",)),
    Case("one zero byte", written(b"\0"), (FORMAT,)),
    Case("a text file called ckpt.pt", written(b"Dear reader,\nthis is not a checkpoint.\n"), (FORMAT,)),
    Case(
        "a Git LFS pointer", written(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"), (FORMAT,)
    ),
    Case("a web page called ckpt.pt", written(b"<!DOCTYPE html><html>Sign in</html>"), (FORMAT,)),
    Case("JSON called model.safetensors", written(b'{"weights": [1, 2]}', "model.safetensors"), (FORMAT + "|header",)),
    Case("random bytes", written(np.random.default_rng(3).bytes(4096)), (FORMAT,)),
    Case("a GGUF file of nothing", written(b"GGUF\x03\0\0\0" + bytes(64), "model.gguf"), ("architecture",)),
    Case("gzip", written(gzip.compress(b"ckpt" * 100)), (FORMAT,)),
    Case("a tar of a checkpoint", _tar, (FORMAT,)),
    Case("numpy's archive", _npz, (r"data\.pkl|numpy|npz|" + FORMAT,)),
    Case(
        "pytorch_model.bin cut in the middle",
        gpt2_pickled(lambda s: (s / "pytorch_model.bin").write_bytes((s / "pytorch_model.bin").read_bytes()[:3000])),
        (WHOLE,),
        file="pytorch_model.bin",
    ),
]


def _meta_beside(folder: Path) -> Path:
    """nanoGPT's `meta.pkl`, which its own sampler unpickles, beside the checkpoint and where `config` points."""
    import pickle

    place = folder / "data" / "shakespeare_char"
    place.mkdir(parents=True)
    for path in (folder / "meta.pkl", place / "meta.pkl"):
        path.write_bytes(pickle.dumps(bait(folder)))
    return nanogpt_file()(folder)


def _unread_pickle(old: zipfile.ZipFile, new: zipfile.ZipFile, folder: Path) -> None:
    evil = io.BytesIO()
    torch.save(bait(folder), evil)
    copy(old, new)
    with zipfile.ZipFile(evil) as archive:
        new.writestr("archive/extra.pkl", archive.read("archive/data.pkl"))


def _remote_code(folder: Path) -> Path:
    def finish(source: Path) -> None:
        (source / "modeling.py").write_text(f"open({str(folder / CANARY)!r}, 'w')\n")

    return gpt2_folder(
        config=lambda c: c.update(auto_map={"AutoModelForCausalLM": "modeling.Model"}), finish=finish
    )(folder)  # fmt: skip


def _tokenizer(content: str) -> Make:
    """A transformers folder with this for a tokenizer, which weights do not need."""
    return gpt2_folder(finish=lambda s: (s / "tokenizer.json").write_text(content))


TRAPS = [
    Case("a tokenizer that is none", _tokenizer('{"model": 3}'), ()),
    Case("a tokenizer nested 100 000 deep", _tokenizer("[" * 100_000), ()),
    Case("a pickle beside that nothing needs", _meta_beside, ()),
    Case("a second pickle in the archive", repacked(_unread_pickle), ()),
    Case("a first pickle that the directory does not list", repacked(_data_twice), ()),
    Case("code inside the archive", repacked(_script), ()),
    Case("code beside the weights", _remote_code, ()),
]
"""Sources with a trap that a careful reader never steps on: it may convert them or refuse them."""
