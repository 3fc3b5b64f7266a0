"""What the memory plan says that a block keeps, against what PyTorch's autograd saves of it."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.studies.memory import CUSTOM, DEEPSEEK, LLAMA
from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.config import ModelConfig
from gpt_common.network.activations import mlx_saved, torch_saved
from gpt_common.network.frozen import kept_otherwise, lowest_trained
from gpt_common.network.parameters import NO_ADAPTER, parameter_shapes, trained_shapes
from torch_gpt.model import GPT

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt": {},
    "gpt, rotary": {"positions": "rope", "norm": "rmsnorm"},
    "gpt, q/k norms": {"qk_norm": True, "feed_forward": "relu2"},
    "llama": LLAMA,
    "llama, q/k norms": {**LLAMA, "qk_norm": True},
    "deepseek, dense block": DEEPSEEK,
    "deepseek": {**DEEPSEEK, "n_dense_layer": 0},
    "deepseek, queries from the input": {**DEEPSEEK, "q_latent": 0},
    "customllm": CUSTOM,
    "customllm, no shared expert": {**CUSTOM, "n_shared_expert": 0},
    "values narrower than keys": {**CUSTOM, "value_size": 20},
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "LoRA": {"adapter": "lora"},
    "DoRA": {"adapter": "dora"},
    "LoRA, dropout": {"adapter": "lora", "adapter_dropout": 0.1},
    "LoRA, what attention found": {"adapter": "lora", "adapter_targets": ("out_proj",)},
    "LoRA, the last matrix": {"adapter": "lora", "adapter_targets": ("down_proj",)},
}
LAST = [
    AdapterConfig(adapter="lora", adapter_layers=1),
    AdapterConfig(adapter="lora", adapter_targets=("blocks.2.attention.out_proj",)),
    AdapterConfig(adapter="lora", adapter_layers=1, adapter_whole=("token_embedding",)),
]
B, T = 2, 64


def autograd_saves(
    model: ModelConfig, dtype: torch.dtype, adapter: AdapterConfig = NO_ADAPTER, layer: int = 0, *, reached: bool = True
) -> float:
    """Bytes per token of everything that a block's backward pass will use, but its matrices in the compute dtype.

    Args:
        reached: a gradient goes on to what is below the block.
    """
    gpt = GPT(model, dtype, adapter=adapter)
    gpt.adapters.new_pass(torch.zeros(2, dtype=torch.int64))
    outside = {p.untyped_storage().data_ptr() for p in (*gpt.parameters(), *gpt.buffers())}
    angles = gpt.rotary.angles(0, T) if gpt.rotary is not None else None
    noted: list[weakref.ref[torch.Tensor]] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept = tensor.detach()  # an operation that saved its own result so would keep itself
        noted.append(weakref.ref(kept))  # what a number was made of that is not differentiated is gone before long
        return kept

    x_BTD = torch.randn(B, T, model.n_embd, dtype=dtype, requires_grad=reached)
    key = torch.zeros(2, dtype=torch.int64) if model.dropout else None
    with saved_tensors_hooks(note, lambda tensor: tensor):
        y_BTD = gpt.blocks[layer](x_BTD, key, None, angles)
    assert y_BTD.grad_fn is not None
    saved = {t.untyped_storage().data_ptr(): t for one in noted if (t := one()) is not None}
    total = sum(t.untyped_storage().nbytes() for address, t in saved.items() if address not in outside)
    shapes = parameter_shapes(model).items()
    if dtype == torch.bfloat16:
        # The router is float32 and is multiplied as it is.
        blocks = {n: s for n, s in shapes if n.startswith("blocks.0.") and len(s) > 1 and "router" not in n}
        total -= 2 * sum(int(torch.Size(shape).numel()) for shape in blocks.values())
    return total / (B * T)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_keeps_what_is_planned(family: str, dtype: torch.dtype, dropout: float) -> None:
    changes = {"n_layer": 1, "n_head": 4, "n_embd": 128, **FAMILIES[family], "dropout": dropout}
    model = ModelConfig(vocab_size=20, block_size=T, **changes)
    planned = torch_saved(model, 0, dtype.itemsize).total
    # Some bytes per token and expert are rounded: gates in the compute dtype, the ends of the experts' rows.
    assert planned == pytest.approx(autograd_saves(model, dtype), abs=8)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_block_keeps_what_is_planned(family: str, adapter: str, layer: int) -> None:
    """In the lowest block that is adapted nothing asks for the gradient of its input."""
    model = ModelConfig(vocab_size=20, block_size=T, n_layer=2, n_head=4, n_embd=128, **FAMILIES[family])
    beside = AdapterConfig(**ADAPTERS[adapter])
    if beside.adapter == "dora" and any(model.has_experts(each) for each in range(2)):
        pytest.skip("DoRA has no form for stacked experts")
    if layer == 0 and beside.adapter_targets != ("all",):
        pytest.skip("of the lowest block the plan counts all, and not only what follows its first adapter")
    planned = torch_saved(model, layer, 4).total + kept_otherwise(model, layer, beside, 4, "torch")
    # Of DoRA every row has a length and a stretch, however few tokens there are.
    rows = [shape[0] for name, shape in trained_shapes(model, beside).items() if name.endswith("magnitude")]
    planned += 8 * sum(rows) // model.n_layer / (B * T)
    assert planned == pytest.approx(autograd_saves(model, torch.float32, beside, layer, reached=layer > 0), abs=8)


def test_below_the_lowest_adapter_nothing_is_kept() -> None:
    model = ModelConfig(vocab_size=20, block_size=T, n_layer=4, n_head=4, n_embd=128)
    assert [lowest_trained(model, adapter) for adapter in (NO_ADAPTER, *LAST)] == [0, 3, 2, 0]


def test_more_of_anything_is_more_to_keep() -> None:
    base = {"vocab_size": 20, "block_size": T, "n_layer": 1, "n_head": 4, "n_embd": 128, **CUSTOM}
    more = {"q_latent": 80, "kv_latent": 80, "nope_size": 24, "rope_size": 24, "value_size": 40, "n_expert": 9}
    more |= {"n_shared_expert": 2, "experts_per_token": 3, "expert_width": 176, "block_size": 128, "n_embd": 160}
    for count in (torch_saved, mlx_saved):
        least = count(ModelConfig(**base), 0, 4).total
        for name, value in more.items():
            if (count, name) != (torch_saved, "block_size"):
                assert count(ModelConfig(**{**base, name: value}), 0, 4).total > least, name


def test_mps_keeps_the_attention_matrices_that_the_math_kernel_does() -> None:
    """Where no kernel is fused autograd saves the matrix of every head: 48 MiB a layer and sequence of GPT-2."""
    gpt2 = ModelConfig(vocab_size=20, block_size=1024, n_layer=1, n_head=12, n_embd=768)
    fused, math = (torch_saved(gpt2, 0, 4, device).total for device in ("cpu", "mps"))
    assert torch_saved(gpt2, 0, 4, "cuda").total == fused
    assert (math - fused) * 1024 / 2**20 == pytest.approx(48, rel=0.01)

    small = ModelConfig(vocab_size=20, block_size=T, n_layer=1, n_head=4, n_embd=128)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert torch_saved(small, 0, 4, "mps").total == pytest.approx(autograd_saves(small, torch.float32), abs=8)


def test_a_gpu_has_none_of_the_kernels_that_mlx_s_cpu_is_given() -> None:
    model = ModelConfig(vocab_size=20, block_size=256, n_layer=1, n_head=4, n_embd=128)
    cpu, gpu = (mlx_saved(model, 0, 4, device) for device in ("cpu", "gpu"))
    assert gpu.scores > cpu.scores
    assert gpu.feed_forward > cpu.feed_forward
    assert mlx_saved(model, 0, 2) == mlx_saved(model, 0, 2, "gpu")
