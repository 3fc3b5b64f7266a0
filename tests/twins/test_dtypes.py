"""In bfloat16 every product of the model, forward and backward, is one of bfloat16: none is float32 by accident.

An accidental one costs time and memory on a GPU and shows in no loss. By intention the router is float32: a rounded
score would send a token elsewhere. What a library does inside a call is its own affair: PyTorch's unfused attention
multiplies in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from torch.utils._python_dispatch import TorchDispatchMode

import mlx_gpt.kernels
import mlx_gpt.model
import torch_gpt.kernels
import torch_gpt.model
from gpt_common.config import ModelConfig
from gpt_common.data.batches import Batch
from tests.gpt_common.network.test_activations import FAMILIES

pytestmark = pytest.mark.usefixtures("without_onednn")

MLX_PRODUCTS = {"Matmul", "AddMM", "ScaledDotProductAttention", "ScaledDotProductAttentionVJP"}
TORCH_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "_grouped_mm"}
EXPERTS = 7
"""A number that no other size has: a product that has it is the router's."""
Product = tuple[str, tuple[tuple[tuple[int, ...], str], ...]]


def config(family: str, dropout: float) -> ModelConfig:
    sizes = {"vocab_size": 50, "block_size": 16, "n_layer": 2, "n_head": 4, "n_embd": 128, "bias": True}
    changes: dict[str, Any] = {**sizes, **FAMILIES[family], "dropout": dropout}
    if "n_expert" in changes:
        changes |= {"n_expert": EXPERTS, "n_expert_group": 1, "groups_per_token": 1}
    return ModelConfig(**changes)


def ids() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    drawn = np.random.default_rng(0).integers(0, 50, (2, 17)).astype(np.int32)
    return drawn[:, :-1].copy(), drawn[:, 1:].copy()


def one_expert(layer: Any, x_MI: mx.array, _: mx.array) -> mx.array:
    return x_MI @ layer.weight[0].astype(x_MI.dtype).T


def mlx_products(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> list[Product]:
    """Products of a step's loss and gradient, as on a GPU: name, and shape and dtype of what is multiplied."""
    monkeypatch.setattr(mlx_gpt.kernels, "is_plain", lambda _: False)
    # MLX exports no products of gathered matrices: one expert's stands for them all.
    monkeypatch.setattr(mlx_gpt.layers.StackedLinear, "__call__", one_expert)
    network = mlx_gpt.model.GPT(model, mx.bfloat16)
    network.initialise(0)
    key = mx.array([1, 2], dtype=mx.uint32) if model.dropout else None
    gradients = nn.value_and_grad(
        network, lambda tokens, labels: mlx_gpt.model.objective(network, Batch(tokens, labels), key)
    )

    def outputs(tokens: mx.array, labels: mx.array) -> list[mx.array]:
        (total, _), found = gradients(tokens, labels)
        return [total, *dict(tree_flatten(found)).values()]

    events: list[dict[str, Any]] = []
    mx.export_function(events.append, outputs, *(mx.array(each) for each in ids()))
    return [
        (event["name"], tuple((tuple(shape), str(dtype).rpartition(".")[2]) for _, shape, dtype in event["inputs"]))
        for event in events
        if event["type"] == "primitive" and event["name"] in MLX_PRODUCTS
    ]


class Products(TorchDispatchMode):
    """Writes down what is multiplied while it lasts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Product] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name in TORCH_PRODUCTS:
            tensors = (each for each in args if isinstance(each, torch.Tensor) and each.is_floating_point())
            self.found.append((name, tuple((tuple(x.shape), str(x.dtype).rpartition(".")[2]) for x in tensors)))
        return function(*args, **(kwargs or {}))


def one_call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: Any) -> torch.Tensor:
    """In place of an attention that may not be fused: as many numbers, of the dtype that it is given."""
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16
    return v.repeat_interleave(q.shape[1] // v.shape[1], 1) + 0 * (q.mean() + k.mean())


def torch_products(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> list[Product]:
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", one_call)
    network = torch_gpt.model.GPT(model, torch.bfloat16)
    network.initialise(0)
    key = torch.tensor([1, 2]) if model.dropout else None
    tokens, labels = (torch.from_numpy(each).long() for each in ids())
    with Products() as products:
        torch_gpt.model.objective(network, Batch(tokens, labels), key)[0].backward()
    return products.found


def accidental(products: Iterable[Product]) -> list[Product]:
    return [
        (name, given)
        for name, given in products
        if any(dtype != "bfloat16" for _, dtype in given) and not any(EXPERTS in shape for shape, _ in given)
    ]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("products", [mlx_products, torch_products])
def test_no_product_is_float32_by_accident(
    products: Any, family: str, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = products(config(family, dropout), monkeypatch)
    # Two blocks with four products at least, each with two more for its gradients.
    assert len(found) >= 2 * 4 * 3
    assert accidental(found) == []


@pytest.mark.parametrize("products", [mlx_products, torch_products])
def test_an_accidental_one_is_seen(products: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right, torch_right = mlx_gpt.kernels.linear, torch_gpt.kernels.linear
    monkeypatch.setattr(
        mlx_gpt.layers,
        "linear",
        lambda x, w, b=None: right(x.astype(mx.float32), w.astype(mx.float32), b).astype(x.dtype),
    )
    monkeypatch.setattr(
        torch_gpt.layers, "linear", lambda x, w, b=None: torch_right(x.float(), w.float(), b).to(x.dtype)
    )
    assert accidental(products(config("gpt", 0.0), monkeypatch))
