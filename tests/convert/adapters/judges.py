"""peft and mlx-lm, asked for logits and texts; and small models and adapters to ask them about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convert.__main__ import main
from convert.contents import Contents
from convert.formats import native
from convert.options import WriteOptions
from convert.storage.tensors import from_array
from gpt_common.config import ModelConfig, RunConfig
from gpt_common.data.tokenizers import Tokenizer
from gpt_common.keyed import keyed_generator
from gpt_common.network.parameters import tensor_shapes

TOKENS = (np.arange(24, dtype=np.int32).reshape(2, 12) * 7) % 40
SIZE: dict[str, Any] = {"vocab_size": 40, "block_size": 16, "n_layer": 2, "n_head": 4, "n_embd": 32}
LLAMA: dict[str, Any] = {
    "norm": "rmsnorm", "positions": "rope", "attention": "grouped_query", "feed_forward": "swiglu",
    "feed_forward_width": 48, "n_kv_head": 2, "tied_head": False,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"bias": True, "feed_forward": "gelu_tanh"},
    "llama": LLAMA,
    "deepseek": {
        "norm": "rmsnorm", "norm_eps": 1e-6, "positions": "rope", "rope_layout": "interleaved", "attention": "latent",
        "kv_latent": 16, "q_latent": 16, "nope_size": 8, "rope_size": 4, "value_size": 8, "feed_forward": "moe",
        "n_dense_layer": 1, "feed_forward_width": 48, "n_expert": 4, "n_shared_expert": 1, "experts_per_token": 2,
        "expert_width": 16, "router": "sigmoid", "balancing": "bias", "tied_head": False,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """An adapter of peft's."""

    name: str
    family: str
    settings: dict[str, Any] = field(default_factory=dict)
    for_mlx_lm: bool = True


GPT2_TARGETS = ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]
DEEPSEEK_TARGETS = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"]
# peft 0.21 turns gate_proj, up_proj and down_proj into adapters of transformers' stacked experts.
PATTERNS = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}}
CASES = [
    Case("llama-lora", "llama", {"target_modules": "all-linear"}),
    Case("llama-dora", "llama", {"target_modules": "all-linear", "use_dora": True}),
    Case("llama-rslora", "llama", {"target_modules": ["q_proj", "v_proj"], "use_rslora": True, "r": 3}),
    Case("llama-patterns", "llama", {"target_modules": "all-linear", **PATTERNS}),
    Case("llama-last-layer", "llama", {"target_modules": ["o_proj"], "layers_to_transform": [1]}),
    Case("llama-whole", "llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}, False),
    Case("gpt2-lora", "gpt2", {"target_modules": GPT2_TARGETS}),
    Case("gpt2-dora", "gpt2", {"target_modules": GPT2_TARGETS, "use_dora": True}),
    Case("deepseek-lora", "deepseek", {"target_modules": DEEPSEEK_TARGETS}),
    Case("deepseek-latent", "deepseek", {"target_modules": ["kv_b_proj"], "use_dora": True}, for_mlx_lm=False),
]


def base_run(
    family: str, folder: Path, *, deviation: float = 0.1, tokenizer: Tokenizer | None = None, **size: int
) -> None:
    """A run of random weights, and the same model for transformers and mlx-lm.

    Args:
        deviation: of the weights.
        size: other sizes than SIZE's.
    """
    model = ModelConfig(**SIZE | size, **FAMILIES[family])
    tensors = {
        name: np.float32(deviation) * keyed_generator(2, name).standard_normal(shape, np.float32)
        + np.float32("norm" in name and name.endswith("weight"))
        for name, shape in tensor_shapes(model).items()
    }
    contents = Contents(
        path=folder, config=RunConfig(model=model), tensors={n: from_array(v, "F32") for n, v in tensors.items()}
    )
    native.write(contents, folder / "base", WriteOptions(tokenizer=tokenizer))
    for to, name in (("transformers", "hf"), ("mlx-lm", "mlx")):
        main(["export", str(folder / "base"), "--to", to, "-o", str(folder / name)])


def adapted(case: Case, model: Path, folder: Path) -> None:
    """An adapter of peft's over a model folder, every tensor of it random."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", "fan_in_fan_out": case.family == "gpt2"}
    network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    network = get_peft_model(network, LoraConfig(**{**settings, **case.settings}))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                draw = keyed_generator(4, name).standard_normal(parameter.shape, np.float32)
                parameter.add_(torch.from_numpy(draw) * 0.1)
    network.save_pretrained(folder)


def in_peft(model: Path, adapter: Path) -> Any:
    """A model of transformers' with an adapter."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return PeftModel.from_pretrained(network, str(adapter)).eval()


def in_mlx_lm(model: Path, adapter: Path) -> Any:
    """A model of mlx-lm's with an adapter."""
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model

    network = load_adapters(load_model(model)[0], str(adapter))
    network.eval()
    return network


def peft_logits(model: Path, adapter: Path) -> npt.NDArray[np.float32]:
    """Of TOKENS."""
    import torch

    with torch.no_grad():
        found: npt.NDArray[np.float32] = in_peft(model, adapter)(torch.from_numpy(TOKENS).long()).logits.numpy()
    return found


def mlx_lm_logits(model: Path, adapter: Path) -> npt.NDArray[np.float32]:
    """Of TOKENS."""
    import mlx.core as mx

    with mx.stream(mx.cpu):
        return np.array(in_mlx_lm(model, adapter)(mx.array(TOKENS)))


def peft_text(model: Path, adapter: Path, prompt: Sequence[int], count: int) -> list[int]:
    """The likeliest tokens after a prompt, by transformers' own `generate`."""
    import torch

    ids = torch.tensor([list(prompt)])
    settings: dict[str, Any] = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0}
    found = in_peft(model, adapter).generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
    return [int(token) for token in found[0, len(prompt) :]]


def mlx_lm_text(model: Path, adapter: Path, prompt: Sequence[int], count: int) -> list[int]:
    """The likeliest tokens after a prompt, by mlx-lm's own loop and its cache."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    found = generate_step(mx.array(list(prompt)), in_mlx_lm(model, adapter), max_tokens=count)
    return [int(token) for token, _ in found]
