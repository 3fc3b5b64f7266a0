"""Wrong quantised matrices: the order of codes, which way groups lie, scales and biases, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import mlx.core as mx
import numpy as np

from convert.parity.mutants.climb import Change, Changes, mutants, wrap
from gpt_common.adapting import quantisation
from gpt_common.adapting.quantisation import rounded_to
from mlx_gpt import kernels, quantised


def _made(wrong: Callable[[Any], Any]) -> Change:
    """What MLX makes of words becomes another, in a product and elsewhere."""
    both = ExitStack()
    for place in (kernels, quantised):
        both.enter_context(wrap(place, "dequantised", wrong))
    return both


def _found(wrong: Callable[[Any], Any]) -> Change:
    return wrap(quantisation, "scales_and_biases", wrong)


def _across(right: Any) -> Any:
    return lambda groups, grid: right(np.swapaxes(groups, -1, -2).reshape(groups.shape), grid)


QUANTISED: Changes = {
    ("Q", "nibble order"): lambda: wrap(
        quantisation, "packed", lambda f: lambda codes, bits: f(codes[..., ::-1].copy(), bits)
    ),
    ("Q", "sign of the scale"): lambda: _found(lambda f: lambda w, grid: (-f(w, grid)[0], f(w, grid)[1])),
    ("Q", "codes by the rounded scale"): lambda: _found(
        lambda f: lambda w, grid: tuple(rounded_to("bfloat16", part) for part in f(w, grid))
    ),
    ("Q", "groups along the wrong axis"): lambda: _found(_across),
    ("Q", "bias for biases"): lambda: _made(lambda f: lambda words, scales, _, grid: f(words, scales, scales, grid)),
    ("Q", "biases forgotten"): lambda: _made(
        lambda f: lambda words, scales, biases, grid: f(words, scales, mx.zeros_like(biases), grid)
    ),
    ("Q", "the cache's kernel with other scales"): lambda: wrap(
        mx, "quantized_matmul", lambda f: lambda x, w, s, b, **sizes: f(x, w, s * 1.001, b, **sizes)
    ),
    ("Q", "the layer's bias forgotten"): lambda: wrap(
        quantised.Quantised,
        "product",
        lambda f: lambda self, x, bias=None: f(self, x),  # noqa: ARG005
    ),
}
QUANTISED_MUTANTS = mutants("gpt", QUANTISED)
