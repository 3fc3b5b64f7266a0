"""Products, activations, softmax and loss by the fastest way that a device has. In PyTorch: torch_gpt/kernels.py.

MLX's CPU takes an exponential or an error function number by number, 20 ns each, and sums and products several at a
time, 0.5 ns: a small model's step was exponentials for the most part. So they are sums and products here, fitted by
iterated least squares with the largest error as small as it gets, and as exact as MLX's own.

Shape suffixes: X any leading dimensions, N all of them in one, M a piece of N, I inputs, O outputs, V vocabulary;
attention's as in attention.py, there N is a group of queries; of quantised matrices W words and G groups of a row, K
inputs of a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from gpt_common.adapting.quantisation import Grid
from gpt_common.network.activations import loss_rows, query_rows

# Coefficients from the lowest power on.
TAIL = (
    0.0997350514,
    0.044769261,
    0.00864558853,
    0.000908416347,
    0.000163241872,
    7.72321509e-5,
    -1.26585246e-5,
    2.6044861e-6,
)
"""Of Q(a): a / 2 / (1 + a Q(a))^8 is a Phi(-a) for a >= 0, to 8e-8, and to 1e-7 of a / 2 for small a, as a fresh
model's are (the form of Abramowitz & Stegun 1964, 7.1.28)."""
ABOVE = (0.797885204, -0.0317013809, 0.0142075807, 1.04236029e-5, 3.50167881e-5, 1.66530238e-7, 1.00631218e-10)
BELOW = (1.0, 0.293608248, 0.0406599419, 0.0034681212, 0.000188090011, 8.43305913e-6)
LARGEST = 5.8
"""x ABOVE(x^2) / BELOW(x^2) is the derivative of GELU less 0.5, to 9e-8, up to this x, and there the same as beyond."""
POWER = (1.0, 0.693147207, 0.240226512, 0.0555032721, 0.0096180256, 0.00134004322, 0.00015469732)
"""Of f, is 2^f for |f| <= 0.5, to 3e-9."""
LEAST = -87.0
"""Of what is below, the share of SiLU is 1e-38 and less; exp(-x) would be infinite from -88.7 down."""
ROUNDING = 1.5 * 2.0**23
"""What is added to a float32 between -2^22 and 2^22 leaves its nearest whole number in the low bits."""
ROUNDING_BITS = 0x4B400000
"""It as bits."""
SUM_PARTS = 64
"""In how many parts the exponentials of a vocabulary are added up."""
KERNEL_ROWS = 2
"""On a CPU, MLX's product with words is the faster one for so few rows: a plain loop, and no matrix is made."""


def linear(x_XI: mx.array, weight_OI: mx.array, bias_O: mx.array | None = None) -> mx.array:
    """`x @ weight.T + bias`, (X, I) -> (X, O)."""
    if bias_O is None:
        return x_XI @ weight_OI.T
    if bias_O.dtype == x_XI.dtype:
        return mx.addmm(bias_O, x_XI, weight_OI.T)
    # A bias in float32 has its gradient added up in float32, which in bfloat16 Metal would do in bfloat16.
    return (upcast(x_XI @ weight_OI.T) + bias_O).astype(x_XI.dtype)


def add_linear(y_XO: mx.array, x_XI: mx.array, weight_OI: mx.array, scale: float) -> mx.array:
    """`y + scale x @ weight.T`, (X, O), in one product: y is gone over once, and its gradient not at all.

    The inputs of an adapter are few, and a product whose last axis is shorter than 16 takes MKL up to nine times as
    long as the same one transposed: so the gradients are. A weight multiplied by its scale first would be kept twice.
    """
    y: Any = _adding(scale)(y_XO, x_XI, weight_OI) if is_plain(x_XI) else mx.addmm(y_XO, x_XI, weight_OI.T, alpha=scale)
    return y


def dequantised(words_XW: mx.array, scales_XG: mx.array, biases_XG: mx.array, grid: Grid) -> mx.array:
    """The matrix (X, I) that words stand for, float32."""
    scales_XG, biases_XG = scales_XG.astype(mx.float32), biases_XG.astype(mx.float32)
    return mx.dequantize(words_XW, scales_XG, biases_XG, grid.group_size, grid.bits)


def quantised_linear(
    x_XI: mx.array, words_OW: mx.array, scales_OG: mx.array, biases_OG: mx.array, grid: Grid
) -> mx.array:
    """`x @ matrix.T`, (X, I) -> (X, O)."""
    if on_cpu() and (x_XI.size > KERNEL_ROWS * x_XI.shape[-1] or x_XI.dtype != mx.float32):
        y_XO: Any = _quantised_product(grid)(x_XI, words_OW, scales_OG, biases_OG)
        return y_XO
    parts = (words_OW, scales_OG.astype(x_XI.dtype), biases_OG.astype(x_XI.dtype))
    return mx.quantized_matmul(x_XI, *parts, group_size=grid.group_size, bits=grid.bits)


def gelu(x: mx.array) -> mx.array:
    """GELU by its definition, x Phi(x) (Hendrycks & Gimpel 2016), of any shape."""
    y: Any = _gelu(x) if is_plain(x) else nn.gelu(x)  # MLX has no type for what its decorator returns
    return y


def silu(x: mx.array) -> mx.array:
    """`x / (1 + exp(-x))` (Hendrycks & Gimpel 2016, section 2), of any shape."""
    y: Any = x * cast(Any, _sigmoid)(x) if is_plain(x) else nn.silu(x)
    return y


def softmax(x: mx.array) -> mx.array:
    """Exponentials that add up to 1 over the last axis."""
    y: Any = _softmax(x) if is_plain(x) else mx.softmax(x, axis=-1)
    return y


def cross_entropy(logits_XV: mx.array, labels_X: mx.array) -> mx.array:
    """Nats (X) that each label costs, float32."""
    if on_cpu():
        # MLX adds up in the dtype of what it is given: exponentials over a vocabulary need more than bfloat16's 8 bits.
        logits_XV = upcast(logits_XV)
        if not is_plain(logits_XV):
            return nn.losses.cross_entropy(logits_XV, labels_X)
        nats_N, *_ = cast(Any, _cross_entropy)(logits_XV.flatten(0, -2), labels_X.flatten())
        return cast(mx.array, nats_N.reshape(labels_X.shape))
    # A kernel that adds up in float32 whatever it is given, and keeps no float32 copy of the logits.
    return mx.fast.cross_entropy(logits_XV, labels_X)


def upcast(x: mx.array) -> mx.array:
    """x in float32: long sums and exponentials need it. float64, in which the parity oracle computes, stays."""
    return x if x.dtype == mx.float64 else x.astype(mx.float32)


def on_cpu() -> bool:
    """Whether what is computed next is computed on a CPU."""
    return mx.default_device() == mx.Device(mx.cpu)


def is_plain(x: mx.array) -> bool:
    """Whether MLX would compute this number by number: float32 on a CPU."""
    return x.dtype == mx.float32 and on_cpu()


@lru_cache
def _quantised_product(grid: Grid) -> Callable[..., Any]:
    """A product with a matrix that is made again for the backward pass."""

    @mx.custom_function
    def product(x_XI: mx.array, words_OW: mx.array, scales_OG: mx.array, biases_OG: mx.array) -> mx.array:
        return linear(x_XI, dequantised(words_OW, scales_OG, biases_OG, grid).astype(x_XI.dtype))

    @product.vjp
    def gradients(primals: tuple[mx.array, ...], slope_XO: mx.array, _: mx.array) -> tuple[mx.array, ...]:
        x_XI, words_OW, scales_OG, biases_OG = primals
        x_slope = slope_XO @ dequantised(words_OW, scales_OG, biases_OG, grid).astype(slope_XO.dtype)
        slope_OI = (slope_XO.flatten(0, -2).T @ x_XI.flatten(0, -2)).astype(mx.float32)
        slope_OGK = slope_OI.reshape(*scales_OG.shape, grid.group_size)
        ones, zeros = mx.ones_like(scales_OG), mx.zeros_like(biases_OG)
        codes_OGK = dequantised(words_OW, ones, zeros, grid).reshape(slope_OGK.shape)
        return x_slope, mx.zeros_like(words_OW), (slope_OGK * codes_OGK).sum(axis=-1), slope_OGK.sum(axis=-1)

    return product


@lru_cache
def _adding(scale: float) -> Callable[..., Any]:
    @mx.custom_function
    def add(y_XO: mx.array, x_XI: mx.array, weight_OI: mx.array) -> mx.array:
        return mx.addmm(y_XO, x_XI, weight_OI.T, alpha=scale)

    @add.vjp
    def backward(primals: Sequence[mx.array], slope_XO: mx.array, _: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        x_XI, weight_OI = primals[1:]
        slope_NO, x_NI = slope_XO.flatten(0, -2), x_XI.flatten(0, -2)
        x_slope_NI = ((weight_OI * scale).T @ slope_NO.T).T
        return slope_XO, x_slope_NI.reshape(x_XI.shape), (x_NI.T @ slope_NO).T * scale

    return cast(Callable[..., Any], add)


@mx.custom_function
def _gelu(x: mx.array) -> mx.array:
    return _gelu_forward(x)


@_gelu.vjp
def _gelu_backward(x: mx.array, cotangent: mx.array, y: mx.array) -> mx.array:  # noqa: ARG001 (what MLX hands over)
    # Autograd would keep the results of all twenty operations for this; x is enough.
    near = mx.clip(x, -LARGEST, LARGEST)
    square = near * near
    slope = 0.5 + near * (_polynomial(ABOVE, square) / _polynomial(BELOW, square))
    return slope * cotangent


@partial(mx.compile, shapeless=True)
def _gelu_forward(x: mx.array) -> mx.array:
    # What is missing from max(x, 0) is the same on both sides of 0, and nothing far from it: nothing is rounded there.
    distance = mx.abs(x)
    root = 1 + distance * _polynomial(TAIL, distance)
    return mx.maximum(x, 0) - 0.5 * distance / root.square().square().square()


def _polynomial(coefficients: Sequence[float], x: mx.array) -> mx.array:
    """By Horner's rule."""
    first, *others = reversed(coefficients)
    y: Any = first
    for coefficient in others:
        y = y * x + coefficient
    return y


@mx.custom_function
def _sigmoid(x: mx.array) -> mx.array:
    return _sigmoid_forward(x)


@_sigmoid.vjp
def _sigmoid_backward(x: mx.array, cotangent: mx.array, y: mx.array) -> mx.array:  # noqa: ARG001
    return cotangent * (y - y * y)


@mx.compile
def _sigmoid_forward(x: mx.array) -> mx.array:
    return 1 / (1 + _power(-mx.maximum(x, LEAST)))


@mx.custom_function
def _cross_entropy(logits_NV: mx.array, labels_N: mx.array) -> tuple[mx.array, ...]:
    """Nats (N); and what their slope is made of, piece by piece the exponentials (M, V) and their sums (M, 1)."""
    rows, nats_M1, kept = loss_rows(logits_NV.shape[-1]), [], []
    for logits_MV, labels_M in zip(_pieces(logits_NV, rows), _pieces(labels_N, rows), strict=True):
        top_M1 = logits_MV.max(axis=-1, keepdims=True)
        powers_MV = _exp(logits_MV - top_M1)
        sum_M1 = _sums(powers_MV)
        label_M1 = mx.take_along_axis(logits_MV, labels_M[:, None], axis=-1)
        nats_M1.append(mx.log(sum_M1) + (top_M1 - label_M1))
        kept += [powers_MV, sum_M1]
    return mx.concatenate(nats_M1).squeeze(-1), *kept


@_cross_entropy.vjp
def _cross_entropy_backward(
    primals: tuple[mx.array, mx.array], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
) -> tuple[mx.array, mx.array]:
    rows, slopes_MV = loss_rows(primals[0].shape[-1]), []
    for i, (labels_M, cotangent_M) in enumerate(
        zip(_pieces(primals[1], rows), _pieces(cotangents[0], rows), strict=True)
    ):
        powers_MV, sum_M1 = outputs[1 + 2 * i : 3 + 2 * i]
        labels_M1, cotangent_M1 = labels_M[:, None], cotangent_M[:, None]
        # The share of each id, of which the label should have all.
        slope_MV = powers_MV * (cotangent_M1 / sum_M1)
        missing_M1 = mx.take_along_axis(slope_MV, labels_M1, axis=-1) - cotangent_M1
        slopes_MV.append(mx.put_along_axis(slope_MV, labels_M1, missing_M1, axis=-1))
    return mx.concatenate(slopes_MV), mx.zeros_like(primals[1])


def _sums(x_MV: mx.array) -> mx.array:
    """(M, V) -> (M, 1). A product adds up some at a time, where a sum goes one by one; but what is small beside the sum
    is lost in either, 1.2e-4 of a loss over 49,152: so parts are added up, and these then."""
    M, V = x_MV.shape
    even = V // SUM_PARTS * SUM_PARTS
    parts_MP = x_MV[:, :even].reshape(M, SUM_PARTS, -1) @ mx.ones(V // SUM_PARTS)
    return (parts_MP.sum(axis=-1) + x_MV[:, even:].sum(axis=-1))[:, None]


def _pieces(x: mx.array, rows: int) -> list[mx.array]:
    # What is computed on the way is then never there for all rows at once, and stays in the processor's caches.
    return [x[first : first + rows] for first in range(0, len(x), rows)]


@mx.custom_function
def _softmax(x: mx.array) -> mx.array:
    powers = _exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _power(x: mx.array) -> mx.array:
    """Of what is not above 0."""
    # 2^y is 2^n 2^f, with n the nearest whole number: its bits, moved to where a float32 has its exponent, are 2^n.
    # From -127 down they are 0, as is what a mask makes of minus infinity.
    y = mx.maximum(x * math.log2(math.e), -127)
    rounded = y + ROUNDING
    whole = mx.view(rounded, mx.int32) - ROUNDING_BITS
    return _polynomial(POWER, y - (rounded - ROUNDING)) * mx.view(whole + 127 << 23, mx.float32)


_exp = mx.compile(_power)


@_softmax.vjp
def _softmax_backward(x: mx.array, cotangent: mx.array, y: mx.array) -> mx.array:  # noqa: ARG001
    weighted = cotangent * y
    return weighted - y * weighted.sum(axis=-1, keepdims=True)


def attention_by_rows(
    q_BHTK: mx.array, k_BGTK: mx.array, v_BGTV: mx.array, scale: float, sees_B1TT: mx.array | None = None
) -> mx.array:
    """Causal attention (B, H, T, V) by groups of queries, each over the keys up to its last one: a third less work.

    Args:
        sees_B1TT: the keys that each query may see; None: itself and all before it.
    """
    B, H, T, K = q_BHTK.shape
    G, V = k_BGTK.shape[1], v_BGTV.shape[-1]
    q_BGHTK, k_BG1TK, v_BG1TV = (q_BHTK * scale).reshape(B, G, H // G, T, K), k_BGTK[:, :, None], v_BGTV[:, :, None]
    rows, found = query_rows(T), []
    for start in range(0, T, rows):
        end = min(start + rows, T)
        scores_BGHNT = q_BGHTK[..., start:end, :] @ k_BG1TK[..., :end, :].swapaxes(-2, -1)
        if sees_B1TT is None:
            sees_NT = mx.tri(end - start, end, start, dtype=mx.bool_)
        else:
            sees_NT = sees_B1TT[:, :, None, start:end, :end]
        found.append(softmax(mx.where(sees_NT, scores_BGHNT, -math.inf)) @ v_BG1TV[..., :end, :])
    return mx.concatenate(found, axis=-2).reshape(B, H, T, V)
