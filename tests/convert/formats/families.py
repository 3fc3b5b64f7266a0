"""Random Llama and DeepSeek-V3 models of `transformers`, one per combination of options that could go wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from gpt_common.data.tokenizers import train_bpe_on

TEXT = "The cat sat on the mat, and the dog sat by the door. What did the cat say to the dog? " * 8
CONTEXT = 96
VOCABULARY = 280

LLAMA_SIZES = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LLAMAS: dict[str, dict[str, Any]] = {
    "one key head": {"num_key_value_heads": 1},
    "two key heads, tied": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "biases in attention": {"attention_bias": True, "num_key_value_heads": 2, "rms_norm_eps": 1e-5},
    "biases everywhere": {"attention_bias": True, "mlp_bias": True},
    "narrow heads": {"head_dim": 6, "num_key_value_heads": 2},
    "wide heads, slow wavelengths": {
        "head_dim": 20,
        "num_hidden_layers": 3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
}

DEEPSEEK_SIZES = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "hidden_size": 48,
    "intermediate_size": 80,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 20,
    "q_lora_rank": 28,
    "qk_nope_head_dim": 14,
    "qk_rope_head_dim": 10,
    "v_head_dim": 18,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
DEEPSEEKS: dict[str, dict[str, Any]] = {
    "as published": {},
    "queries without a latent": {"q_lora_rank": None, "n_shared_experts": 2, "first_k_dense_replace": 0},
    "halves": {"rope_interleave": False, "attention_bias": True},
    "gates not normalised": {"norm_topk_prob": False, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.0},
    "one group, biases": {"n_group": 1, "topk_group": 1, "attention_bias": True, "rms_norm_eps": 1e-5},
    "all groups, tied": {"topk_group": 4, "tie_word_embeddings": True, "num_experts_per_tok": 5},
    "dense alone": {"first_k_dense_replace": 3, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "one expert per token": {"num_experts_per_tok": 1, "n_routed_experts": 6, "n_group": 3},
}


@dataclass(frozen=True)
class Published:
    """A model of transformers and the folder it was saved to."""

    model: Any
    folder: Path

    def logits(self, tokens_BT: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """(B, T) -> (B, T, V)."""
        with torch.no_grad():
            return self.model(torch.from_numpy(tokens_BT)).logits.numpy()


def llama(options: dict[str, Any]) -> Any:
    """A `LlamaForCausalLM` with random weights."""
    return randomised(transformers.LlamaForCausalLM(transformers.LlamaConfig(**(LLAMA_SIZES | options))))


def deepseek(options: dict[str, Any]) -> Any:
    """A `DeepseekV3ForCausalLM` with random weights and routing biases."""
    return randomised(transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**(DEEPSEEK_SIZES | options))))


def randomised(model: Any, seed: int = 5) -> Any:
    """Almost every parameter with a standard deviation of 0.2, norms around one; routing biases of both signs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0.0, 0.05, generator=generator)
        # The end of text is never the likeliest: no continuation ends early.
        model.get_output_embeddings().weight[0] *= 0.01
    return model.eval()


def loaded_whole(folder: Path) -> Any:
    """The model that transformers reads from a folder: no tensor missing, unknown to it or of another shape."""
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


def save(model: Any, folder: Path) -> Published:
    """Save it by its own `save_pretrained`, with a small byte-level tokenizer of `VOCABULARY` tokens."""
    model.save_pretrained(folder)
    train_bpe_on([TEXT], VOCABULARY).save(folder / "ours.json")
    definition = json.loads((folder / "ours.json").read_text())["tokenizer"]
    (folder / "ours.json").unlink()
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    end = "<|endoftext|>"
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token=end, eos_token=end, unk_token=end
    )
    fast.save_pretrained(folder)
    return Published(model, folder)
