"""What a model costs: parameters, floating-point operations and model FLOPs utilisation. No framework.

Two counts, side by side. PaLM's formula (Chowdhery et al. 2022, appendix B) is the one that published MFU figures
use. The exact count adds up every matrix multiplication; with `causal=False` it is what PyTorch's own FLOP
counter finds, with `causal=True` it leaves out the half of the attention matrix that the mask throws away.
A multiply-add counts as two operations everywhere.

Of a mixture of experts a token passes the router, the shared experts and `experts_per_token` of the routed ones: both
counts take these *active* parameters, whatever the total.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.adapting.placement import block_of
from gpt_common.config import ModelConfig
from gpt_common.network.parameters import NO_ADAPTER, Shapes, buffer_shapes, parameter_shapes, trained_shapes
from gpt_common.words import parameters_in_words

A100_BF16_PEAK = 312e12
"""FLOP/s of an A100 in bfloat16 (NVIDIA A100 datasheet), the peak that nanoGPT's `mfu` is relative to."""
ASSUMED_MFU = 0.3
"""Share of a GPU's peak that is taken for granted where nothing was measured."""


def parameter_count(model: ModelConfig) -> int:
    """Number of trained numbers; a tied head counts once, as the token embedding."""
    return sum(math.prod(shape) for shape in parameter_shapes(model).values())


def active_parameter_count(model: ModelConfig) -> int:
    """Parameters that one token meets: all but the routed experts that it is not sent to."""
    parameters = parameter_count(model)
    experts = parameter_table(model).get("experts", 0)
    return parameters - experts + experts * model.experts_per_token // max(1, model.n_expert)


def buffer_count(model: ModelConfig) -> int:
    """Numbers that are saved with the model and not trained by a gradient: what steers the routers."""
    return sum(math.prod(shape) for shape in buffer_shapes(model).values())


_PARTS = (
    ("token_embedding.", "token embedding"),
    ("position_embedding.", "position embedding"),
    (".q_norm.", "q/k norms"),
    (".k_norm.", "q/k norms"),
    ("_latent_norm.", "latent norms"),
    ("_norm.", "norms"),
    (".attention.", "attention"),
    (".router.", "router"),
    (".experts.", "experts"),
    (".shared_experts.", "shared experts"),
    (".feed_forward.", "feed-forward"),
    ("head.", "head"),
)
"""The first that is in a parameter's name says which part of the network it belongs to."""


def parameter_table(model: ModelConfig) -> dict[str, int]:
    """Parameters by part of the network; the values sum to `parameter_count`. A part without any is left out."""
    table = {part: 0 for _, part in _PARTS}
    for name, shape in parameter_shapes(model).items():
        table[next(part for key, part in _PARTS if key in name)] += math.prod(shape)
    return {part: count for part, count in table.items() if count}


def multiplied_parameters(model: ModelConfig) -> int:
    """Parameters that every token is multiplied with: of those that it meets all but the embeddings looked up."""
    table = parameter_table(model)
    N = active_parameter_count(model) - table.get("position embedding", 0)
    return N if model.tied_head else N - table["token embedding"]


def flops_per_token_palm(
    model: ModelConfig, block_size: int | None = None, adapter: AdapterConfig = NO_ADAPTER
) -> float:
    """Training FLOPs per token by PaLM's formula, 6N + 12 L H Q T (appendix B), attention counted in full.

    N are the active parameters. It leaves out the position embedding, as nanoGPT's `estimate_mfu` does, and counts the
    token embedding once, because it multiplies as the head. With an untied head the head counts and the embedding, a
    look-up, does not. Where values are narrower than keys, Q is the mean of both widths.

    Args:
        model: L layers of H heads of size Q; `vocab_size` must be settled.
        block_size: T, the length of the sequences; the model's if None.
        adapter: what is trained in place of the parameters, if not they: a frozen matrix has no gradient of its own,
            and below the first block that trains anything nothing goes backward.
    """
    T = block_size or model.block_size
    whole = (
        6 * multiplied_parameters(model) + 6 * model.n_layer * model.n_head * (model.key_size + model.value_width) * T
    )
    if not adapter.adapts:
        return whole
    attention = 4 * model.n_head * (model.key_size + model.value_width) * T
    return whole - _spared(model, attention, adapter, parameter_shapes(model))


def _spared(model: ModelConfig, attention: float, adapter: AdapterConfig, counted: Shapes) -> float:
    """What a token costs less where only an adapter is trained, which is itself counted.

    Args:
        attention: what the backward pass of a block's attention costs a token.
        counted: the tensors that a token is multiplied with.
    """
    trained = trained_shapes(model, adapter)
    first = min(block_of(name, model.n_layer) for name in trained)
    spared = float(max(first, 0) * attention)
    for name, size in _met(model, counted).items():
        # An embedding that is met is the head: what goes backward goes through it first.
        place = model.n_layer if name == "token_embedding.weight" else block_of(name, model.n_layer)
        if name not in trained:
            spared += 2 * size + 2 * size * (place < first)
    return spared - 6 * sum(
        size for name, size in _met(model, trained).items() if name.endswith((".lora_a", ".lora_b"))
    )


def _met(model: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """How many numbers of each tensor a token is multiplied with, as `multiplied_parameters` counts them."""
    looked_up = {"position_embedding.weight"} | (set() if model.tied_head else {"token_embedding.weight"})
    return {
        name: math.prod(shape) if len(shape) < 3 else model.experts_per_token * math.prod(shape[1:])
        for name, shape in shapes.items()
        if name not in looked_up
    }


def flops_per_step_exact(
    model: ModelConfig,
    batch_size: int,
    block_size: int | None = None,
    *,
    causal: bool = True,
    gradient_checkpointing: bool = False,
    adapter: AdapterConfig = NO_ADAPTER,
) -> int:
    """FLOPs of all matrix multiplications in one forward and backward pass.

    Counted: every matrix of the blocks, once per token, and of routed experts those that a token is sent to; scores
    and weighted sum of attention; the head. The backward pass costs twice the forward, once for the inputs and once
    for the weights. Not counted: look-ups, norms, rotations, activations, softmax, sorting tokens by expert, the loss,
    the optimiser. A fused attention that recomputes its scores in the backward pass does more work than this: the
    count is what the model needs, not what a kernel spends.

    Args:
        model: the network; `vocab_size` must be settled.
        batch_size: sequences in the pass (over all micro-steps, if the gradient is accumulated).
        block_size: length of each sequence; the model's if None.
        causal: count attention to earlier positions only, T(T+1)/2 pairs; otherwise all T*T pairs.
        gradient_checkpointing: add what the backward pass recomputes of each block: all but a last multiplication
            whose output nothing in the backward pass needs.
        adapter: what is trained in place of the parameters, if not they; counted by whole blocks, as PaLM's.
    """
    T = block_size or model.block_size
    pairs = T * (T + 1) // 2 if causal else T * T
    attended = 2 * pairs * model.n_head * (model.key_size + model.value_width)
    matrices = _block_matrices(model)
    blocks = 2 * T * sum(matrices.values()) + model.n_layer * attended
    forward = blocks + 2 * T * model.n_embd * model.vocab_size
    kept = sum(matrices[name] for name in _not_recomputed(model))
    recomputed = blocks - 2 * T * kept if gradient_checkpointing else 0
    spared = 0.0
    if adapter.adapts:
        multiplied = {name: shape for name, shape in parameter_shapes(model).items() if len(shape) > 1}
        spared = T * _spared(model, 2 * attended / T, adapter, multiplied)
    return batch_size * (3 * forward + recomputed - round(spared))


def _block_matrices(model: ModelConfig) -> dict[str, int]:
    """Size of every matrix of the blocks, of stacked experts the part that one token meets."""
    shapes = {name: s for name, s in parameter_shapes(model).items() if name.startswith("blocks.") and len(s) > 1}
    return {
        name: math.prod(shape) if len(shape) == 2 else model.experts_per_token * math.prod(shape[1:])
        for name, shape in shapes.items()
    }


def _not_recomputed(model: ModelConfig) -> list[str]:
    """The last matrix of each block, if the backward pass does not need what it gives.

    Dropout after it keeps a mask, which is only known when all before it is done.
    """
    if model.dropout:
        return []
    names = []
    for i in range(model.n_layer):
        if not model.has_experts(i):
            names.append(f"blocks.{i}.feed_forward.down_proj.weight")
        elif model.n_shared_expert:
            names.append(f"blocks.{i}.feed_forward.shared_experts.down_proj.weight")
    return names


def mfu(flops_per_second: float, peak: float | None) -> float | None:
    """Model FLOPs utilisation, between 0 and 1: achieved over `peak`, both in FLOP/s; None if the peak is unknown."""
    return None if peak is None else flops_per_second / peak


def describe_model(model: ModelConfig) -> str:
    """The console line on the network; parameters that a token meets where they are not all."""
    parameters = parameters_in_words(parameter_count(model), active_parameter_count(model))
    return (
        f"model: {parameters}, {model.n_layer} layers x {model.n_embd}, {model.n_head} heads, block {model.block_size}"
    )
