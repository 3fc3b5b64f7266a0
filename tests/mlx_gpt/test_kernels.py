"""GELU, softmax, loss and attention of our own on a CPU: as near to the definition as MLX's, in value and slope."""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from gpt_common.network.activations import LONG_SUM, sum_parts
from mlx_gpt.kernels import SUM_PARTS, attention_by_rows, cross_entropy, gelu, softmax

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


def test_softmax_is_as_near_to_the_definition_as_mlx_s_own() -> None:
    rows = np.random.default_rng(0).normal(0, 1, (300, 64)).astype(np.float32) * np.linspace(0.1, 30, 300)[:, None]
    x = mx.array(rows.astype(np.float32))
    powers = np.exp(np.array(x).astype(np.float64) - np.array(x).max(-1, keepdims=True))
    right = powers / powers.sum(-1, keepdims=True)
    assert farthest(softmax(x), right) <= max(2.0**-23, 1.5 * farthest(mx.softmax(x, axis=-1), right))
    pull = mx.array(np.random.default_rng(1).normal(0, 1, rows.shape).astype(np.float32))
    given = np.array(pull).astype(np.float64)
    slope = right * (given - (given * right).sum(-1, keepdims=True))
    ours, theirs = (mx.grad(lambda x, f=f: (f(x) * pull).sum())(x) for f in (softmax, lambda x: mx.softmax(x, axis=-1)))
    assert farthest(ours, slope) <= 1.5 * farthest(theirs, slope) < 2e-6


def test_softmax_of_what_is_masked_is_nothing_at_all_and_of_no_number_none() -> None:
    found = softmax(mx.array([[0.0, -math.inf, 1.0], [-200.0, 0.0, -100.0], [3e38, -3e38, 0.0]]))
    assert found[0, 1].item() == found[1, 0].item() == found[1, 2].item() == 0.0
    assert found.sum(axis=-1).tolist() == pytest.approx([1, 1, 1], abs=1e-7)
    for strange in ([math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf]):
        assert mx.isnan(softmax(mx.array(strange))).all().item()


def losses_of(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cross entropy and its gradient, in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    sums = powers.sum(-1, keepdims=True)
    slope = powers / sums
    rows = np.arange(len(labels))
    found = np.log(sums[:, 0]) + logits.max(-1) - logits[rows, labels].astype(np.float64)
    slope[rows, labels] -= 1
    return found, slope


@pytest.mark.parametrize("size", [65, LONG_SUM, 49_152, 50_257, 49_154, 49_157, 151_936])
def test_a_loss_over_a_large_vocabulary_is_the_sum_of_all_of_it(size: int) -> None:
    """As of a trained model: few likely tokens, and beside them very many that add up to something."""
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 3, (16, size)).astype(np.float32)
    logits[:, 0] += 12
    labels = draw.integers(0, size, 16).astype(np.int32)
    right, slope = losses_of(logits, labels)
    x, y = mx.array(logits), mx.array(labels)
    assert farthest(cross_entropy(x, y), right) <= 1e-5
    found = np.array(mx.grad(lambda x: cross_entropy(x, y).sum())(x)).astype(np.float64)
    assert np.linalg.norm(found - slope) / np.linalg.norm(slope) <= 5e-6  # half of what rung L5 allows
    # None of the ways to divide it up leaves out an end or counts what fills it up.
    assert found.sum(-1) == pytest.approx(np.zeros(16), abs=1e-5)
    if size > 10 * LONG_SUM:
        assert farthest(nn.losses.cross_entropy(x, y), right) > 3e-5, "MLX's own would do, and ours can go"


def test_parts_are_equal_or_filled_up() -> None:
    sizes = (65, LONG_SUM, 49_152, 50_257, 49_154, 49_157)
    assert [sum_parts(size) for size in sizes] == [1, 1, 192, 29, None, None]
    assert all(size % SUM_PARTS for size in (49_154, 49_157)), "of both the filling counts"


@pytest.mark.parametrize(
    "shape", [(2, 4, 4, 128, 16, 16), (2, 4, 2, 100, 16, 8), (1, 2, 1, 2, 8, 8), (3, 6, 3, 33, 8, 8)], ids=str
)
def test_attention_by_rows_is_mlx_s(shape: tuple[int, ...]) -> None:
    B, H, G, T, K, V = shape
    draw = np.random.default_rng(0)
    q, k, v = (
        mx.array(draw.normal(0, 1, (B, heads, T, n)).astype(np.float32)) for heads, n in ((H, K), (G, K), (G, V))
    )

    def whole(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask="causal")

    def by_rows(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return attention_by_rows(q, k, v, 0.3)

    assert farthest(by_rows(q, k, v), np.array(whole(q, k, v))) <= 5e-7  # means of numbers about 1
    slopes = [mx.grad(lambda *x, f=f: f(*x).square().sum(), argnums=(0, 1, 2))(q, k, v) for f in (by_rows, whole)]
    for ours, theirs in zip(*slopes, strict=True):
        assert farthest(ours, np.array(theirs)) <= 2e-6 * float(mx.abs(theirs).max())
