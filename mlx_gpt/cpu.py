"""Linear layers and GELU, written so that they are fast on a CPU too. In PyTorch: torch_gpt/cpu.py.

Shape suffixes: X any leading dimensions, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

# Fitted by iterated least squares, the largest error made as small as it gets; coefficients from the lowest power on.
TAIL = (
    0.0997324955,
    0.0447887996,
    0.00859163688,
    0.00098065493,
    0.00011135661,
    9.75797806e-5,
    -1.67467037e-5,
    2.93245026e-6,
)
"""Of Q(a): a / 2 / (1 + a Q(a))^8 is a Phi(-a) for a >= 0, to 5e-8 (the form of Abramowitz & Stegun 1964, 7.1.28)."""
ABOVE = (0.797885204, -0.0317013809, 0.0142075807, 1.04236029e-5, 3.50167881e-5, 1.66530238e-7, 1.00631218e-10)
BELOW = (1.0, 0.293608248, 0.0406599419, 0.0034681212, 0.000188090011, 8.43305913e-6)
LARGEST = 5.8
"""x ABOVE(x^2) / BELOW(x^2) is the derivative of GELU less 0.5, to 9e-8, up to this x, and there the same as beyond."""


def linear(x_XI: mx.array, weight_OI: mx.array, bias_O: mx.array | None = None) -> mx.array:
    """`x @ weight.T + bias`, (X, I) -> (X, O)."""
    if bias_O is None:
        return x_XI @ weight_OI.T
    return mx.addmm(bias_O, x_XI, weight_OI.T)


def gelu(x: mx.array) -> mx.array:
    """GELU by its definition, x Phi(x) (Hendrycks & Gimpel 2016), of any shape.

    MLX's CPU takes error functions and exponentials number by number, a third of a small model's step; sums and
    products, several at a time. This is as close to the definition as MLX's own (tests/twins/test_cpu.py).
    """
    if x.dtype == mx.float64 or mx.default_device() != mx.Device(mx.cpu):
        return nn.gelu(x)
    y: Any = _gelu(x)  # MLX has no type for what its decorator returns
    return y


@mx.custom_function
def _gelu(x: mx.array) -> mx.array:
    return _forward(x)


@_gelu.vjp
def _backward(x: mx.array, cotangent: mx.array, y: mx.array) -> mx.array:  # noqa: ARG001 (what MLX hands over)
    # Autograd would keep the results of all twenty operations for this; x is enough.
    near = mx.clip(x.astype(mx.float32), -LARGEST, LARGEST)
    square = near * near
    slope = 0.5 + near * (_polynomial(ABOVE, square) / _polynomial(BELOW, square))
    return (slope * cotangent).astype(x.dtype)


@partial(mx.compile, shapeless=True)
def _forward(x: mx.array) -> mx.array:
    # What is missing from max(x, 0) is the same on both sides of 0, and nothing far from it: nothing is rounded there.
    wide = x.astype(mx.float32)
    distance = mx.abs(wide)
    root = 1 + distance * _polynomial(TAIL, distance)
    missing = 0.5 * distance / root.square().square().square()
    return (mx.maximum(wide, 0) - missing).astype(x.dtype)


def _polynomial(coefficients: Sequence[float], x: mx.array) -> mx.array:
    """By Horner's rule."""
    first, *others = reversed(coefficients)
    y: Any = first
    for coefficient in others:
        y = y * x + coefficient
    return y
