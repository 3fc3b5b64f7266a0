"""GELU, softmax, loss and attention of our own on a CPU: as near to the definition as MLX's, in value and slope."""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from gpt_common.network.activations import PIECE, loss_numbers
from mlx_gpt.kernels import attention_by_rows, cross_entropy, gelu, silu, softmax

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


SHARE = 1 / (1 + np.exp(-WIDE))  # the logistic function


def test_silu_is_near_to_its_definition() -> None:
    x = mx.array(X)
    # Of the share three roundings, 6e-8 each, times 12, and one of the product.
    assert farthest(silu(x), WIDE * SHARE) <= (3 * 12 + 8) * 2.0**-24
    for wrapped in (silu, mx.compile(silu), mx.checkpoint(silu)):
        assert farthest(slopes(wrapped)(x), SHARE * (1 + WIDE * (1 - SHARE))) <= (3 + 2 * 12) * 2.0**-24
    far = mx.array([-1e30, -1e4, -88.0, 88.0, 1e4])
    assert silu(far).tolist() == pytest.approx([0, 0, 0, 88, 1e4], abs=1e-7)
    assert slopes(silu)(far).tolist() == pytest.approx([0, 0, 0, 1, 1], abs=1e-7)
    assert mx.isnan(silu(mx.array([math.nan]))).item()
    wide = mx.array(WIDE[::100], mx.float64)
    assert mx.array_equal(silu(wide), nn.silu(wide)).item()


def losses_of(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cross entropy and its gradient, in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    sums = powers.sum(-1, keepdims=True)
    slope = powers / sums
    rows = np.arange(len(labels))
    found = np.log(sums[:, 0]) + logits.max(-1) - logits[rows, labels].astype(np.float64)
    slope[rows, labels] -= 1
    return found, slope


@pytest.mark.parametrize("V", [5, 504, 32_766, 49_152, 50_257, PIECE + 1])
def test_a_loss_is_the_sum_of_all_the_vocabulary(V: int) -> None:
    """As of a trained model: few likely tokens, and beside them very many that add up to something."""
    draw = np.random.default_rng(V)
    logits = draw.normal(0, 3, (16, V)).astype(np.float32)
    logits[:, 0] += 12
    labels, pull = draw.integers(0, V, 16), draw.normal(0, 1, 16).astype(np.float32)
    right, slope = losses_of(logits, labels)
    slope *= pull[:, None]
    x, y, weights = mx.array(logits).reshape(2, 8, V), mx.array(labels).reshape(2, 8), mx.array(pull).reshape(2, 8)
    for wrapped in (lambda f: f, mx.compile, mx.checkpoint):
        nats = wrapped(cross_entropy)(x, y)
        assert nats.shape == (2, 8)
        assert farthest(nats.flatten(), right) <= 1e-5
        pulled = mx.grad(wrapped(lambda x: (cross_entropy(x, y) * weights).sum()))(x)
        found = np.array(pulled).astype(np.float64).reshape(16, V)
        assert np.linalg.norm(found - slope) / np.linalg.norm(slope) <= 5e-6  # half of what rung L5 allows
        assert found.sum(-1) == pytest.approx(np.zeros(16), abs=1e-5)
    if V > 100_000:
        assert farthest(nn.losses.cross_entropy(x, y).flatten(), right) > 3e-5, "MLX's own would do, and ours can go"


def test_what_costs_nothing_or_no_number_stays_so() -> None:
    logits = mx.array([[100.0, -100.0, 0.0], [3e38, -3e38, 0.0], [math.nan, 0.0, 1.0]])
    nats = cross_entropy(logits, mx.array([0, 0, 0]))
    assert nats[:2].tolist() == [0, 0]
    assert mx.isnan(nats[2]).item()
    assert mx.isnan(mx.grad(lambda x: cross_entropy(x, mx.array([0, 0, 0])).sum())(logits)[2]).all().item()


@pytest.mark.parametrize(("tokens", "V"), [(512, 65), (512, 1000), (64, 50_257)])
def test_the_loss_takes_the_memory_that_is_planned(tokens: int, V: int) -> None:
    x, y = mx.random.normal((tokens, V)), mx.zeros(tokens, mx.int32)
    mx.eval(x, y)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(mx.value_and_grad(lambda x: cross_entropy(x * 1.0, y).mean())(x))
    taken = mx.get_peak_memory() - before
    planned = 4 * loss_numbers(tokens, V)
    assert taken <= 1.1 * planned
    # Of a few pieces more or fewer are there at once from run to run; of many that is little.
    assert taken >= (0.8 if V > 1000 else 0.3) * planned
