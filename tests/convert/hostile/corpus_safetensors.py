"""Safetensors files whose header lies, and transformers folders with files missing, misdirected or special."""

# ruff: noqa: ARG005 (every edit is given what it edits, whether it looks or not)

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.convert.hostile.corpus import Case, Make, gpt2_config, gpt2_folder, gpt2_shards

FILE = "model.safetensors"
SHARD = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
WTE, LN = "transformer.wte.weight", "transformer.ln_f.weight"
C_FC = "transformer.h.1.mlp.c_fc.weight"


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensor bytes of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: dict[str, Any] | bytes, body: bytes) -> bytes:
    """The reverse, with any header."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + body


def _bytes(change: Callable[[bytes], bytes]) -> Make:
    """A transformers folder whose one file has its bytes changed."""
    return gpt2_folder(finish=lambda s: (s / FILE).write_bytes(change((s / FILE).read_bytes())))


def _header(change: Callable[[dict[str, Any]], Any]) -> Make:
    """The same with only the header changed."""

    def edit(data: bytes) -> bytes:
        header, body = split(data)
        change(header)
        return joined(header, body)

    return _bytes(edit)


def _entry(name: str, **values: Any) -> Make:
    """The same with one tensor's entry changed."""
    return _header(lambda header: header[name].update(values))


def _offsets(begin: Callable[[int, int], list[int]]) -> Make:
    """The same with the last norm's offsets changed."""
    return _header(lambda h: h[LN].update(data_offsets=begin(*h[LN]["data_offsets"])))


def _twice(data: bytes) -> bytes:
    """One name twice in the header, which JSON allows and readers resolve differently."""
    header, body = split(data)
    again = json.dumps({LN: {**header[LN], "shape": [4, 2]}}).encode()
    return joined(json.dumps(header).encode()[:-1] + b", " + again[1:], body)


SAY_HEADER = "header|damaged|not valid|invalid|corrupt"
LIES = [
    Case("a header of 2^63 bytes", _bytes(lambda d: struct.pack("<Q", 1 << 63) + d[8:]), (SAY_HEADER,)),
    Case("a header of 2^64 - 1 bytes", _bytes(lambda d: b"\xff" * 8 + d[8:]), (SAY_HEADER,)),
    Case("a header longer than the file", _bytes(lambda d: struct.pack("<Q", len(d)) + d[8:]), (SAY_HEADER,)),
    Case("a header of no bytes", _bytes(lambda d: bytes(8) + d[8:]), (SAY_HEADER,)),
    Case("a header that is no JSON", _bytes(lambda d: joined(b"{" * 40, d[500:])), (SAY_HEADER,)),
    Case("a header that is no UTF-8", _bytes(lambda d: joined(b'{"\xff\xfe":1}', d[500:])), (SAY_HEADER,)),
    Case("a header nested 100 000 deep", _bytes(lambda d: joined(b'{"a":' + b"[" * 100_000, b"")), (SAY_HEADER,)),
    Case("a bit in the header", _bytes(lambda d: d[:8] + bytes([d[8] ^ 4]) + d[9:]), (SAY_HEADER,)),
    Case("cut in the header", _bytes(lambda d: d[:100]), (SAY_HEADER + "|cut|truncated|incomplete",)),
    Case("cut in the tensors", _bytes(lambda d: d[:-100]), (SAY_HEADER + "|cut|truncated|incomplete",)),
    Case("an empty file", _bytes(lambda d: b""), ("empty|" + SAY_HEADER,)),
    Case("bytes after the tensors", _bytes(lambda d: d + bytes(64)), (SAY_HEADER + "|trailing|after",)),
    Case("one name twice", _bytes(_twice), ("duplicate|twice|" + SAY_HEADER,)),
    Case("overlapping tensors", _offsets(lambda b, e: [b - 32, e - 32]), (SAY_HEADER + "|overlap",)),
    Case("a hole between tensors", _offsets(lambda b, e: [b + 32, e + 32]), (SAY_HEADER + "|hole|overlap",)),
    Case("offsets that wrap around", _offsets(lambda b, e: [(1 << 64) - 32, (1 << 64) - 1]), (SAY_HEADER,)),
    Case("an end before its beginning", _offsets(lambda b, e: [e, b]), (SAY_HEADER,)),
    Case("negative offsets", _offsets(lambda b, e: [-32, 0]), (SAY_HEADER,)),
    Case("offsets of 10^300", _offsets(lambda b, e: [b, 10**300]), (SAY_HEADER,)),
    Case("a negative dimension", _entry(LN, shape=[-8]), (SAY_HEADER,)),
    Case("a fractional dimension", _entry(LN, shape=[8.0]), (SAY_HEADER,)),
    Case("dimensions whose product wraps around", _entry(LN, shape=[1 << 32, 1 << 32, 8]), (SAY_HEADER,)),
    Case("a shape that is no list", _entry(LN, shape="8"), (SAY_HEADER,)),
    Case("an unknown dtype", _entry(LN, dtype="F12"), (SAY_HEADER,)),
    Case("a dtype of another size", _entry(LN, dtype="F64"), (SAY_HEADER,)),
    Case("no dtype", _header(lambda h: h[LN].pop("dtype")), (SAY_HEADER,)),
    Case("metadata that is no text", _header(lambda h: h.update(__metadata__={"format": [1]})), (SAY_HEADER,)),
    Case("a pickle called model.safetensors", _bytes(lambda d: b"\x80\x02}." + bytes(500)), (SAY_HEADER,)),
]
LIES = [Case(f"safetensors: {case.name}", case.make, case.says, file=FILE) for case in LIES]


def _drop(name: str) -> Make:
    return gpt2_folder(lambda tensors: tensors.pop(name))


def _as(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Make:
    """A folder in which one tensor was replaced."""
    return gpt2_folder(lambda tensors: tensors.update({name: np.ascontiguousarray(change(tensors[name]))}))


def _all(dtype: str) -> Make:
    """A folder whose tensors all have another dtype."""
    return gpt2_folder(lambda tensors: tensors.update({n: (t * 100).astype(dtype) for n, t in tensors.items()}))


def _fifo(path: Path) -> None:
    """A pipe nobody writes to: whoever opens it to read waits for ever."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _linked(target: str, file: str = FILE) -> Make:
    def finish(source: Path) -> None:
        (source / file).unlink()
        (source / file).symlink_to(target)

    return gpt2_folder(finish=finish)


TENSORS = [
    Case("a tensor is missing", _drop(C_FC), (r"h\.1\.mlp\.c_fc\.weight", "missing|lacks|not (in|there)|no tensor")),
    Case("a whole block is missing", gpt2_folder(config=lambda c: c.update(n_layer=3)), (r"h\.2\.",)),
    Case("a block too many", gpt2_folder(config=lambda c: c.update(n_layer=1)), (r"h\.1\.",)),
    Case("a tensor too many", gpt2_folder(lambda t: t.update({"transformer.h.1.adapter.weight": t[LN]})), ("adapter",)),
    Case("a misshapen tensor", _as(LN, lambda a: a[:7]), (r"ln_f\.weight", "7", "8")),
    Case("a matrix as a vector", _as(C_FC, lambda a: a.reshape(-1)), (r"h\.1\.mlp\.c_fc\.weight", "256")),
    Case("a Conv1D that was transposed already", _as(C_FC, lambda a: a.T), (r"h\.1\.mlp\.c_fc\.weight", "32, 8")),
    Case("more positions than tensors", gpt2_folder(config=lambda c: c.update(n_positions=64)), (r"wpe", "64", "16")),
    Case("a smaller vocabulary than configured", gpt2_folder(config=lambda c: c.update(vocab_size=99)), ("wte", "99")),
    Case(
        "an untied head that is missing", gpt2_folder(config=lambda c: c.update(tie_word_embeddings=False)), ("head",)
    ),
    Case(
        "a tied head that differs",
        gpt2_folder(lambda t: t.update({"lm_head.weight": t[WTE] + 1})),
        ("lm_head",),
    ),
    Case("both names of one tensor", gpt2_folder(lambda t: t.update({"wte.weight": t[WTE] + 1})), (r"wte\.weight",)),
    Case("float64", _all("float64"), ("float64|F64", "--dtype|cast|convert", r"ln_f|wte|h\.0")),
    Case("integers", _all("int32"), ("int32|I32", r"ln_f|wte|h\.0")),
    Case("bytes", _all("uint8"), ("uint8|U8", r"ln_f|wte|h\.0")),
    Case("truth values", _as(LN, lambda a: a > 0), ("bool", r"ln_f\.weight")),
    Case("complex numbers", _as(LN, lambda a: a.astype(np.complex64)), ("complex|C64", r"ln_f\.weight")),
]
TENSORS = [Case(f"transformers: {case.name}", case.make, case.says, file="gpt2") for case in TENSORS]


def _config(**values: Any) -> Make:
    return gpt2_folder(config=lambda c: c.update(values))


def _config_text(content: str) -> Make:
    return gpt2_folder(finish=lambda s: (s / "config.json").write_text(content))


CONFIGS = [
    Case("no config.json", gpt2_folder(finish=lambda s: (s / "config.json").unlink()), (r"config\.json",)),
    Case("config.json is empty", _config_text(""), ()),
    Case("config.json is no JSON", _config_text("{'n_layer': 2}"), ()),
    Case("config.json is a list", _config_text("[2]"), ()),
    Case("config.json nested 100 000 deep", _config_text("[" * 100_000), ()),
    Case("another architecture", _config(model_type="mistral"), ("mistral", "gpt2")),
    Case("no n_head", gpt2_folder(config=lambda c: c.pop("n_head")), ("n_head",)),
    Case("n_head that does not divide", _config(n_head=3), ("n_head", "3")),
    Case("n_head of 0", _config(n_head=0), ("n_head", "0")),
    Case("n_layer of 10^9", _config(n_layer=10**9), ("n_layer|layers", "1000000000"), file="gpt2"),
    Case(
        "n_embd of 10^400",
        _config_text(json.dumps(gpt2_config()).replace('"n_embd": 8', f'"n_embd": {10**400}')),
        (r"n_embd|wte\.weight",),
        file="gpt2",
    ),
    Case(
        "a number of 10 000 digits",
        _config_text(json.dumps(gpt2_config()).replace('"n_embd": 8', '"n_embd": ' + "9" * 10_000)),
        (),
    ),
    Case("a negative vocabulary", _config(vocab_size=-65), ("vocab_size", "-65")),
    Case("a vocabulary of 0", _config(vocab_size=0), (r"vocab_size|wte\.weight",), file="gpt2"),
    Case("n_layer as text", _config(n_layer="two"), ("n_layer", "two")),
    Case("n_embd as a fraction", _config(n_embd=8.5), ("n_embd", r"8\.5")),
    Case("n_layer as a truth value", _config(n_layer=True), ("n_layer", "true")),
    Case("a feed-forward width of its own", _config(n_inner=17), ("n_inner", "17")),
    Case("another activation", _config(activation_function="relu"), ("activation_function", "relu")),
    Case("scaling by layer", _config(scale_attn_by_inverse_layer_idx=True), ("scale_attn_by_inverse_layer_idx",)),
    Case("attention without scaling", _config(scale_attn_weights=False), ("scale_attn_weights",)),
    Case("cross attention", _config(add_cross_attention=True), ("add_cross_attention",)),
    Case("epsilon of NaN", _config(layer_norm_epsilon=float("nan")), ("layer_norm_epsilon|norm_eps", "nan")),
    Case("a negative epsilon", _config(layer_norm_epsilon=-1e-5), ("layer_norm_epsilon|norm_eps", "-1e-05")),
    Case("a list of activations", _config(activation_function=["gelu"]), ("activation_function",)),
    Case("n_embd of null", _config(n_embd=None), ("n_embd",)),
    Case("n_embd as an object", _config(n_embd={"size": 8}), ("n_embd",)),
    Case("tying as text", _config(tie_word_embeddings="yes"), ("tie",)),
]
CONFIGS = [Case(f"config: {case.name}", case.make, case.says, file=case.file or "config.json") for case in CONFIGS]


def _index(change: Callable[[dict[str, Any]], Any]) -> Make:
    return gpt2_shards(lambda _, index: change(index))


def _points_to(target: str) -> Make:
    return _index(lambda index: index["weight_map"].update({WTE: target}))


def _outside(target: Callable[[Path], str]) -> Make:
    """A shard outside the folder that would do: it holds what the index says."""

    def edit(source: Path, index: dict[str, Any]) -> None:
        name = next(iter(index["weight_map"]))
        (source.parent / "elsewhere").mkdir()
        save_file({name: np.zeros((24,), np.float32)}, source.parent / "elsewhere" / "x.safetensors")
        index["weight_map"][name] = target(source)

    return gpt2_shards(edit)


def _shard(change: Callable[[Path], Any]) -> Make:
    return gpt2_shards(lambda source, _: change(source / SHARD))


def _replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


INSIDE = "beside|inside|outside"
SHARDS = [
    Case("a shard that is missing", _shard(Path.unlink), (), file=SHARD),
    Case("a shard that is cut", _shard(lambda p: p.write_bytes(p.read_bytes()[:-40])), (), file=SHARD),
    Case("a shard that is a folder", _shard(_replace_by_folder), (), file=SHARD),
    Case("a shard that leads elsewhere", _shard(_replace_by_link), (), file=SHARD),
    Case("a shard that is a pipe", _shard(_fifo), (), file=SHARD),
    Case("a shard without its tensor", _points_to(SHARD.replace("2-of", "1-of")), (r"wte|h\.",), file=None),
    Case("a shard up the path", _outside(lambda s: "../elsewhere/x.safetensors"), ("elsewhere", INSIDE), file=INDEX),
    Case(
        "a shard at an absolute path",
        _outside(lambda s: str(s.parent / "elsewhere/x.safetensors")),
        (r"transformer\.", INSIDE),
        file=INDEX,
    ),
    Case("a shard called like the index", _points_to(INDEX), (), file=INDEX),
    Case(
        "a shard with a number for a name",
        _index(lambda i: i["weight_map"].update({WTE: 1})),
        ("wte",),
        file=INDEX,
    ),
    Case("a shard with no name", _points_to(""), (), file=INDEX),
    Case("a name with a zero byte", _points_to("model\0.safetensors"), (), file=INDEX),
    Case("no weight_map", _index(lambda i: i.pop("weight_map")), ("weight_map",), file=INDEX),
    Case("weight_map is a list", _index(lambda i: i.update(weight_map=[WTE])), ("weight_map",), file=INDEX),
    Case("a tensor the index leaves out", _index(lambda i: i["weight_map"].pop(WTE)), (r"wte\.weight",), file=None),
    Case(
        "a tensor no shard holds",
        _index(lambda i: i["weight_map"].update({"transformer.h.0.x": SHARD})),
        (r"transformer\.h\.0\.x",),
        file=None,
    ),
]
SHARDS = [Case(f"shards: {case.name}", case.make, case.says, file=case.file or "gpt2") for case in SHARDS]

FOLDERS = [
    Case("no weights at all", gpt2_folder(finish=lambda s: (s / FILE).unlink()), ("safetensors|weights",), file="gpt2"),
    Case("weights that are a pipe", gpt2_folder(finish=lambda s: _fifo(s / FILE)), (), file=FILE),
    Case("weights that lead nowhere", _linked("nowhere.safetensors"), (), file=FILE),
    Case("weights that lead to themselves", _linked(FILE), (), file=FILE),
    Case("weights that are endless", _linked("/dev/zero"), (), file=FILE),
    Case(
        "weights that are a folder",
        gpt2_folder(finish=lambda s: _replace_by_folder(s / FILE)),
        (),
        file=FILE,
    ),
]
