"""What a block keeps otherwise for its backward pass where its own weights are frozen and adapters are trained.

A frozen matrix asks for no copy of its input, and a frozen norm for none of its unscaled result; an adapter keeps its
inner activations, of DoRA the result that it stretches, and with dropout a dropped input of its own. PyTorch's counts
are derived as in activations.py, and MLX's measured as there.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.config import Device, ModelConfig
from gpt_common.network.activations import is_fused
from gpt_common.network.parameters import trained_shapes

MASK = {"torch": 1.0, "mlx": 0.25}
"""Numbers that a mask of dropout keeps for each number that passes it: PyTorch's is of the input's dtype."""
FIRST = tuple(f"attention.{name}_proj" for name in ("qkv", "q", "k", "v", "q_down", "kv_down", "k_rope"))
"""Matrices that are given what a block is given, normed."""
NORM = {"layernorm": 0.5, "rmsnorm": 2.0}
"""Numbers per unit of width that a norm of MLX's keeps for the gradient of its weight."""


def lowest_trained(model: ModelConfig, adapter: AdapterConfig) -> int:
    """Number of the first block that a gradient reaches: what lies below keeps nothing; 0 where the embedding is
    trained."""
    trained = trained_shapes(model, adapter)
    if any("embedding" in name for name in trained):
        return 0
    return min((int(name.split(".")[1]) for name in trained if name.startswith("blocks.")), default=model.n_layer)


def kept_otherwise(
    model: ModelConfig, layer: int, adapter: AdapterConfig, compute: int, twin: str, device: Device = "cpu"
) -> float:
    """Bytes per token by which block number `layer` keeps more than one that is trained whole; most often negative.

    Args:
        model: the network.
        adapter: what is trained beside it; 0 where there is none.
        compute: bytes of a number in the compute dtype.
        twin: "mlx" or "torch".
        device: where it is computed.
    """
    if not adapter.adapts:
        return 0.0
    prefix = f"blocks.{layer}."
    trained = trained_shapes(model, adapter)
    own = {name.removeprefix(prefix): shape for name, shape in trained.items() if name.startswith(prefix)}
    drops = bool(adapter.adapter_dropout)
    adapted = set() if drops else {name.rpartition(".")[0] for name in own}
    less = sum(numbers for matrices, numbers in _inputs(model, layer, device) if not adapted & set(matrices))
    more = sum(_of_adapter(name, shape, model.experts_per_token) for name, shape in own.items())
    lowest = layer == lowest_trained(model, adapter) and not any("embedding" in name for name in trained)
    if drops:  # what was dropped, and the mask that its gradient needs
        for name, shape in own.items():
            rows = model.experts_per_token if len(shape) == 3 else 1
            mask = 0 if lowest and name.rpartition(".")[0] in FIRST else MASK[twin]
            more += rows * (1 + mask) * shape[-1] if name.endswith(".lora_a") else 0
    if twin == "mlx":
        return compute * (more - less - 2 * NORM[model.norm] * model.n_embd)
    return compute * (more - less) - _torch_norms(model, layer, adapted, compute) - (_input(model) if lowest else 0)


def _of_adapter(name: str, shape: tuple[int, ...], chosen: int) -> float:
    """Numbers per token that a tensor of an adapter is the reason to keep."""
    if name.endswith(".magnitude"):
        return shape[-1]
    return (chosen if len(shape) == 3 else 1) * shape[-2] if name.endswith(".lora_a") else 0


def _inputs(model: ModelConfig, layer: int, device: Device) -> Iterator[tuple[tuple[str, ...], float]]:
    """Matrices of a block that share an input, and the numbers per token that are kept for them alone."""
    D, H, V = model.n_embd, model.n_head, model.value_width
    yield FIRST, D
    if model.has_latents:
        yield ("attention.q_up_proj", "attention.q_rope_proj"), model.q_latent
        yield ("attention.kv_up_proj", "attention.k_up_proj", "attention.v_up_proj"), model.kv_latent
    # A fused attention keeps its result itself; heads that are joined by a copy make another.
    joined = model.positions != "learned" or model.qk_norm or not is_fused(model, device)
    yield ("attention.out_proj",), H * V if joined else 0
    if not model.has_experts(layer):
        yield ("feed_forward.gate_proj", "feed_forward.up_proj"), D
        yield ("feed_forward.down_proj",), model.inner_width
        return
    experts, shared = "feed_forward.experts", "feed_forward.shared_experts"
    yield ("feed_forward.router", f"{shared}.gate_proj", f"{shared}.up_proj"), D
    yield (f"{shared}.down_proj",), model.n_shared_expert * model.expert_width
    yield (f"{experts}.gate_proj", f"{experts}.up_proj"), model.experts_per_token * D
    yield (f"{experts}.down_proj",), model.experts_per_token * model.expert_width


def _torch_norms(model: ModelConfig, layer: int, adapted: set[str], compute: int) -> float:
    """Bytes that RMS norms keep for the gradients of their weights, and a router for that of its own."""
    D, H, G, K = model.n_embd, model.n_head, model.n_kv_head or model.n_head, model.key_size
    found = 8.0 * D if model.norm == "rmsnorm" else 0.0
    if model.attention == "latent":
        found += 4 * (model.q_latent + model.kv_latent)
    if model.qk_norm:
        found += 4 * (H + G) * K
    if model.has_experts(layer) and compute < 4 and "feed_forward.router" not in adapted:
        found += 4 * D - (0 if model.n_shared_expert else compute * D)
    return found


def _input(model: ModelConfig) -> float:
    """Bytes that the first norm of a block keeps, which needs no gradient where nothing below is trained."""
    return 4 * model.n_embd + (4 if model.norm == "rmsnorm" else 8)
