"""How much memory a training step takes, before it is run.

Memory rises and falls within a step. What lives through it are weights and the optimiser's state: both moments of
AdamW, or the one momentum of Muon; gradients grow while activations shrink. The peak is the largest of a few moments:
the loss, the backward pass of each block, the end of the backward pass, the update. `memory_plan` adds each of them
up. What a block keeps for the backward pass is counted in gpt_common/network/activations.py, and in frozen.py beside it
where adapters are trained.

`python benchmarks/studies/memory.py` lays plan and measurement side by side. On GPUs the plan is the same and
unchecked: MLX compiles there and keeps less, and PyTorch on MPS has its own attention.

Letters: N tokens in a micro-batch, D width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Literal

from gpt_common.adapting.placement import placed
from gpt_common.adapting.quantisation import NOT_QUANTISED, Grid, Grids, stored_shapes
from gpt_common.config import Device, DType, ModelConfig, RunConfig, TrainConfig
from gpt_common.network.activations import loss_numbers, mlx_saved, torch_saved
from gpt_common.network.flops import multiplied_parameters
from gpt_common.network.frozen import kept_otherwise, lowest_trained
from gpt_common.network.parameters import Shapes, optimizer_shapes, parameter_shapes, trained_shapes
from gpt_common.network.together import ALONE, Together, owners

Twin = Literal["mlx", "torch"]


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes in use at the moment of the step that uses most."""

    moment: str
    """When that is: forward, loss, backward, or update; of several ranks also when they add up or share out."""
    weights: int
    """float32 master weights; beside an adapter, the frozen ones in their own dtype."""
    moments: int
    """AdamW's two moments of a weight, or Muon's momentum, float32."""
    gradients: int
    """Gradients there are at that moment, float32."""
    activations: int
    """What the forward pass saved, or recomputed, for the backward pass, in the compute dtype."""
    logits: int
    """Logits, their log-softmax and their gradient, float32."""
    temporary: int
    """Intermediate results of the operation at work."""
    ranks: int = 0
    """What is sent to other ranks and comes from them, float32."""

    @property
    def total(self) -> int:
        """Peak of the step."""
        return sum(value for value in asdict(self).values() if isinstance(value, int))


@dataclass(frozen=True, kw_only=True)
class _Block:
    """A block's part in the plan, bytes."""

    trained: int
    """Parameters that have gradients, float32."""
    last: int
    """The last matrix, float32: its gradient is the first of the block's; 0 where it is frozen."""
    saved: float
    """Kept for the backward pass, with the copies of its matrices in a 16-bit compute dtype."""
    kept: float
    """What stays of it where it is computed again."""
    forward: float
    """Beside what the blocks keep, when the loss is taken after this one."""
    backward: float
    """Beside the saved, in the block's backward pass."""


def _blocks(config: RunConfig, twin: Twin, compute: int, device: Device, grids: Grids) -> list[_Block]:
    model, N, D = config.model, config.train.batch_size * config.model.block_size, config.model.n_embd
    shapes, adapter = parameter_shapes(model), config.adapter
    trained = trained_shapes(model, adapter)
    lowest = lowest_trained(model, adapter)
    blocks = []
    for layer in range(model.n_layer):
        own = {name: shape for name, shape in shapes.items() if name.startswith(f"blocks.{layer}.")}
        matrices = sum(
            math.prod(shape)
            for name, shape in own.items()
            if len(shape) > 1 and name.removesuffix(".weight") not in grids
        )
        last = 4 * sum(
            math.prod(shape) for name, shape in own.items() if name.endswith("feed_forward.down_proj.weight")
        )
        last = last or 4 * math.prod(own[f"blocks.{layer}.feed_forward.experts.down_proj.weight"])
        # With a 16-bit compute dtype the backward pass keeps a copy of every matrix that it multiplies with; so it does
        # of a frozen one that is kept in another dtype than it computes in.
        copied = compute < 4 if adapter.adapter_base_dtype == "float32" else compute == 4
        casts = compute * matrices if copied else 0
        mine = {name: shape for name, shape in trained.items() if name.startswith(f"blocks.{layer}.")}
        otherwise = kept_otherwise(model, layer, adapter, compute, twin, device)
        if twin == "torch":
            saved = N * (torch_saved(model, layer, compute, device).total + otherwise) + casts
            kept, forward = 1.0 * D * compute, 0.0
            chosen = model.experts_per_token if model.has_experts(layer) else 0
            # Gradients: of the residual stream, of what the activation gives and of what it gets; of its rows.
            inner = chosen * model.expert_width if chosen else model.inner_width
            backward = 1.0 * compute * (D + (2 * inner + chosen * D if chosen else _gradients(config) * inner))
        else:
            part = mlx_saved(model, layer, compute, device, recomputed=config.train.gradient_checkpointing)
            saved = N * (part.total + otherwise) + casts
            kept, forward = 3.5 * D * compute, part.total - part.scores
            backward = 1.2 * forward + part.at_work
        blocks.append(
            _Block(
                trained=_bytes(mine),
                last=0 if adapter.adapts else last,
                saved=saved if layer >= lowest else 0.0,
                kept=N * kept if layer >= lowest else 0.0,
                forward=N * forward,
                backward=N * backward,
            )
        )
    return blocks


def _bytes(shapes: Shapes) -> int:
    """In float32."""
    return 4 * sum(math.prod(shape) for shape in shapes.values())


def _held(config: RunConfig, grids: Grids) -> int:
    """Bytes of all weights, in the dtypes in which they are kept; words and scales have four bytes each."""
    shapes, adapter = stored_shapes(parameter_shapes(config.model), grids), config.adapter
    if not adapter.adapts:
        return _bytes(shapes)
    trained = trained_shapes(config.model, adapter)
    frozen = {name: shape for name, shape in shapes.items() if name not in trained}
    halves = adapter.adapter_base_dtype == "bfloat16"
    return _bytes(trained) + sum(
        math.prod(shape) * (2 if halves and len(shape) > 1 and name.rpartition(".")[0] not in grids else 4)
        for name, shape in frozen.items()
    )


def _gradients(config: RunConfig) -> int:
    """Gradients as wide as the inner layer at once, beyond those whose place another has left: of both factors of a
    gate, or of what a matrix was given and the adapter beside it."""
    return 2 if config.model.feed_forward in ("swiglu", "moe") or config.adapter.adapts else 1


def _update(config: RunConfig, twin: Twin) -> float:
    """Temporaries of the optimiser's update, bytes."""
    model = config.model
    embedding = 4 * model.vocab_size * model.n_embd
    if config.adapter.adapts:
        return _adapter_update(config, twin)
    shapes = [shape for name, shape in parameter_shapes(model).items() if name.startswith("blocks.")]
    largest, plain = (4 * max(math.prod(s) for s in shapes if len(s) <= most) for most in (3, 2))
    # Newton-Schulz holds the direction, its unit form, two summands and their sum, and a Gram matrix.
    muon = 6.0 * largest if config.optim.optimizer == "muon" else 0.0
    if twin == "torch":
        # A tied embedding gets two gradients, which are added into a third.
        return max(muon, 2.0 * embedding if model.tied_head else 0.0)
    return max(muon, 15.5 * plain, 6.5 * largest, (3.5 if model.tied_head else 4.5) * embedding)


def _adapter_update(config: RunConfig, twin: Twin) -> float:
    """The same, of adapters and what is trained whole beside them, of which there is one of each size."""
    trained = trained_shapes(config.model, config.adapter)
    adapters, whole = (
        4 * max((math.prod(shape) for name, shape in trained.items() if name.endswith(".weight") == kind), default=0)
        for kind in (False, True)
    )
    return 2.0 * max(adapters, whole) if twin == "torch" else max(15.5 * adapters, 4.5 * whole)


def _lengths(config: RunConfig) -> float:
    """Bytes of the matrices whose rows' lengths an adapter of DoRA's takes, and of their squares; 0 without."""
    shapes = parameter_shapes(config.model)
    matrices = [one.shape for one in placed(shapes, config.adapter)] if config.adapter.adapter == "dora" else []
    return 8.0 * max((math.prod(shape) for shape in matrices), default=0)


def planned_device(twin: Twin, train: TrainConfig, kind: str) -> tuple[Device, DType]:
    """Where a twin would compute on a machine that may not be this one, and in which dtype, by its trainer's rules.

    Args:
        twin: which.
        train: device and dtype that are asked for; auto takes a GPU where there is one, and bfloat16 where that has it
            from the start.
        kind: of the machine, "apple", "cuda" or "cpu".
    """
    device: Device = "gpu" if twin == "mlx" else "mps" if kind == "apple" else "cuda"
    if train.device == "cpu" or kind == "cpu":
        device = "cpu"
    if train.dtype == "auto":
        return device, "bfloat16" if device in ("gpu", "cuda") else "float32"
    return device, train.dtype


MADE = {"torch": 5.0, "mlx": 10.0}
"""Bytes per number of the matrix that a block makes from words, with its codes; MLX makes the next before it is done
with one (measured)."""


def _made(config: RunConfig, grids: Grids, twin: Twin) -> tuple[float, float]:
    """Bytes of the largest matrix of a block that is made from words where it is used, and of the head's."""
    head = "token_embedding" if config.model.tied_head else "head"
    sizes = {layer: math.prod(parameter_shapes(config.model)[f"{layer}.weight"]) for layer in grids}
    within = max((size for layer, size in sizes.items() if layer.startswith("blocks.")), default=0)
    return MADE[twin] * within, MADE["torch"] * sizes.get(head, 0)


def memory_plan(
    config: RunConfig, twin: Twin, device: Device = "cpu", grids: Grids = NOT_QUANTISED, together: Together = ALONE
) -> MemoryPlan:
    """Peak of one optimiser step as the trainers do it, with native dropout.

    Args:
        config: `vocab_size` must be settled. Of `train` it uses batch_size, grad_accum_steps, dtype (auto counts as
            float32) and gradient_checkpointing; of `optim` the optimiser.
        twin: whose step.
        device: where it computes.
        grids: matrices of the base that are quantised.
        together: the ranks that do the step; the plan is of one of them.
    """
    model, train = config.model, config.train
    half = train.dtype == "bfloat16"
    compute = 2 if half else 4
    N = train.batch_size * model.block_size
    ND, NV = N * model.n_embd, N * model.vocab_size
    blocks = _blocks(config, twin, compute, device, grids)
    made, made_head = (0.0, 0.0) if device == "gpu" else _made(config, grids, twin)
    weights, trained = _held(config, grids), _bytes(trained_shapes(model, config.adapter))
    moments = _bytes(optimizer_shapes(model, config.optim, config.adapter))
    embedding = 4 * model.vocab_size * model.n_embd
    # MLX recomputes for the gradients of weights once more.
    again = (2 if twin == "mlx" and not config.adapter.adapts else 1) if train.gradient_checkpointing else 0
    kept = [block.kept if train.gradient_checkpointing else block.saved for block in blocks]
    # The gradients of earlier micro-steps are there all the time, whole.
    earlier = trained if train.grad_accum_steps > 1 else 0

    def moment(name: str, gradients: float, activations: float, logits: float, temporary: float) -> MemoryPlan:
        return MemoryPlan(name, weights, moments, int(gradients), int(activations), int(logits), int(temporary))

    # Logits, log-softmax and gradient; the last norm and what it keeps.
    if twin == "torch":
        loss_bytes, after = 12 * NV, float(_torch_after(config) * ND * compute)
    else:
        # A fused loss keeps logits and their gradient as they are, and nothing in float32.
        loss_bytes, after = 2 * compute * NV, blocks[-1].forward
        if device == "cpu":
            # What is computed on the way to the loss takes the place of the last block's.
            loss_bytes = 4 * (loss_numbers(N, model.vocab_size) + (NV if half else 0))
            after = max(0.0, after - (loss_bytes - 8 * NV))
    plans = [
        moment("forward", earlier, sum(kept), 0, _lengths(config) + made),
        moment("loss", earlier, sum(kept) + after, loss_bytes + (embedding / 2 if half else 0), made_head),
        moment("update", trained, 0, 0, _update(config, twin) + ND * compute),
    ]
    behind = trained - sum(block.trained for block in blocks) if config.adapter.adapts else embedding
    for layer in reversed(range(lowest_trained(model, config.adapter), model.n_layer)):
        block = blocks[layer]
        # Gradients of the head, of the blocks behind this one, and of this one's last matrix.
        gradients = max(behind, earlier) + block.last
        computed_again = again * block.saved
        plans.append(moment("backward", gradients, sum(kept[: layer + 1]) + computed_again, 0, block.backward + made))
        behind += block.trained
    return max(_of_a_rank(plans, config, together), key=lambda one: one.total)


def _of_a_rank(plans: list[MemoryPlan], config: RunConfig, together: Together) -> list[MemoryPlan]:
    """The same of one of several ranks: what sums take on top, less what is dealt to them. Counted, not measured."""
    shapes, W = trained_shapes(config.model, config.adapter), together.ranks
    trained = _bytes(shapes)
    if W == 1:
        return plans
    if together.engine == "fsdp":
        rest = _bytes({name: shape for name, shape in shapes.items() if not name.startswith("blocks.")})
        # Whole are the block at work, the next, and what is outside of blocks; gradients, before they are dealt, twice.
        whole = 4 * (trained - rest) // config.model.n_layer + 3 * rest
        return [
            replace(p, weights=p.weights // W, moments=p.moments // W, gradients=p.gradients // W, ranks=whole)
            for p in plans
        ]
    weights, moments = plans[0].weights, plans[0].moments
    if together.engine == "ddp":
        plans = [replace(plan, ranks=trained) for plan in plans]  # its buckets stay
    else:
        plans = [
            *plans,
            MemoryPlan("sum", weights, moments, trained, 0, 0, 0, 2 * trained),
        ]  # what is sent, and the sum
    if together.shards_optimizer:
        owner, held, sent = owners({name: math.prod(shape) for name, shape in shapes.items()}, W), [0] * W, [0] * W
        for name, shape in optimizer_shapes(config.model, replace(config.optim, ema_decay=0.0), config.adapter).items():
            held[owner[name.partition(".")[2]]] += _bytes({name: shape})
        for name, rank in owner.items():
            sent[rank] += _bytes({name: shapes[name]})
        plans = [*plans, MemoryPlan("share", weights, moments, 0, 0, 0, 0, (1 + W) * max(sent))]
        plans = [replace(plan, moments=moments - sum(held) + max(held)) for plan in plans]
    return plans


def _torch_after(config: RunConfig) -> int:
    """Numbers per token and unit of width between the last block and the logits: its output, normed, dropout's mask."""
    model, trained = config.model, trained_shapes(config.model, config.adapter)
    unscaled = model.norm == "rmsnorm" and "final_norm.weight" in trained
    head = "token_embedding." if model.tied_head else "head."
    norm = unscaled + any(name.startswith(head) for name in trained) if model.final_norm else 0
    return 1 + norm + (1 if model.dropout else 0)


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
    return model.n_layer * model.n_head * (model.key_size + model.value_width) * number_bytes


def decode_bytes_per_token(model: ModelConfig, number_bytes: int, context: int, grid: Grid | None = None) -> int:
    """Bytes that generation must at least read for one more token of one sequence: its matrices, and the cache.

    Args:
        model: the network.
        number_bytes: size of one number in the compute dtype.
        context: tokens before it.
        grid: on which its matrices are quantised, with scales and biases of that size; None: they are not.
    """
    each = number_bytes if grid is None else grid.bits / 8 + 2 * number_bytes / grid.group_size
    return int(each * multiplied_parameters(model)) + context * kv_cache_bytes_per_token(model, number_bytes)
