"""GELU of our own on a CPU: as near to the definition as MLX's, in value and slope, and what is kept for it."""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_gpt.cpu import gelu

X = np.linspace(-12, 12, 48_001).astype(np.float32)
WIDE = X.astype(np.float64)
BELOW = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in WIDE])  # the share of a normal distribution below x
VALUE = WIDE * BELOW
SLOPE = BELOW + WIDE * np.exp(-(WIDE**2) / 2) / math.sqrt(2 * math.pi)
Activation = Callable[[mx.array], mx.array]


def farthest(found: mx.array, right: np.ndarray) -> float:
    return float(np.abs(np.array(found).astype(np.float64) - right).max())


def slopes(activation: Activation) -> Activation:
    return mx.grad(lambda x: activation(x).sum())


def test_value_and_slope_are_as_near_to_the_definition_as_mlx_s_own() -> None:
    x = mx.array(X)
    assert farthest(gelu(x), VALUE) <= farthest(nn.gelu(x), VALUE) < 1e-6
    # What the fit leaves, and roundings of numbers near 1, 6e-8 each; MLX's has the half of these.
    assert farthest(slopes(gelu)(x), SLOPE) <= 9e-8 + 4 * 2.0**-24


@pytest.mark.parametrize("wrapped", [mx.compile, mx.checkpoint], ids=["compiled", "checkpointed"])
def test_it_is_the_same_compiled_and_checkpointed(wrapped: Callable[[Activation], Activation]) -> None:
    x = mx.array(X)
    # A compiler may join a product and a sum, which are rounded once then and not twice.
    assert farthest(wrapped(gelu)(x), np.array(gelu(x))) <= 5e-7
    assert farthest(slopes(wrapped(gelu))(x), np.array(slopes(gelu)(x))) <= 5e-7


def test_other_dtypes_keep_theirs_and_float64_is_mlx_s() -> None:
    half = mx.array(X).astype(mx.bfloat16)
    assert gelu(half).dtype == slopes(gelu)(half).dtype == mx.bfloat16
    rounded = np.array(half.astype(mx.float32)).astype(np.float64)
    right = np.array([x * 0.5 * math.erfc(-x / math.sqrt(2)) for x in rounded])
    found = np.array(gelu(half).astype(mx.float32))
    assert np.abs(found - right).max() <= 2.0**-9 * 12  # half a unit in the last of eight places
    wide = mx.array(WIDE[::100], mx.float64)
    assert mx.array_equal(gelu(wide), nn.gelu(wide)).item()


def test_what_is_not_a_number_stays_so_and_far_away_nothing_is_left() -> None:
    for strange in (math.nan, math.inf, -math.inf):
        assert not mx.isfinite(gelu(mx.array([strange]))).item() or strange == -math.inf
    far = mx.array([-1e30, -1e4, 1e4, 1e30])
    assert gelu(far).tolist() == [0.0, 0.0, 1e4, mx.array(1e30).item()]
    assert slopes(gelu)(far).tolist() == pytest.approx([0, 0, 1, 1], abs=3e-7)


def test_a_gradient_keeps_nothing_but_the_input() -> None:
    def peak(layers: int) -> int:
        def chain(x: mx.array) -> mx.array:
            for _ in range(layers):
                x = gelu(x)
            return x.sum()

        mx.reset_peak_memory()
        mx.eval(mx.grad(chain)(x))
        return mx.get_peak_memory()

    x = mx.random.normal((1 << 18,))
    mx.eval(x)
    # Of twenty operations each, autograd would keep a dozen results; the result of one layer is the input of the next.
    assert peak(24) - peak(8) <= 16 * 1.1 * x.nbytes
