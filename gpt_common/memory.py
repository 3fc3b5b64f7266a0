"""How much memory a training step takes, before it is run.

Memory rises and falls within a step. What lives through it are weights and both AdamW moments (3 numbers per
parameter); gradients grow while activations shrink. The peak is the largest of a few moments: the loss, the backward
pass of each block, the end of the backward pass, the update. `memory_plan` adds each of them up.

PyTorch's figures follow from what autograd saves: per token and unit of width 16 numbers in a block (its input, two
normed inputs, q, k, v, attention's output, the sum after attention, 4 + 4 around GELU). MLX saves the operands of
every elementary operation, builds its own order of evaluation, and has no fused attention for training: its counts
were found by measuring slopes (one more block, head, token, vocabulary entry) on the CPU.

`python benchmarks/memory.py` lays plan and measurement side by side. On GPUs the plan is the same and unchecked: MLX
compiles there and keeps less, and PyTorch on MPS has its own attention.

Letters: N tokens in a micro-batch, D width, V vocabulary, H heads, T block size, L blocks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from gpt_common.config import ModelConfig, RunConfig
from gpt_common.flops import parameter_count, parameter_table

Twin = Literal["mlx", "torch"]


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes in use at the moment of the step that uses most."""

    moment: str
    """When that is: loss, backward, or update."""
    weights: int
    """float32 master weights."""
    moments: int
    """AdamW's two moments of every weight, float32."""
    gradients: int
    """Gradients there are at that moment, float32."""
    activations: int
    """What the forward pass saved, or recomputed, for the backward pass, in the compute dtype."""
    logits: int
    """Logits, their log-softmax and their gradient, float32."""
    temporary: int
    """Intermediate results of the operation at work."""

    @property
    def total(self) -> int:
        """Peak of the step."""
        return sum(value for value in asdict(self).values() if isinstance(value, int))


@dataclass(frozen=True, kw_only=True)
class _Counts:
    """How many numbers of which shape a twin keeps. ND: N x D, HTT: N x H x T (attention matrices), NV: N x V."""

    block_nd: float
    """Saved by a block, compute dtype."""
    block_htt: float
    """Saved by a block, compute dtype."""
    block_n: int
    """Saved by a block for each token, bytes: statistics of the norms and of attention, float32."""
    checkpoint_nd: float
    """Kept of a block whose activations are computed again in the backward pass."""
    checkpoint_blocks: int
    """Recomputed blocks that are there at once."""
    loss_nd: float
    """Beside the blocks when the loss is taken."""
    loss_nv: float
    """When the loss is taken, float32."""
    backward_nd: float
    """Beside the saved in a block's backward pass."""
    backward_htt: float
    """Beside the saved in a block's backward pass."""
    update_matrices: float
    """Temporaries of the update, in matrices of D x 4D, float32."""
    update_embeddings: float
    """The same in token embeddings, V x D, where that is more."""


def _torch_counts(model: ModelConfig, compute: int) -> _Counts:
    dropout = model.dropout > 0
    half = compute < 4
    return _Counts(
        # Attention with dropout is not fused on a CPU: three attention matrices and scaled copies of q and k, all in
        # float32 (with 16 bits, of v and the result too).
        block_nd=16 + (0 if not dropout else 8 if half else 2),
        block_htt=0 if not dropout else 6 if half else 3,
        block_n=16 + 4 * model.n_head,
        checkpoint_nd=1,
        checkpoint_blocks=1,
        loss_nd=3 if dropout else 2,
        loss_nv=3,
        backward_nd=5,
        backward_htt=0,
        update_matrices=0,
        # A tied embedding gets two gradients, which are added into a third.
        update_embeddings=2 if model.tied_head else 0,
    )


def _mlx_counts(model: ModelConfig, compute: int) -> _Counts:
    dropout = model.dropout > 0
    half = compute < 4
    return _Counts(
        block_nd=(30 if model.feed_forward == "gelu_tanh" else 27) + (2 if dropout else 0) + (2 if half else 0),
        block_htt=2.25 if dropout else 1,
        block_n=20,
        checkpoint_nd=3.5,
        checkpoint_blocks=2,
        loss_nd=27,
        loss_nv=5 if half else 4,
        backward_nd=32,
        backward_htt=2,
        update_matrices=13,
        update_embeddings=3.5 if model.tied_head else 4.5,
    )


def memory_plan(config: RunConfig, twin: Twin) -> MemoryPlan:
    """Peak of one optimiser step as the trainers do it, with native dropout.

    Args:
        config: `vocab_size` must be settled. Of `train` it uses batch_size, grad_accum_steps, dtype (auto counts as
            float32) and gradient_checkpointing.
        twin: whose step.
    """
    model, train = config.model, config.train
    compute = 2 if train.dtype == "bfloat16" else 4
    counts = _mlx_counts(model, compute) if twin == "mlx" else _torch_counts(model, compute)
    N, L = train.batch_size * model.block_size, model.n_layer
    ND, NHT, NV = N * model.n_embd, N * model.n_head * model.block_size, N * model.vocab_size

    table = parameter_table(model)
    weights = 4 * parameter_count(model)
    embedding = 4 * table["token embedding"]
    block_weights = 4 * (table["attention"] + table["feed-forward"]) // L
    matrix = 16 * model.n_embd**2
    # With a 16-bit compute dtype the backward pass keeps a copy of every matrix that it multiplies with.
    casts = compute / 4 if compute < 4 else 0

    block = int(compute * (counts.block_nd * ND + counts.block_htt * NHT) + counts.block_n * N + casts * block_weights)
    saved = int(counts.checkpoint_nd * ND * compute) if train.gradient_checkpointing else block
    again = counts.checkpoint_blocks * block if train.gradient_checkpointing else 0
    # The gradients of earlier micro-steps are there all the time, whole.
    earlier = weights if train.grad_accum_steps > 1 else 0

    def moment(name: str, gradients: float, activations: float, logits: float, temporary: float) -> MemoryPlan:
        return MemoryPlan(name, weights, 2 * weights, int(gradients), int(activations), int(logits), int(temporary))

    moments = [
        moment(
            "loss",
            gradients=earlier,
            activations=L * saved + counts.loss_nd * ND * compute,
            logits=4 * counts.loss_nv * NV + casts * embedding,
            temporary=0,
        ),
        moment(
            "update",
            gradients=weights,
            activations=0,
            logits=0,
            temporary=max(counts.update_matrices * matrix, counts.update_embeddings * embedding) + ND * compute,
        ),
    ]
    for behind in range(L):
        # Gradients of the head, of the blocks behind this one, and of this one's last matrix.
        moments.append(
            moment(
                "backward",
                gradients=max(embedding + behind * block_weights, earlier) + matrix,
                activations=(L - behind) * saved + again,
                logits=0,
                temporary=compute * (counts.backward_nd * ND + counts.backward_htt * NHT),
            )
        )
    return max(moments, key=lambda one: one.total)


def kv_cache_bytes_per_token(model: ModelConfig, number_bytes: int = 4) -> int:
    """Bytes that generation keeps of one token of one sequence, over all layers.

    Of a layer: keys and values of all heads, 2 H K; of the fewer key heads of grouped queries, 2 G K; the latent and
    the shared rotary key, R + rope (DeepSeek-V2, Liu et al. 2024, table 1); the latent and every head's rotary key,
    R + H rope.

    Args:
        model: the network.
        number_bytes: size of one number in the compute dtype.
    """
    full = 2 * model.n_head * model.key_size
    numbers = {
        "multi_head": full,
        "grouped_query": full * (model.n_kv_head or model.n_head) // model.n_head,
        "latent": model.kv_latent + model.rope_size,
        "latent_per_head": model.kv_latent + model.n_head * model.rope_size,
    }[model.attention]
    return model.n_layer * numbers * number_bytes


def full_kv_bytes_per_token(model: ModelConfig, number_bytes: int = 4) -> int:
    """What keys and values of every head would take: H (K + V) numbers per layer."""
    value_size = model.value_size if model.attention in ("latent", "latent_per_head") else model.key_size
    return model.n_layer * model.n_head * (model.key_size + value_size) * number_bytes
