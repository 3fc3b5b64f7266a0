"""Runs with random weights, of every architecture and tokenizer that GGUF holds; their likeliest tokens are clear."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from gpt_common.config import ModelConfig, RunConfig, to_dict, to_toml
from gpt_common.data.tokenizers import CharTokenizer, Gpt2Tokenizer, Tokenizer, identity, train_bpe_on
from gpt_common.network.parameters import tensor_shapes
from gpt_common.training.checkpoint import write_checkpoint
from gpt_common.training.manifest import MODEL_FILE, TOKENIZER_FILE, Manifest, tensor_hashes

CHARACTERS = "\n !\"'(),-.0123456789:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyzéü½漢字😀€"
TEXT = "The cat sat on the mat, and the dog sat by the door. What did the cat say to the dog? 1234 été " * 8
TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "characters": lambda: CharTokenizer(CHARACTERS, end_of_text=True),
    "bpe": lambda: train_bpe_on([TEXT], 400),
    "gpt2": Gpt2Tokenizer,
}
SIZES: dict[str, Any] = {"block_size": 128, "n_layer": 2, "n_head": 4, "n_embd": 64}
_LLAMA: dict[str, Any] = {
    "norm": "rmsnorm", "positions": "rope", "attention": "grouped_query", "feed_forward": "swiglu", "n_kv_head": 2,
}  # fmt: skip
_DEEPSEEK: dict[str, Any] = {
    "norm": "rmsnorm", "positions": "rope", "rope_layout": "interleaved", "attention": "latent", "n_layer": 3,
    "q_latent": 64, "kv_latent": 32, "nope_size": 16, "rope_size": 16, "value_size": 16, "feed_forward": "moe",
    "n_dense_layer": 1, "n_expert": 8, "n_shared_expert": 1, "experts_per_token": 2, "expert_width": 64,
    "n_expert_group": 4, "groups_per_token": 2, "router": "sigmoid", "router_scale": 2.5, "balancing": "bias",
    "tied_head": False, "norm_eps": 1e-6,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"feed_forward": "gelu_tanh", "bias": True},
    "gpt2 without biases": {"feed_forward": "gelu_tanh", "tied_head": False},
    "llama": _LLAMA | {"tied_head": False, "rope_theta": 5e5},
    "llama with biases": _LLAMA | {"attention_bias": True, "head_size": 32},
    "llama, biases everywhere": _LLAMA | {"bias": True, "n_kv_head": 0},
    "qwen3": _LLAMA | {"qk_norm": True, "head_size": 32},
    "deepseek": _DEEPSEEK,
    "deepseek-v2": _DEEPSEEK
    | {
        "q_latent": 0, "n_expert_group": 1, "groups_per_token": 1, "router": "softmax", "balancing": "none",
        "router_normalise": False, "router_scale": 1.0,
    },
}  # fmt: skip
SEEDS = {
    ("gpt2", "characters"): 0, ("gpt2", "bpe"): 0, ("gpt2", "gpt2"): 7, ("llama", "characters"): 5, ("llama", "bpe"): 6,
    ("llama", "gpt2"): 6, ("deepseek", "bpe"): 2, ("deepseek-v2", "bpe"): 3, ("qwen3", "bpe"): 5,
    ("gpt2 without biases", "bpe"): 7, ("llama with biases", "bpe"): 4, ("llama, biases everywhere", "bpe"): 5,
}  # fmt: skip
"""Seeds of eight with which no two tokens come near each other in 64 steps after PROMPT, and no text ends."""
PROMPT = [5, 17, 40]


def model_of(family: str, tokenizer: Tokenizer, **changes: Any) -> ModelConfig:
    """A small model of a family, with as many rows as a tokenizer has tokens."""
    return ModelConfig(**{"vocab_size": tokenizer.vocab_size, **SIZES, **FAMILIES[family], **changes})


def weights_of(model: ModelConfig, seed: int = 0, gain: float = 2.0) -> dict[str, np.ndarray[Any, Any]]:
    """Random weights by name.

    Args:
        gain: of matrices. With 2 attention looks at few places and the next token is another one; with 1 numbers stay
            of a size from layer to layer, as in models that were trained, and so do errors.
    """
    generator = np.random.default_rng(seed)
    made = {}
    for name, shape in tensor_shapes(model).items():
        noise = generator.standard_normal(shape)
        if "norm" in name:
            value = float(name.endswith("weight")) + 0.2 * noise
        elif name.endswith("routing_bias"):
            value = 0.05 * noise
        elif "embedding" in name:
            value = (2.0 if "position" in name else 0.3) * noise
        elif len(shape) == 1:
            value = 0.2 * noise
        else:
            value = noise * gain / np.sqrt(shape[-1])
        made[name] = value.astype(np.float32)
    return made


def write_run(folder: Path, tokenizer: Tokenizer | None, model: ModelConfig, seed: int = 0, gain: float = 2.0) -> Path:
    """A run of this project with one checkpoint."""
    weights = weights_of(model, seed, gain)

    def files(place: Path) -> dict[str, dict[str, str]]:
        save_file(weights, place / MODEL_FILE)
        if tokenizer is not None:
            tokenizer.save(place / TOKENIZER_FILE)
        return {MODEL_FILE: tensor_hashes(place / MODEL_FILE)}

    config = RunConfig(model=model)
    manifest = Manifest(step=0, config=to_dict(config), tokenizer=None if tokenizer is None else identity(tokenizer))
    write_checkpoint(folder, manifest, write_files=files, best=True, keep=1)
    (folder / "config.toml").write_text(to_toml(config))
    return folder
