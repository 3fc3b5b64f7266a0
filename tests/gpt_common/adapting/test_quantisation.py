"""MLX's affine layout in numpy: bit for bit what `mx.quantize` makes, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_common.adapting import quantisation
from gpt_common.adapting.quantisation import (
    BITS,
    GROUP_SIZES,
    Grid,
    bits_per_weight,
    grids_of,
    packed,
    quantisable,
    quantised,
    rounded_to,
    stored_shapes,
    unpacked,
)
from gpt_common.config import load_preset
from gpt_common.network.parameters import parameter_shapes

DTYPES = ("float32", "bfloat16", "float16")
grids = pytest.mark.parametrize("grid", [Grid(bits, size) for bits in BITS for size in GROUP_SIZES], ids=str)
KINDS = ("normal", "positive", "negative", "zeros", "constant", "denormal", "one sign by rows", "steps", "huge")


def values(kind: str, shape: tuple[int, ...], seed: int = 0) -> npt.NDArray[np.float32]:
    draw: npt.NDArray[np.float32] = np.random.default_rng(seed).standard_normal(shape, np.float32)
    match kind:
        case "positive" | "negative":
            return np.abs(draw) * np.float32(1 if kind == "positive" else -1)
        case "zeros" | "constant":
            return np.full(shape, 0.0 if kind == "zeros" else -0.7, np.float32)
        case "denormal":
            return draw * np.float32(1e-40)
        case "one sign by rows":
            signs = np.where(np.arange(shape[0]) % 2, 1, -1).astype(np.float32)
            return np.asarray(np.abs(draw) * signs[:, None], np.float32)
        case "steps":  # ties: halves of a step
            return np.asarray(np.round(draw * 2).astype(np.float32) / 2, np.float32)
        case "huge":
            return draw * np.float32(1e30)
        case _:
            return draw


def by_mlx(matrix: npt.NDArray[np.float32], grid: Grid, dtype: str) -> tuple[npt.NDArray[Any], ...]:
    import mlx.core as mx

    found = mx.quantize(mx.array(matrix).astype(getattr(mx, dtype)), group_size=grid.group_size, bits=grid.bits)
    words, scales, biases = found
    return np.array(words), np.array(scales.astype(mx.float32)), np.array(biases.astype(mx.float32))


def same_as_mlx(matrix: npt.NDArray[np.float32], grid: Grid, dtype: str) -> bool:
    ours = quantised(matrix, grid, dtype)
    mine = (ours.words_XW, ours.scales_XG, ours.biases_XG)
    return all(np.array_equal(a, b) for a, b in zip(mine, by_mlx(matrix, grid, dtype), strict=True))


@grids
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_are_those_of_mlx(grid: Grid, dtype: str) -> None:
    for kind in KINDS:
        if kind != "huge" or dtype != "float16":
            matrix = rounded_to(dtype, values(kind, (6, 256)))
            assert same_as_mlx(matrix, grid, dtype), kind


@settings(max_examples=150, deadline=None)
@given(
    bits=st.sampled_from(BITS),
    group=st.sampled_from(GROUP_SIZES),
    groups=st.integers(1, 4),
    rows=st.integers(1, 5),
    kind=st.sampled_from(KINDS[:-1]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
    scale=st.floats(1e-6, 1e4),
)
def test_bits_are_those_of_mlx_whatever_the_matrix(
    bits: int, group: int, groups: int, rows: int, kind: str, dtype: str, seed: int, scale: float
) -> None:
    matrix = rounded_to(dtype, values(kind, (rows, group * groups), seed) * np.float32(scale))
    if np.isfinite(matrix).all():
        assert same_as_mlx(matrix, Grid(bits, group), dtype)


@grids
def test_numbers_are_those_of_mlx(grid: Grid) -> None:
    import mlx.core as mx

    ours = quantised(values("normal", (2, 5, 256)), grid)
    theirs = mx.dequantize(
        mx.array(ours.words_XW), mx.array(ours.scales_XG), mx.array(ours.biases_XG), grid.group_size, grid.bits
    )
    assert np.array_equal(ours.dequantised(), np.array(theirs))


@grids
def test_numbers_are_those_of_torch(grid: Grid) -> None:
    import torch

    from torch_gpt.kernels import dequantised

    ours = quantised(values("normal", (2, 5, 256)), grid)
    words = torch.from_numpy(ours.words_XW).view(torch.int32)
    scales, biases = torch.from_numpy(ours.scales_XG), torch.from_numpy(ours.biases_XG)
    assert np.array_equal(ours.dequantised(), dequantised(words, scales, biases, grid).numpy())
    tuned = dequantised(words, scales.requires_grad_(), biases, grid)
    assert np.array_equal(ours.dequantised(), tuned.detach().numpy()), "where scales have a gradient"


@pytest.mark.parametrize("bits", BITS)
def test_packing_goes_back_and_forth(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 5, 96), dtype=np.uint8)
    words = packed(codes, bits)
    assert words.shape == (3, 5, 96 * bits // 32)
    assert np.array_equal(unpacked(words, bits), codes)


def test_a_large_matrix_is_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = values("normal", (64, 128))
    whole = quantised(matrix, Grid(3, 64))
    monkeypatch.setattr(quantisation, "ROWS_AT_ONCE", 512)
    parts = quantised(matrix, Grid(3, 64))
    assert np.array_equal(whole.words_XW, parts.words_XW)
    assert np.array_equal(whole.dequantised(), parts.dequantised())


MUTANTS = {
    "nibble order": ("packed", lambda right: lambda codes, bits: right(codes[..., ::-1].copy(), bits)),
    "sign of the scale": ("scales_and_biases", lambda right: lambda w, grid: (-right(w, grid)[0], right(w, grid)[1])),
    "codes by the rounded scale": (
        "scales_and_biases",
        lambda right: lambda w, grid: tuple(rounded_to("bfloat16", part) for part in right(w, grid)),
    ),
    "groups along the wrong axis": (
        "scales_and_biases",
        lambda right: lambda w, grid: right(np.swapaxes(w, -1, -2).reshape(w.shape), grid),
    ),
    "halves rounded up": (
        "codes_of",
        lambda _: lambda v, s, b, grid: np.clip(np.floor((v - b) / s + 0.5), 0, grid.largest).astype(np.uint8),
    ),
    "no edge on a code": ("scales_and_biases", lambda _: _from_least),
}


def _from_least(groups: npt.NDArray[np.float32], grid: Grid) -> Any:
    least = groups.min(axis=-1)
    return (groups.max(axis=-1) - least) / np.float32(grid.largest), least


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_layout_is_not_mlx_s(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, wrong = MUTANTS[name]
    monkeypatch.setattr(quantisation, function, wrong(getattr(quantisation, function)))
    with np.errstate(all="ignore"):
        same = [same_as_mlx(rounded_to("bfloat16", values(k, (6, 256))), Grid(4, 32), "bfloat16") for k in KINDS[:-1]]
    assert not all(same)


def test_a_file_says_by_its_shapes_what_is_quantised() -> None:
    shapes = parameter_shapes(load_preset("llama-tiny").with_vocabulary(64).model)
    chosen = {layer: Grid(BITS[i % len(BITS)], GROUP_SIZES[i % 2]) for i, layer in enumerate(quantisable(shapes))}
    stored = stored_shapes(shapes, chosen)
    assert grids_of(stored, shapes) == chosen
    assert 2 < bits_per_weight(shapes, chosen) < 8 + 64 / 32
    layer = next(iter(chosen))
    with pytest.raises(ValueError, match=f"{layer} has words"):
        grids_of(stored | {f"{layer}.scales": (*shapes[f"{layer}.weight"][:-1], 3)}, shapes)
    with pytest.raises(ValueError, match=f"{layer} has words"):
        grids_of({name: shape for name, shape in stored.items() if name != f"{layer}.biases"}, shapes)


def test_routers_and_positions_stay_float() -> None:
    shapes = parameter_shapes(load_preset("deepseek-tiny").with_vocabulary(64).model)
    left = {name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) > 1} - set(quantisable(shapes))
    assert left
    assert all(name.endswith(".router") for name in left)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
def test_rounding_keeps_the_shape(dtype: str, shape: tuple[int, ...]) -> None:
    found = rounded_to(dtype, np.full(shape, 0.1, np.float32))
    assert found.shape == shape
    assert found.dtype == np.float32
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T + np.float32(0.1)
    assert np.array_equal(rounded_to(dtype, turned), rounded_to(dtype, turned.copy()))
