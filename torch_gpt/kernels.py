"""Products, activations, softmax and loss by the fastest way that a device has. In MLX: mlx_gpt/kernels.py.

Shape suffixes: X any leading dimensions, I inputs, O outputs, V vocabulary; of quantised matrices W words and G groups
of a row, K inputs of a group, B bytes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gpt_common.adapting.quantisation import Grid
from gpt_common.machine.blas import mkl_holds_back

ONEDNN = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and mkl_holds_back()
"""Whether products of float32 are oneDNN's: by the processor alone, so that a run that is taken up has the same."""


def linear(x_XI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`, (X, I) -> (X, O).

    Of a processor with AVX-512 that is not Intel's, MKL uses the half, AVX2; oneDNN uses all of it. Both add up in
    float32.
    """
    plain = x_XI.device.type == "cpu" and x_XI.dtype == torch.float32 and x_XI.numel() > 0
    if ONEDNN and plain and not torch.compiler.is_compiling():
        y_XO: Tensor = OneDNN.apply(x_XI, weight_OI, bias_O)
        return y_XO
    return F.linear(x_XI, weight_OI, None if bias_O is None else bias_O.to(x_XI.dtype))


def add_linear(y_XO: Tensor, x_XI: Tensor, weight_OI: Tensor, scale: float) -> Tensor:
    """`y + scale x @ weight.T`, (X, O), in one product: y is gone over once, and its gradient not at all.

    The inputs of an adapter are few, and a product whose last axis is shorter than 16 takes MKL up to nine times as
    long as the same one transposed: so the gradients are. A weight multiplied by its scale first would be kept twice.
    """
    y_NO, x_NI = y_XO.flatten(0, -2), x_XI.flatten(0, -2)
    if x_XI.device.type == "cpu" and not torch.compiler.is_compiling():
        added: Tensor = Adding.apply(y_NO, x_NI, weight_OI, scale)
        return added.view(y_XO.shape)
    return torch.addmm(y_NO, x_NI, weight_OI.t(), alpha=scale).view(y_XO.shape)


def dequantised(words_XW: Tensor, scales_XG: Tensor, biases_XG: Tensor, grid: Grid) -> Tensor:
    """The matrix (X, I) that words stand for, float32."""
    codes_XGK = unpacked(words_XW, grid.bits).view(*scales_XG.shape, grid.group_size).float()
    scales_XG1, biases_XG1 = scales_XG.float()[..., None], biases_XG.float()[..., None]
    if scales_XG.requires_grad:
        return (codes_XGK * scales_XG1 + biases_XG1).flatten(-2)
    # In place: two new matrices more took a CPU ten times as long.
    return codes_XGK.mul_(scales_XG1).add_(biases_XG1).flatten(-2)


def unpacked(words_XW: Tensor, bits: int) -> Tensor:
    """Words as codes (X, I), uint8."""
    bytes_XB = words_XW.view(torch.uint8)
    if 8 % bits == 0:
        codes = [(bytes_XB >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
        return torch.stack(codes, dim=-1).flatten(-2)
    # Eight codes lie in as many bytes as a code has bits; each in one byte of them, or in two that are neighbours.
    bytes_XNB, codes = bytes_XB.unflatten(-1, (-1, bits)), []
    for first, shift in (divmod(code * bits, 8) for code in range(8)):
        low = bytes_XNB[..., first] >> shift
        if shift + bits > 8:
            low = low | (bytes_XNB[..., first + 1] << (8 - shift))
        codes.append(low & (2**bits - 1))
    return torch.stack(codes, dim=-1).flatten(-2)


def as_words(value: Tensor) -> Tensor:
    """Words of a quantised matrix as PyTorch computes with them; anything else as it is."""
    return value.view(torch.int32) if value.dtype == torch.uint32 else value


def quantised_linear(x_XI: Tensor, words_OW: Tensor, scales_OG: Tensor, biases_OG: Tensor, grid: Grid) -> Tensor:
    """`x @ matrix.T`, (X, I) -> (X, O)."""
    y_XO: Tensor = QuantisedProduct.apply(x_XI, words_OW, scales_OG, biases_OG, grid)
    return y_XO


def gelu(x: Tensor) -> Tensor:
    """GELU by its definition, x Phi(x) (Hendrycks & Gimpel 2016), of any shape."""
    return F.gelu(x)


def silu(x: Tensor) -> Tensor:
    """`x / (1 + exp(-x))` (Hendrycks & Gimpel 2016, section 2), of any shape."""
    return F.silu(x)


def softmax(x: Tensor) -> Tensor:
    """Exponentials that add up to 1 over the last axis."""
    return torch.softmax(x, dim=-1)


def cross_entropy(logits_XV: Tensor, labels_X: Tensor) -> Tensor:
    """Nats (X) that each label costs, float32."""
    # The sum over a vocabulary of exponentials needs more than bfloat16's 8 bits.
    logits_NV = upcast(logits_XV).flatten(0, -2)
    return F.cross_entropy(logits_NV, labels_X.flatten(), reduction="none").view(labels_X.shape)


def upcast(x: Tensor) -> Tensor:
    """x in float32: long sums and exponentials need it. float64, in which the parity oracle computes, stays."""
    return x if x.dtype == torch.float64 else x.float()


class Adding(torch.autograd.Function):
    """`y + scale x @ weight.T`, whose gradients are transposed products."""

    @staticmethod
    def forward(ctx: Any, y_NO: Tensor, x_NI: Tensor, weight_OI: Tensor, scale: float) -> Tensor:
        """(N, O), (N, I) and (O, I) -> (N, O)."""
        ctx.save_for_backward(x_NI, weight_OI)
        ctx.scale = scale
        return torch.addmm(y_NO, x_NI, weight_OI.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of y, x and weight."""
        (slope_NO,) = gradients
        x_NI, weight_OI = ctx.saved_tensors
        x_slope_NI = ((weight_OI * ctx.scale).t() @ slope_NO.t()).t()
        return slope_NO, x_slope_NI, (x_NI.t() @ slope_NO).t() * ctx.scale, None


class QuantisedProduct(torch.autograd.Function):
    """A product with a matrix that is made again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x_XI: Tensor, words_OW: Tensor, scales_OG: Tensor, biases_OG: Tensor, grid: Grid) -> Tensor:
        """(X, I) -> (X, O)."""
        tuned = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        ctx.save_for_backward(x_XI if tuned else None, words_OW, scales_OG, biases_OG)
        ctx.grid = grid
        return linear(x_XI, dequantised(words_OW, scales_OG, biases_OG, grid).to(x_XI.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None, None]:
        """Gradients of x, and of scales and biases where they are tuned."""
        (slope_XO,) = gradients
        x_XI, words_OW, scales_OG, biases_OG = ctx.saved_tensors
        x_slope = scale_slope = bias_slope = None
        if ctx.needs_input_grad[0]:
            x_slope = slope_XO @ dequantised(words_OW, scales_OG, biases_OG, ctx.grid).to(slope_XO.dtype)
        if x_XI is not None:
            slope_OI = (slope_XO.flatten(0, -2).t() @ x_XI.flatten(0, -2)).float()
            slope_OGK = slope_OI.view(*scales_OG.shape, ctx.grid.group_size)
            codes_OGK = unpacked(words_OW, ctx.grid.bits).view(slope_OGK.shape)
            scale_slope, bias_slope = (slope_OGK * codes_OGK).sum(dim=-1), slope_OGK.sum(dim=-1)
        return x_slope, None, scale_slope, bias_slope, None


class OneDNN(torch.autograd.Function):
    """A linear layer whose three products, forward and backward, are oneDNN's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(X, I) and (O, I) -> (X, O)."""
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)  # a frozen weight asks for no input
        ctx.has_bias = bias is not None
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of input, weight and bias, those that are wanted."""
        (y,) = gradients
        x, weight = ctx.saved_tensors
        rows = y.reshape(-1, y.shape[-1])
        return (
            product(y, weight.t()) if ctx.needs_input_grad[0] else None,
            None if x is None else product(rows.t(), x.reshape(-1, x.shape[-1]).t()),
            rows.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None,
        )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` by oneDNN."""
    # The operator that torch.compile's CPU code calls; there is no public way to choose a library for one product.
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y
