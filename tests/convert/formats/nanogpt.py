"""What nanoGPT expects of a `ckpt.pt`, written from its public interface: names, keys, and how they are consumed.

Stands in for nanoGPT's `model.py`, `sample.py` and `train.py --init_from=resume`, none of which is part of this
project. It is stricter than the original nowhere, and as strict wherever the original would stop:

- `GPTConfig` takes exactly seven arguments: a further key in `model_args` is a TypeError;
- the state dict is loaded strictly, after `_orig_mod.` is removed, with `lm_head.weight` beside the tied embedding;
- AdamW is rebuilt with the decayed tensors (two or more dimensions) in the first group and the rest in the second,
  each in the order of `named_parameters`, and its state is loaded by position.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import nn
from torch.nn import functional as F


class Sizes(TypedDict):
    """The arguments that nanoGPT's configuration and ours call by the same names."""

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int


@dataclass
class GPTConfig:
    """The arguments that nanoGPT's class of this name takes, with its defaults."""

    block_size: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True


class LayerNorm(nn.Module):
    """Layer norm whose bias is optional, epsilon 1e-5."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    """Causal attention spelled out, so that no fused kernel is shared with the twins."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.heads = config.n_head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=2))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        y = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
        return self.c_proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a feed-forward layer with the exact GELU, each after a norm."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, config.bias)
        self.attn = Attention(config)
        self.ln_2 = LayerNorm(config.n_embd, config.bias)
        self.mlp = nn.ModuleDict(
            {
                "c_fc": nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias),
                "c_proj": nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias),
            }
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class GPT(nn.Module):
    """The model under nanoGPT's names; the output layer and the token embedding are one tensor."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "h": blocks,
                "ln_f": LayerNorm(config.n_embd, config.bias),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(B, T) ids -> (B, T, V) logits."""
        x = self.transformer["wte"](ids) + self.transformer["wpe"](torch.arange(ids.shape[1]))
        for block in self.transformer["h"].children():
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))

    def configure_optimizers(self, weight_decay: float, learning_rate: float, betas: tuple[float, float]) -> Any:
        """AdamW with nanoGPT's two groups, decayed tensors first."""
        parameters = list(self.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas)


def randomise(model: nn.Module, seed: int, std: float) -> None:
    """Every parameter from a normal distribution: no tensor is left at a value that hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "ln_" in name and name.endswith("weight") else 0.0, std, generator=generator)


def entries(
    model: GPT, optimizer: torch.optim.Optimizer, iter_num: int, prefix: str = "", **config: Any
) -> dict[str, Any]:
    """The six entries of the dictionary that `train.py` hands to `torch.save`.

    Args:
        prefix: what torch.compile and DistributedDataParallel put before every tensor's name.
        config: settings of `train.py`, beside a few that are always there.
    """
    return {
        "model": {prefix + name: tensor for name, tensor in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": dataclasses.asdict(model.config),
        "iter_num": iter_num,
        "best_val_loss": torch.tensor(2.5),
        "config": {"dataset": "shakespeare_char", "wandb_log": False, "backend": "nccl", "batch_size": 8, **config},
    }


def load_for_sampling(path: Path) -> GPT:
    """What `sample.py` does before it generates."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    model = GPT(GPTConfig(**checkpoint["model_args"]))
    _load_weights(model, checkpoint["model"])
    if "config" in checkpoint and "dataset" in checkpoint["config"]:
        Path("data", checkpoint["config"]["dataset"], "meta.pkl").exists()
    return model.eval()


def resume(path: Path, weight_decay: float, learning_rate: float, betas: tuple[float, float]) -> tuple[GPT, Any, int]:
    """What `train.py --init_from=resume` does before its loop: model, optimiser, and the iteration it begins with."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    names = ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size")
    model = GPT(GPTConfig(dropout=0.0, **{name: checkpoint["model_args"][name] for name in names}))
    _load_weights(model, checkpoint["model"])
    optimizer = model.configure_optimizers(weight_decay, learning_rate, betas)
    optimizer.load_state_dict(checkpoint["optimizer"])
    # The loop compares and formats both numbers.
    f"{checkpoint['iter_num'] + 1:d} {float(checkpoint['best_val_loss']) < 1e9} {checkpoint['best_val_loss']:.4f}"
    return model, optimizer, checkpoint["iter_num"]


def _load_weights(model: GPT, tensors: dict[str, torch.Tensor]) -> None:
    prefix = "_orig_mod."
    model.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, strict=True)


def train(
    model: GPT,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    first: int = 0,
    grad_clip: float = 1.0,
) -> list[float]:
    """A plain PyTorch loop: losses of the updates that follow `first` finished ones."""
    losses = []
    for step, (tokens, labels) in enumerate(batches, start=first):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        loss = F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


def learning_rate(step: int) -> float:
    """Falls from 3e-3 to nothing over 300 updates, so that a step number that is off shows in the losses too."""
    return 3e-3 * (1 - step / 300)
