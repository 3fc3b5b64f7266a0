"""Keys and values of latent attention in two tensors, as newer files have them, in one, as ours and older ones do.

llama.cpp multiplies queries by the keys' matrix, so that it attends to the latents themselves, and keeps that matrix by
head and transposed: `attn_k_b` (H, R, N) beside `attn_v_b` (H, V, R), with one key head of the latents' width.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np

from convert.storage.stacks import in_blocks, runs_of
from convert.storage.tensors import NUMPY, Rounding, Tensor, cast

KEYS = re.compile(r"(blk\.\d+\.attn_)k_b\.weight")


def joined(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file with `attn_kv_b` (H (N + V), R) in the place of both; what does not fit stays as it is."""
    found = dict(raw)
    for name, keys in raw.items():
        match = KEYS.fullmatch(name)
        values = raw.get(f"{match[1]}v_b.weight") if match else None
        if match is None or values is None or len(keys.shape) != 3 or len(values.shape) != 3:
            continue
        if (keys.shape[0], keys.shape[1]) == (values.shape[0], values.shape[2]):
            del found[name], found[f"{match[1]}v_b.weight"]
            found[f"{match[1]}kv_b.weight"] = _kv(keys, values)
    return found


def _kv(keys: Tensor, values: Tensor) -> Tensor:
    (H, R, N), V = keys.shape, values.shape[1]
    if keys.dtype != values.dtype:
        keys, values = (cast("", each, "F32", Rounding()) for each in (keys, values))
    dtype = keys.dtype

    def pieces() -> Iterator[memoryview]:
        heads = zip(runs_of(keys, R * N), runs_of(values, V * R), strict=True)
        for key, value in heads:
            turned = np.frombuffer(key, NUMPY[dtype]).reshape(R, N).T
            yield memoryview(np.ascontiguousarray(turned).tobytes())
            yield memoryview(value)

    return Tensor(dtype=dtype, shape=(H * (N + V), R), blocks=lambda: in_blocks(pieces(), dtype))
