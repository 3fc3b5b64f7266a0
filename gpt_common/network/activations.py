"""What one block keeps of its forward pass for the backward pass, in both twins: what memory.py counts with.

PyTorch's counts are derived: every tensor that autograd saves of a block is named here, and each occurs once, however
many operations use it. MLX saves the operands of every elementary operation and releases them in an order of its own:
its counts are slopes, measured on the CPU (one more head, latent, expert, unit of width), and good to some percent.
What MLX and MPS do otherwise than the CPU is read in their sources and not measured.

Letters: D width, H heads, G key heads, K width of a head's key, V of its value, F inner width, T block size, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt_common.config import Device, ModelConfig

PIECE = 1 << 17
"""Logits that MLX's CPU makes a loss of at once (mlx_gpt/kernels.py): half a megabyte."""
GELU, GELU_OWN, GELU_AGAIN = 4.0, 2.3, 6.5
"""Numbers per unit of width that a GELU of MLX's keeps, one of our own, and that one where it is computed again."""
SWIGLU, SWIGLU_OWN = 5.25, 4.5
"""The same of a SwiGLU with MLX's SiLU, and with our own."""


def loss_rows(vocab_size: int) -> int:
    """Tokens of which MLX's CPU computes the loss at once (mlx_gpt/kernels.py)."""
    return max(1, PIECE // vocab_size)


def loss_numbers(tokens: int, vocab_size: int) -> int:
    """Numbers that are there at the peak of the loss on MLX's CPU: the logits, their exponentials or slopes, and what
    is computed on the way of a few pieces (18, measured from 50,000 to 40 million logits)."""
    rows = min(tokens, loss_rows(vocab_size))
    return 2 * tokens * vocab_size + min(8 * tokens, 18 * rows) * vocab_size


def query_rows(block_size: int) -> int:
    """Queries that MLX's CPU attends with at once, each group over the keys up to its last one (mlx_gpt/kernels.py).

    A quarter of the block; of fewer than 32, what is saved is less than what a product costs.
    """
    return max(32, -(-block_size // 4))


@dataclass(frozen=True)
class Saved:
    """Bytes per token that a block keeps, by the part of the block."""

    norms: float
    """Residual stream and both norms."""
    attention: float
    """Queries, keys, values, latents, and what attention found."""
    scores: float
    """Attention matrices, where attention is not fused."""
    feed_forward: float
    """Inner activations, of every expert that a token is sent to."""
    at_work: float = 0.0
    """Beside all that, attention matrices in the backward pass of the block."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.norms + self.attention + self.scores + self.feed_forward


def torch_saved(model: ModelConfig, layer: int, compute: int, device: Device = "cpu") -> Saved:
    """What autograd saves of block number `layer`.

    Args:
        model: the network.
        layer: number of the block; some may have experts and others none.
        compute: bytes of a number in the compute dtype.
        device: where it is computed.
    """
    D, masks = model.n_embd, 2 if model.dropout else 0
    # Norms work in float32: with 16 bits they keep a copy of their input, and the residual stream itself nothing. An
    # RMS norm, which is not fused, keeps its unscaled result too.
    norm = 4 * D + compute * D + (4 * D + 4 if model.norm == "rmsnorm" else 8)
    return Saved(
        norms=2 * norm + masks * compute * D,
        attention=_torch_attention(model, compute, device),
        scores=0 if is_fused(model, device) else 4 * model.n_head * model.block_size * (3 if model.dropout else 1),
        feed_forward=_torch_experts(model, compute) if model.has_experts(layer) else _torch_dense(model, compute),
    )


def is_fused(model: ModelConfig, device: Device) -> bool:
    """Whether PyTorch trains with a fused attention: never on MPS, with dropout, or for values narrower than keys."""
    return device != "mps" and not model.dropout and model.value_width == model.key_size


def _torch_attention(model: ModelConfig, compute: int, device: Device) -> float:
    H, G, K, V = model.n_head, model.n_kv_head or model.n_head, model.key_size, model.value_width
    fused = is_fused(model, device)
    latents, projected, normed = 0.0, 0.0, 0.0
    kept = H * (2 * K + V) if G == H else (H + 2 * G) * K
    # A fused attention answers in the layout of the queries: where they are new, the heads are joined by a copy.
    made_anew = model.positions != "learned" or model.qk_norm
    if model.has_latents:
        latents = compute * (model.q_latent + model.kv_latent)
    if model.attention == "latent":
        # Both latents pass an RMS norm: its input and its unscaled result, float32.
        latents += 8 * (model.q_latent + model.kv_latent) + 4 * (1 + bool(model.q_latent))
        latents += 4 * model.rope_size if compute == 4 else 0
        # Values are a part of the up-projection, which is kept whole.
        projected = compute * H * model.nope_size
    if model.attention == "multi_head" and made_anew:
        # The projection lives on for the values in it.
        projected = compute * 2 * H * K
    if model.qk_norm:
        # Its unscaled result, float32, and its input, which may be a part of the projection.
        within = model.attention == "multi_head" and compute == 4
        normed = (4 if within else 8) * (H + G) * K + 4 * (H + G) + (12 * H * K if within and not fused else 0)
    if fused:
        return compute * (kept + (2 if made_anew else 1) * H * V) + projected + latents + normed + 4 * H
    # Unfused it works in float32, on scaled copies of its own and with every key head repeated.
    return compute * H * V + 4 * H * (2 * K + V) + latents + normed


def _torch_dense(model: ModelConfig, compute: int) -> float:
    gated = model.feed_forward in ("swiglu", "moe")
    return compute * (4 if gated else 2) * model.inner_width


def _torch_experts(model: ModelConfig, compute: int) -> float:
    D, E, chosen, F = model.n_embd, model.n_expert, model.experts_per_token, model.expert_width
    # Gate, its SiLU, up, and their product, for every chosen expert; the sorted input and the result that is weighted.
    routed = compute * chosen * (4 * F + 2 * D) + compute * 4 * model.n_shared_expert * F
    # With 16 bits the router has a float32 copy of its input, which none but shared experts need as it was.
    copied = 0 if compute == 4 else 4 * D if model.n_shared_expert else 4 * D - compute * D
    # Scores and gates in float32; the order of the tokens in 64-bit integers.
    return routed + copied + 4 * E + (24 + 8) * chosen + 8


def mlx_saved(
    model: ModelConfig, layer: int, compute: int, device: Device = "cpu", *, recomputed: bool = False
) -> Saved:
    """What MLX keeps of block number `layer`; arguments as for `torch_saved`.

    Args:
        recomputed: the block is computed again for its gradient.
    """
    D, H, T, half = model.n_embd, model.n_head, model.block_size, compute < 4
    masks = 2 if model.dropout else 0
    # On a CPU and in float32 mlx_gpt/kernels.py has a GELU and an attention of its own.
    own = device == "cpu" and not half
    gelu = GELU if not own else GELU_AGAIN if recomputed else GELU_OWN
    swiglu = SWIGLU_OWN if own and not recomputed else SWIGLU
    groups = -(-T // query_rows(T)) if own and not model.dropout else 1
    return Saved(
        # With 16 bits the norms keep float32 copies.
        norms=compute * D * (6 + masks + (2 if half else 0)) + 20,
        attention=compute * _mlx_attention(model),
        scores=compute * H * T * (2.25 if model.dropout else (1 + 1 / groups) / 2),
        feed_forward=compute * _mlx_feed_forward(model, layer, gelu, swiglu),
        at_work=2 * compute * H * T / (groups if recomputed else 1),
    )


def _mlx_attention(model: ModelConfig) -> float:
    H, G, K, V = model.n_head, model.n_kv_head or model.n_head, model.key_size, model.value_width
    if model.attention == "latent":
        return 2.25 * (model.q_latent + model.kv_latent) + 2 * H * (K + V)
    if model.attention == "latent_per_head":
        return model.q_latent + model.kv_latent + 2 * H * (K + V)
    more = (0.25 if model.positions != "learned" else 0) + (1.6 if model.qk_norm else 0)
    if model.attention == "multi_head":
        return (5 + 2 * more) * H * K
    return (2.5 + more) * H * K + (2.3 + more) * G * K


def _mlx_feed_forward(model: ModelConfig, layer: int, gelu: float, swiglu: float) -> float:
    if model.has_experts(layer):
        chosen, F = model.experts_per_token, model.expert_width
        return chosen * (4.6 * F + 2 * model.n_embd + 20) + 5 * model.n_shared_expert * F + 2 * model.n_expert
    of_width = {"gelu": gelu, "gelu_tanh": 4.75, "relu2": 3.25, "swiglu": swiglu, "moe": swiglu}
    return of_width[model.feed_forward] * model.inner_width
