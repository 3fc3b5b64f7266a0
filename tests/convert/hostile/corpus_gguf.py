"""GGUF files whose header lies: counts, lengths, types, offsets, alignment, tokens. Written number by number."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.convert.hostile.corpus import Case, Make

FILE = "x.gguf"
U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10
TOKENS = ["<|endoftext|>", *"abcdefg"]
V, D, F, T = len(TOKENS), 32, 32, 16


def text(value: str | bytes) -> bytes:
    """A string as GGUF has it."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def strings(values: list[str]) -> bytes:
    """An array of strings, without the type of the setting."""
    return struct.pack("<IQ", STRING, len(values)) + b"".join(map(text, values))


def numbers(values: list[int]) -> bytes:
    """An array of whole numbers."""
    return struct.pack(f"<IQ{len(values)}i", 5, len(values), *values)


@dataclass
class Tensor:
    """What a header says of a tensor."""

    name: str | bytes
    sizes: list[int]
    kind: int
    offset: int
    dimensions: int | None = None


@dataclass
class Draft:
    """A file before its bytes are put together."""

    settings: dict[str | bytes, tuple[int, bytes]]
    tensors: list[Tensor]
    data: bytes
    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None
    n_settings: int | None = None
    more: list[bytes] = field(default_factory=list)
    """Settings behind the others."""

    def header(self) -> bytes:
        """Everything before the tensors, without padding."""
        counts = (
            len(self.tensors) if self.n_tensors is None else self.n_tensors,
            len(self.settings) + len(self.more) if self.n_settings is None else self.n_settings,
        )
        parts = [self.magic, struct.pack("<IQQ", self.version, *counts)]
        parts += [text(key) + struct.pack("<I", form) + value for key, (form, value) in self.settings.items()]
        parts += self.more
        for each in self.tensors:
            dimensions = len(each.sizes) if each.dimensions is None else each.dimensions
            parts += [text(each.name), struct.pack(f"<I{len(each.sizes)}Q", dimensions, *each.sizes)]
            parts.append(struct.pack("<IQ", each.kind, each.offset))
        return b"".join(parts)

    def tensor(self, name: str) -> Tensor:
        """What the header says of one."""
        return next(each for each in self.tensors if each.name == name)


def draft() -> Draft:
    """A Llama of one block, whose feed-forward layer is in blocks of 8 bits."""
    shapes = {
        "token_embd": (V, D), "blk.0.attn_norm": (D,), "blk.0.attn_q": (D, D), "blk.0.attn_k": (D, D),
        "blk.0.attn_v": (D, D), "blk.0.attn_output": (D, D), "blk.0.ffn_norm": (D,), "blk.0.ffn_gate": (F, D),
        "blk.0.ffn_up": (F, D), "blk.0.ffn_down": (D, F), "output_norm": (D,),
    }  # fmt: skip
    made, data = [], b""
    noise = np.random.default_rng(4)
    for name, shape in shapes.items():
        packed = name.startswith("blk.0.ffn_") and len(shape) == 2
        made.append(Tensor(f"{name}.weight", list(shape[::-1]), 8 if packed else 0, len(data)))
        if packed:
            block = np.float16(0.01).tobytes() + bytes(range(32))
            data += block * shape[0]
        else:
            data += noise.standard_normal(shape, np.float32).tobytes()
        data += bytes(-len(data) % 32)
    u32, f32 = (lambda n: (U32, struct.pack("<I", n))), (lambda x: (F32, struct.pack("<f", x)))
    settings: dict[str | bytes, tuple[int, bytes]] = {
        "general.architecture": (STRING, text("llama")),
        "llama.vocab_size": u32(V),
        "llama.context_length": u32(T),
        "llama.embedding_length": u32(D),
        "llama.block_count": u32(1),
        "llama.feed_forward_length": u32(F),
        "llama.attention.head_count": u32(2),
        "llama.attention.head_count_kv": u32(2),
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
        "llama.rope.freq_base": f32(1e4),
        "tokenizer.ggml.model": (STRING, text("gpt2")),
        "tokenizer.ggml.pre": (STRING, text("gpt-2")),
        "tokenizer.ggml.tokens": (ARRAY, strings([*TOKENS[:-1], "ab"])),
        "tokenizer.ggml.token_type": (ARRAY, numbers([3] + [1] * (V - 1))),
        "tokenizer.ggml.merges": (ARRAY, strings(["a b"])),
        "tokenizer.ggml.eos_token_id": u32(0),
    }
    return Draft(settings, made, data)


def gguf(edit: Callable[[Draft], object] | None = None, end: Callable[[bytes], bytes] | None = None) -> Make:
    """The file, its draft edited in place, then its bytes changed by `end`."""

    def make(folder: Path) -> Path:
        made = draft()
        if edit:
            edit(made)
        header = made.header()
        whole = header + bytes(-len(header) % 32) + made.data
        (folder / FILE).write_bytes(end(whole) if end else whole)
        return folder / FILE

    return make


def _case(name: str, says: str, edit: Callable[[Draft], object]) -> Case:
    return Case(f"gguf: {name}", gguf(edit), tuple(says.split(" & ")), command="import")


def _set(key: str, form: int, value: bytes) -> Callable[[Draft], object]:
    return lambda d: d.settings.update({key: (form, value)})


def _u32(key: str, value: int) -> Callable[[Draft], object]:
    return _set(key, U32, struct.pack("<I", value))


def _tensor(called: str, /, **values: object) -> Callable[[Draft], object]:
    def edit(made: Draft) -> None:
        for key, value in values.items():
            setattr(made.tensor(called), key, value)

    return edit


def _more(*entries: bytes) -> Callable[[Draft], object]:
    return lambda d: d.more.extend(entries)


def _cut(share: float) -> Case:
    whole = gguf(end=lambda data: data[: int(len(data) * share)])
    return Case(f"gguf: cut off at {share:.0%}", whole, ("not a valid GGUF",), command="import")


def _endless(folder: Path) -> Path:
    """An array of 2^30 numbers, which the file has, in zeros that take no room on the disk."""
    made = draft()
    made.settings["general.more"] = (ARRAY, struct.pack("<IQ", 0, 1 << 30))
    head = made.header()
    (folder / FILE).write_bytes(head[: head.index(struct.pack("<IQ", 0, 1 << 30)) + 12])
    os.truncate(folder / FILE, (1 << 30) + 4096)
    return folder / FILE


def _bomb(folder: Path) -> Path:
    """Strings of no letters: eight bytes each in the file, more in memory."""
    made = draft()
    made.settings["general.tags"] = (ARRAY, struct.pack("<IQ", STRING, 1 << 22))
    (folder / FILE).write_bytes(made.header())
    os.truncate(folder / FILE, 1 << 26)
    return folder / FILE


def _poisoned(made: Draft) -> None:
    place = made.tensor("blk.0.ffn_up.weight").offset
    made.data = made.data[:place] + np.float16(np.nan).tobytes() + made.data[place + 2 :]


def _empty_array(key: str) -> bytes:
    return text(key) + struct.pack("<IIQ", ARRAY, ARRAY, 1)


def _more_tokens(made: Draft) -> None:
    _set("tokenizer.ggml.tokens", ARRAY, strings([*"abcdefghi", "ab"]))(made)
    _set("tokenizer.ggml.token_type", ARRAY, numbers([1] * 10))(made)


LONG = 1 << 62
EPSILON = "llama.attention.layer_norm_rms_epsilon"
SOUND_GGUF: dict[str, tuple[str, Make]] = {"gguf": ("import", gguf())}
GGUF = [
    # The first numbers.
    Case("gguf: big-endian", gguf(end=lambda b: b[:4] + b[4:8][::-1] + b[8:]), ("big-endian",), command="import"),
    _case("version 1", "version 1", lambda d: setattr(d, "version", 1)),
    _case("version 2^32 - 1", "version 4294967295", lambda d: setattr(d, "version", (1 << 32) - 1)),
    _case("2^62 tensors", "4,611,686,018,427,387,904 tensors", lambda d: setattr(d, "n_tensors", LONG)),
    _case("2^62 settings", "settings", lambda d: setattr(d, "n_settings", LONG)),
    _case("more tensors than it has room for", "left|claims", lambda d: setattr(d, "n_tensors", 60_000)),
    _case("one setting more than it has", "not a valid GGUF", lambda d: setattr(d, "n_settings", len(d.settings) + 1)),
    _case("one setting fewer", "not a valid GGUF", lambda d: setattr(d, "n_settings", len(d.settings) - 1)),
    _case("no tensors at all", "no tensors|missing", lambda d: vars(d).update(tensors=[], data=b"")),
    *map(_cut, (0.0008, 0.02, 0.05, 0.5, 0.98)),
    # Settings.
    _case("a key of 2^62 bytes", "key & bytes", _more(struct.pack("<Q", LONG) + b"k")),
    _case("a key that is no UTF-8", "UTF-8", _more(text(b"\xff\xfe") + struct.pack("<II", U32, 1))),
    _case("a key of two lines", "no name", _more(text("a\nb") + struct.pack("<II", U32, 1))),
    _case("a key twice", "llama.block_count & twice", _more(text("llama.block_count") + struct.pack("<II", U32, 1))),
    _case("a type that there is not", "type 13", _more(text("k") + struct.pack("<IQ", 13, 1))),
    _case("true is 2", "neither true nor false", _more(text("k") + struct.pack("<IB", BOOL, 2))),
    _case("a string of 2^64 - 1 bytes", "bytes", _more(text("k") + struct.pack("<IQ", STRING, (1 << 64) - 1))),
    _case("a string longer than the file", "bytes", _more(text("k") + struct.pack("<IQ", STRING, 900_000))),
    _case("an array of 2^62 strings", "strings", _more(text("k") + struct.pack("<IIQ", ARRAY, STRING, LONG))),
    _case("an array of 2^61 numbers", "numbers", _more(text("k") + struct.pack("<IIQ", ARRAY, U64, 1 << 61))),
    _case("an array of a type that there is not", "type 77", _more(text("k") + struct.pack("<IIQ", ARRAY, 77, 1))),
    _case("an array of arrays", "array of arrays", _more(_empty_array("k") + struct.pack("<IQI", U32, 1, 7))),
    _case(
        "arrays 100 000 deep", "array of arrays", _more(_empty_array("k") + struct.pack("<IQ", ARRAY, 1) * 100_000)
    ),
    Case("gguf: an array without end", _endless, ("numbers|header",), command="import"),
    Case("gguf: four million strings of nothing", _bomb, ("strings",), command="import"),
    # Tensors.
    _case("alignment 0", "general.alignment", _u32("general.alignment", 0)),
    _case("alignment 48", "general.alignment & 48", _u32("general.alignment", 48)),
    _case("alignment 2^31", "general.alignment", _u32("general.alignment", 1 << 31)),
    _case("alignment in words", "general.alignment", _set("general.alignment", STRING, text("32"))),
    _case("a name of 5000 bytes", "tensor & 5,000 bytes", _tensor("output_norm.weight", name="x" * 5000)),
    _case("a name that moves the cursor", "no name", _tensor("output_norm.weight", name="\x1b[2J")),
    _case("one name twice", "output_norm.weight & twice", _tensor("blk.0.ffn_norm.weight", name="output_norm.weight")),
    _case("no dimensions", "0 dimensions", _tensor("output_norm.weight", sizes=[])),
    _case("2^32 - 1 dimensions", "dimensions", _tensor("output_norm.weight", dimensions=(1 << 32) - 1)),
    _case("a size of 0", "shape & 0", _tensor("output_norm.weight", sizes=[0])),
    _case("sizes that overflow", "ends at byte|shape", _tensor("output_norm.weight", sizes=[1 << 32] * 3)),
    _case("a size of 2^63", "shape", _tensor("output_norm.weight", sizes=[1 << 63])),
    _case("a type that there is not, of a tensor", "type 99 & Q8_0", _tensor("output_norm.weight", kind=99)),
    _case("float64", "type 28", _tensor("output_norm.weight", kind=28)),
    _case("rows that no block divides", "rows of 33", _tensor("blk.0.ffn_up.weight", sizes=[33, F])),
    _case("an offset beside the grid", "multiple of 32", _tensor("output_norm.weight", offset=4)),
    _case("an offset of 2^64 - 32", "ends at byte", _tensor("output_norm.weight", offset=(1 << 64) - 32)),
    _case("one tensor on another", "on top of", _tensor("output_norm.weight", offset=0)),
    _case("a tensor behind the end", "ends at byte", _tensor("output_norm.weight", sizes=[D * 8])),
    # What it says of the model.
    _case("another architecture", "mamba & llama", _set("general.architecture", STRING, text("mamba"))),
    _case("an architecture that is a number", "architecture", _u32("general.architecture", 7)),
    _case("no architecture", "architecture", lambda d: d.settings.pop("general.architecture")),
    _case("no number of heads", "head_count", lambda d: d.settings.pop("llama.attention.head_count")),
    _case("no heads", "head_count & 0", _u32("llama.attention.head_count", 0)),
    _case("2^32 - 1 heads", "head_count", _u32("llama.attention.head_count", (1 << 32) - 1)),
    _case("2^32 - 1 layers", "block_count", _u32("llama.block_count", (1 << 32) - 1)),
    _case("two layers, of which it has one", "blk.1. & missing", _u32("llama.block_count", 2)),
    _case("layers in words", "block_count", _set("llama.block_count", STRING, text("one"))),
    _case("heads that do not divide the width", "head", _u32("llama.attention.head_count", 3)),
    _case("more key heads than heads", "head_count_kv|n_kv_head", _u32("llama.attention.head_count_kv", 64)),
    _case("layers that differ", "layer to layer", _set("llama.feed_forward_length", ARRAY, numbers([32, 64]))),
    _case("an epsilon that is no number", "epsilon", _set(EPSILON, F32, b"\0\0\xc0\x7f")),
    _case("a base of no size", "freq_base", _set("llama.rope.freq_base", F32, struct.pack("<f", -1))),
    _case("scaled wavelengths", "scaling & yarn", _set("llama.rope.scaling.type", STRING, text("yarn"))),
    _case("half of a head rotates", "dimension_count & 8", _u32("llama.rope.dimension_count", 8)),
    _case("experts in a Llama", "expert_count & 8", _u32("llama.expert_count", 8)),
    _case("another width", "token_embd & 32|64", _u32("llama.embedding_length", 64)),
    _case("queries of another shape", "attn_q", _tensor("blk.0.attn_q.weight", sizes=[D, D // 2])),
    _case("a tensor that is missing", "attn_v & missing", lambda d: d.tensors.remove(d.tensor("blk.0.attn_v.weight"))),
    _case("a tensor that is unknown", "rope_freqs", _tensor("output_norm.weight", name="rope_freqs.weight")),
    _case("a scale that is no number", "ffn_up & NaN", _poisoned),
    # What it says of its tokens.
    _case("tokens of another kind", "'llama' & tokenizer", _set("tokenizer.ggml.model", STRING, text("llama"))),
    _case("a rule that is not known", "tekken & tokenizer", _set("tokenizer.ggml.pre", STRING, text("tekken"))),
    _case("no rule", "pre & default", _set("tokenizer.ggml.pre", STRING, text("default"))),
    _case("no merges", "merges", lambda d: d.settings.pop("tokenizer.ggml.merges")),
    _case("merges that are numbers", "merges", _set("tokenizer.ggml.merges", ARRAY, numbers([1, 2]))),
    _case("a merge of three", "tokenizer", _set("tokenizer.ggml.merges", ARRAY, strings(["a b c"]))),
    _case("a merge of what is no token", "tokenizer", _set("tokenizer.ggml.merges", ARRAY, strings(["x y"]))),
    _case("a token twice", "twice", _set("tokenizer.ggml.tokens", ARRAY, strings(["a"] * V))),
    _case("types of fewer tokens", "token_type", _set("tokenizer.ggml.token_type", ARRAY, numbers([1]))),
    _case("more tokens than rows", "tokens", _more_tokens),
    _case("more tokens of its own than tokens", "mlx_torch_gpt.tokens", _u32("mlx_torch_gpt.tokens", V + 1)),
]  # fmt: skip
GREEDY_GGUF = [
    "gguf: 2^62 tensors",
    "gguf: an array of 2^62 strings",
    "gguf: an array without end",
    "gguf: four million strings of nothing",
    "gguf: arrays 100 000 deep",
    "gguf: sizes that overflow",
    "gguf: 2^32 - 1 layers",
    "gguf: 2^32 - 1 heads",
]
