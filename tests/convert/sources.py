"""Checkpoints with every bit pattern of finite numbers, made with PyTorch and numpy and none of the code under test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from gpt_common.config import ModelConfig
from gpt_common.network.parameters import parameter_shapes, tensor_shapes

BITS: dict[str, tuple[type[np.uint16] | type[np.uint32], torch.dtype]] = {
    "F32": (np.uint32, torch.float32),
    "BF16": (np.uint16, torch.bfloat16),
    "F16": (np.uint16, torch.float16),
}
SPECIAL = {
    # Zeros, subnormals, the smallest normal number, the largest number, of both signs.
    "F32": [0, 1 << 31, 1, 0x807FFFFF, 0x00800000, 0x80800000, 0x7F7FFFFF, 0xFF7FFFFF],
    "BF16": [0, 0x8000, 1, 0x807F, 0x0080, 0x8080, 0x7F7F, 0xFF7F],
    "F16": [0, 0x8000, 1, 0x83FF, 0x0400, 0x8400, 0x7BFF, 0xFBFF],
}
NOT_FINITE = {
    # Infinities, quiet and signalling NaNs with payloads, of both signs.
    "F32": [0x7F800000, 0xFF800000, 0x7FC01234, 0x7F800001, 0xFFBFFFFF],
    "BF16": [0x7F80, 0xFF80, 0x7FC5, 0x7F81, 0xFFBF],
    "F16": [0x7C00, 0xFC00, 0x7E15, 0x7C01, 0xFDFF],
}
EXPONENT = {"F32": 0x7F800000, "BF16": 0x7F80, "F16": 0x7C00}


@dataclass(frozen=True)
class Model:
    """A configuration and weights of random bits."""

    config: ModelConfig
    dtype: str
    seed: int
    moments: bool
    step: int

    def weights(self) -> dict[str, torch.Tensor]:
        """Weights under our names, (out, in); every bit pattern of a finite number is as likely as another."""
        return {
            name: bits(shape, self.dtype, (self.seed, i))
            for i, (name, shape) in enumerate(tensor_shapes(self.config).items())
        }

    def all_moments(self) -> dict[str, torch.Tensor]:
        """exp_avg.<name> and exp_avg_sq.<name>, or nothing."""
        return {
            f"{moment}.{name}": bits(shape, "F32", (self.seed, i, j))
            for j, moment in enumerate(("exp_avg", "exp_avg_sq"))
            for i, (name, shape) in enumerate(self.shapes.items())
            if self.moments
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return parameter_shapes(self.config)


def bits(shape: tuple[int, ...], dtype: str, seed: tuple[int, ...]) -> torch.Tensor:
    """Random bits of finite numbers, special values among them."""
    kind, torch_dtype = BITS[dtype]
    generator = np.random.default_rng(seed)
    flat = generator.integers(0, np.iinfo(kind).max, int(np.prod(shape)), kind, endpoint=True)
    special = np.array(SPECIAL[dtype], kind)[: flat.size]
    flat[generator.permutation(flat.size)[: special.size]] = special
    exponent = kind(EXPONENT[dtype])
    flat[(flat & exponent) == exponent] ^= kind(1 << (int(EXPONENT[dtype]).bit_length() - 1))
    signed = flat.view(np.int32 if kind == np.uint32 else np.int16)
    return torch.from_numpy(signed).view(torch_dtype).reshape(shape)


def raw(tensor: torch.Tensor) -> bytes:
    """The bits of a tensor, in order."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@st.composite
def models(draw: st.DrawFn, /, **fixed: Any) -> Model:
    """Any model that a format can hold; `fixed` are fields of its configuration."""
    heads, head_size = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    tied = fixed.get("tied_head", draw(st.booleans()))
    fields = {
        "vocab_size": draw(st.integers(1, 30)),
        "block_size": draw(st.integers(1, 12)),
        "n_layer": draw(st.integers(1, 3)),
        "n_head": heads,
        "n_embd": heads * head_size,
        "bias": draw(st.booleans()),
        "feed_forward": draw(st.sampled_from(["gelu", "gelu_tanh"])),
        "tied_head": tied,
        "head_bias": not tied and draw(st.booleans()),
        "dropout": draw(st.sampled_from([0.0, 0.25])),
    }
    return Model(
        config=ModelConfig(**{**fields, **fixed}),
        dtype=draw(st.sampled_from(sorted(BITS))),
        seed=draw(st.integers(0, 2**32)),
        moments=draw(st.booleans()),
        step=draw(st.integers(1, 10**6)),
    )


@st.composite
def llamas(draw: st.DrawFn) -> Model:
    """Any Llama that both libraries can hold, in the one way in which its configuration comes back."""
    heads, width = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([2, 4]))
    bias = draw(st.booleans())
    config = ModelConfig(
        vocab_size=draw(st.integers(1, 30)),
        block_size=draw(st.integers(1, 12)),
        n_layer=draw(st.integers(1, 3)),
        n_head=heads,
        n_kv_head=draw(st.sampled_from([0, *(g for g in (1, 2) if g < heads)])),
        n_embd=heads * width,
        head_size=draw(st.sampled_from([0, 6])),
        norm="rmsnorm",
        norm_eps=draw(st.sampled_from([1e-5, 1e-6])),
        positions="rope",
        rope_theta=draw(st.sampled_from([1e4, 5e5])),
        attention="grouped_query",
        feed_forward="swiglu",
        feed_forward_width=draw(st.integers(1, 9)),
        bias=bias,
        attention_bias=not bias and draw(st.booleans()),
        tied_head=draw(st.booleans()),
        dropout=draw(st.sampled_from([0.0, 0.25])),
    )
    return _with_bits(draw, config)


@st.composite
def deepseeks(draw: st.DrawFn, /, **fixed: Any) -> Model:
    """Any DeepSeek-V3 that transformers can hold; `fixed` are fields of its configuration."""
    layers, groups, reachable = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    fields = {
        "vocab_size": draw(st.integers(1, 30)),
        "block_size": draw(st.integers(1, 12)),
        "n_layer": layers,
        "n_head": draw(st.integers(1, 3)),
        "n_embd": draw(st.integers(1, 9)),
        "norm": "rmsnorm",
        "positions": "rope",
        "rope_layout": draw(st.sampled_from(["halves", "interleaved"])),
        "attention": "latent",
        "attention_bias": draw(st.booleans()),
        "kv_latent": draw(st.integers(1, 5)),
        "q_latent": draw(st.integers(0, 4)),
        "nope_size": draw(st.integers(1, 4)),
        "rope_size": draw(st.sampled_from([2, 4])),
        "value_size": draw(st.integers(1, 4)),
        "feed_forward": "moe",
        "feed_forward_width": draw(st.integers(1, 9)),
        "n_dense_layer": draw(st.integers(0, layers)),
        "n_expert": groups * draw(st.integers(2, 4)),
        "n_shared_expert": draw(st.integers(1, 2)),
        "expert_width": draw(st.integers(1, 5)),
        "n_expert_group": groups,
        "groups_per_token": min(groups, reachable),
        "experts_per_token": draw(st.integers(1, 2)),
        "router": "sigmoid",
        "router_normalise": draw(st.booleans()),
        "router_scale": draw(st.sampled_from([1.0, 2.5])),
        "balancing": "bias",
        "tied_head": draw(st.booleans()),
    }
    return _with_bits(draw, ModelConfig(**{**fields, **fixed}))


def _with_bits(draw: st.DrawFn, config: ModelConfig) -> Model:
    dtype, seed = draw(st.sampled_from(sorted(BITS))), draw(st.integers(0, 2**32))
    return Model(config=config, dtype=dtype, seed=seed, moments=False, step=0)


CHARACTERS = "\n abcdeé€😀z"
MODEL = Model(
    config=ModelConfig(vocab_size=11, block_size=5, n_layer=2, n_head=2, n_embd=6, bias=True),
    dtype="F32",
    seed=3,
    moments=True,
    step=12,
)
"""Two layers, biases and moments: what every format can hold but for the form of its GELU."""

# nanoGPT's and transformers' names, spelled out a second time on purpose.
GPT2_NAMES = {
    "token_embedding": "wte",
    "position_embedding": "wpe",
    "attention_norm": "ln_1",
    "attention.qkv_proj": "attn.c_attn",
    "attention.out_proj": "attn.c_proj",
    "feed_forward_norm": "ln_2",
    "feed_forward.up_proj": "mlp.c_fc",
    "feed_forward.down_proj": "mlp.c_proj",
    "final_norm": "ln_f",
}


def gpt2_name(name: str) -> str:
    """nanoGPT's name of one of our tensors."""
    stem, kind = name.rsplit(".", 1)
    if stem == "head":
        return f"lm_head.{kind}"
    if stem.startswith("blocks."):
        _, layer, part = stem.split(".", 2)
        return f"transformer.h.{layer}.{GPT2_NAMES[part]}.{kind}"
    return f"transformer.{GPT2_NAMES[stem]}.{kind}"


def nanogpt_entries(model: Model, prefix: str = "") -> dict[str, Any]:
    """What nanoGPT's train.py saves."""
    config, weights, moments = model.config, model.weights(), model.all_moments()
    named = {prefix + gpt2_name(name): tensor for name, tensor in weights.items()}
    named[f"{prefix}lm_head.weight"] = named[f"{prefix}transformer.wte.weight"]
    decayed = [name for name, tensor in weights.items() if tensor.dim() >= 2]
    order = [*decayed, *(name for name in weights if name not in decayed)]
    step = torch.tensor(float(model.step))
    state = {
        i: {"step": step, "exp_avg": moments[f"exp_avg.{name}"], "exp_avg_sq": moments[f"exp_avg_sq.{name}"]}
        for i, name in enumerate(order)
        if moments
    }
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in order]
    groups = [
        {"params": parameters[: len(decayed)], "weight_decay": 0.1},
        {"params": parameters[len(decayed) :], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    keys = ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout")
    return {
        "model": named,
        "optimizer": {**optimizer.state_dict(), "state": state},
        "model_args": {key: getattr(config, key) for key in keys},
        "iter_num": model.step,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "shakespeare_char", "learning_rate": 6e-4, "max_iters": 5000, "decay_lr": True},
    }


@contextmanager
def folder() -> Iterator[Path]:
    """A temporary folder for one example."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
