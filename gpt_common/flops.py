"""What a model costs: parameters, floating-point operations and model FLOPs utilisation. No framework.

Two counts, side by side. PaLM's formula (Chowdhery et al. 2022, appendix B) is the one that published MFU figures
use. The exact count adds up every matrix multiplication; with `causal=False` it is what PyTorch's own FLOP
counter finds, with `causal=True` it leaves out the half of the attention matrix that the mask throws away.
A multiply-add counts as two operations everywhere.
"""

from __future__ import annotations

import math

from gpt_common.config import ModelConfig
from gpt_common.init import parameter_shapes

A100_BF16_PEAK = 312e12
"""FLOP/s of an A100 in bfloat16 (NVIDIA A100 datasheet), the peak that nanoGPT's `mfu` is relative to."""


def parameter_count(model: ModelConfig) -> int:
    """Number of trained numbers; a tied head counts once, as the token embedding."""
    return sum(math.prod(shape) for shape in parameter_shapes(model).values())


def parameter_table(model: ModelConfig) -> dict[str, int]:
    """Parameters by part of the network; the values sum to `parameter_count`. A part without any is left out."""
    parts = {
        "token_embedding": "token embedding",
        "position_embedding": "position embedding",
        "attention": "attention",
        "feed_forward": "feed-forward",
        "attention_norm": "norms",
        "feed_forward_norm": "norms",
        "final_norm": "norms",
        "head": "head",
    }
    table = dict.fromkeys(parts.values(), 0)
    for name, shape in parameter_shapes(model).items():
        keys = name.split(".")
        table[parts[keys[2] if keys[0] == "blocks" else keys[0]]] += math.prod(shape)
    return {part: count for part, count in table.items() if count}


def flops_per_token_palm(model: ModelConfig, block_size: int | None = None) -> float:
    """Training FLOPs per token by PaLM's formula, 6N + 12 L H Q T (appendix B), attention counted in full.

    N leaves out the position embedding, as nanoGPT's `estimate_mfu` does, and counts the token embedding once,
    because it multiplies as the head. With an untied head the head counts and the embedding, a look-up, does not.

    Args:
        model: L layers of H heads of size Q; `vocab_size` must be settled.
        block_size: T, the length of the sequences; the model's if None.
    """
    T = block_size or model.block_size
    table = parameter_table(model)
    N = parameter_count(model) - table.get("position embedding", 0)
    if not model.tied_head:
        N -= table.get("token embedding", 0)
    return 6 * N + 12 * model.n_layer * model.n_embd * T


def flops_per_step_exact(
    model: ModelConfig,
    batch_size: int,
    block_size: int | None = None,
    *,
    causal: bool = True,
    gradient_checkpointing: bool = False,
) -> int:
    """FLOPs of all matrix multiplications in one forward and backward pass.

    Counted: the projections of attention and feed-forward, scores and weighted sum of attention, the head; the
    backward pass costs twice the forward, once for the inputs and once for the weights. Not counted: look-ups,
    norms, GELU, softmax, the loss, the optimiser. A fused attention that recomputes its scores in the backward pass
    does more work than this: the count is what the model needs, not what a kernel spends.

    Args:
        model: the network; `vocab_size` must be settled.
        batch_size: sequences in the pass (over all micro-steps, if the gradient is accumulated).
        block_size: length of each sequence; the model's if None.
        causal: count attention to earlier positions only, T(T+1)/2 pairs; otherwise all T*T pairs.
        gradient_checkpointing: add what the backward pass recomputes of each block: all but its last
            multiplication, whose output nothing in the backward pass needs.
    """
    T, D, V = block_size or model.block_size, model.n_embd, model.vocab_size
    pairs = T * (T + 1) // 2 if causal else T * T
    down_projection = 2 * T * 4 * D * D
    block = 2 * T * (3 + 1 + 4) * D * D + down_projection + 4 * pairs * D
    forward = model.n_layer * block + 2 * T * D * V
    recomputed = model.n_layer * (block - down_projection) if gradient_checkpointing else 0
    return batch_size * (3 * forward + recomputed)


def mfu(flops_per_second: float, peak: float | None) -> float | None:
    """Model FLOPs utilisation, between 0 and 1: achieved over `peak`, both in FLOP/s; None if the peak is unknown."""
    return None if peak is None else flops_per_second / peak
