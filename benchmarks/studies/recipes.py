"""`python benchmarks/studies/recipes.py "learning_rate=1e-2 soft_cap=15"`: does a trick of fast trainers pay here?

Trains a model of nanoGPT's size for a CPU on the characters of Tiny Shakespeare, with a change or several, and prints
the loss on each half of the validation text. Recipes are chosen by the first and reported by the second. What is tried
here and did not pay is not in the twins: this small model is not theirs, and no more than a bench for such questions.

Shape suffixes: B batch, T time, D model width, H heads, K head size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_common.cli import parse
from gpt_common.data import open_dataset
from gpt_common.errors import UserError, run_main
from gpt_common.keyed import keyed_generator
from torch_gpt.optim import NEWTON_SCHULZ

D, H, LAYERS, T = 128, 4, 4, 64
# Amsel et al. 2025, "The Polar Express", for singular values from 1e-3: each step its own polynomial.
POLAR = ((8.1566, -22.4833, 15.8788), (4.0429, -2.8089, 0.5), (3.8917, -2.7725, 0.5061), (3.2858, -2.3681, 0.4645))


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """Try changes of a recipe."""

    changes: tuple[str, ...] = ("",)
    """What to try, each a text: `steps=225 batch=8 momentum=0.8`. Without a name nothing is changed."""
    seeds: tuple[int, ...] = (1,)
    """One training for each."""
    data_dir: str = "data"
    """Folder of prepared corpora."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What may be changed; the defaults are Muon's as in facts of others: rotary, ReLU squared, norms of q and k."""

    steps: int = 150
    batch: int = 12
    learning_rate: float = 5e-3
    warmup: int = 30
    momentum: float = 0.95
    momentum_warmup: int = 0
    """Steps in which the momentum rises from 0.85."""
    newton_schulz: int = 5
    polar: bool = False
    clip: float = 1.0
    decay: float = 0.1
    cautious: bool = False
    """Decay only where the update goes the same way."""
    beta1: float = 0.9
    beta2: float = 0.99
    embedding_rate: float = 1.0
    """Factor on the rate of embeddings."""
    theta: float = 1e4
    rms_norm: bool = False
    qk_norm: bool = True
    zero_projections: bool = False
    untied: bool = False
    embedding_norm: bool = False
    value_embeddings: bool = False
    residual_mixing: bool = False
    """Each block adds a learnt share of the embedding to its input."""
    smear: bool = False
    """Each token's embedding gets a learnt share of the one before."""
    bigrams: bool = False
    """An embedding for each pair of tokens: 540,800 parameters more."""
    soft_cap: float = 0.0
    short_context: int = 0
    short_share: float = 0.3
    """Of the steps, with windows of `short_context`."""
    small_batch: int = 0
    small_share: float = 0.4
    """Of the steps, with batches of `small_batch`."""


class Norm(nn.Module):
    """Layer norm or RMS norm, without a bias."""

    def __init__(self, width: int, rms: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.rms = rms

    def forward(self, x: Tensor) -> Tensor:
        """The last dimension, normalised."""
        if self.rms:
            return F.rms_norm(x, self.weight.shape, self.weight, 1e-5)
        return F.layer_norm(x, self.weight.shape, self.weight, None, 1e-5)


class Block(nn.Module):
    """Attention and feed-forward."""

    def __init__(self, recipe: Recipe, V: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.attention_norm, self.feed_forward_norm = Norm(D, recipe.rms_norm), Norm(D, recipe.rms_norm)
        self.q_norm, self.k_norm = Norm(D // H, True), Norm(D // H, True)
        self.qkv, self.out = matrix(D, 3 * D), matrix(D, D, 0 if recipe.zero_projections else 0.02 / math.sqrt(8))
        self.up, self.down = matrix(D, 4 * D), matrix(4 * D, D, 0 if recipe.zero_projections else 0.02 / math.sqrt(8))
        if recipe.value_embeddings:
            self.values = nn.Embedding(V, D)
            nn.init.normal_(self.values.weight, std=0.02)
        if recipe.residual_mixing:
            self.mix = nn.Parameter(torch.tensor([1.0, 0.0]))

    def forward(self, x_BTD: Tensor, first_BTD: Tensor, tokens_BT: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if self.recipe.residual_mixing:
            x_BTD = self.mix[0] * x_BTD + self.mix[1] * first_BTD
        q, k, v = self.qkv(self.attention_norm(x_BTD)).chunk(3, -1)
        if self.recipe.value_embeddings:
            v = v + self.values(tokens_BT)
        q, k, v = (x.unflatten(-1, (H, -1)).transpose(1, 2) for x in (q, k, v))
        if self.recipe.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        y = F.scaled_dot_product_attention(rotated(q, angles), rotated(k, angles), v, is_causal=True)
        x_BTD = x_BTD + self.out(y.transpose(1, 2).flatten(2))
        y_BTD: Tensor = self.down(F.relu(self.up(self.feed_forward_norm(x_BTD))).square())
        return x_BTD + y_BTD


class Model(nn.Module):
    """A GPT with the changes in question."""

    def __init__(self, recipe: Recipe, V: int) -> None:
        super().__init__()
        self.recipe, self.V = recipe, V
        self.embedding = nn.Embedding(V, D)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(recipe, V) for _ in range(LAYERS))
        self.norm, self.embedding_norm = Norm(D, recipe.rms_norm), Norm(D, True)
        if recipe.untied:
            self.head = matrix(D, V, 0)
        if recipe.smear:
            self.before = nn.Parameter(torch.zeros(D))
        if recipe.bigrams:
            self.pairs = nn.Embedding(V * V, D)
            nn.init.zeros_(self.pairs.weight)
        turns = torch.arange(T)[:, None] * recipe.theta ** (-torch.arange(0, D // H, 2) / (D // H))
        self.angles = turns.cos(), turns.sin()

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits (B, T, V)."""
        x_BTD = self.embedding(tokens_BT)
        if self.recipe.bigrams:
            x_BTD = x_BTD + self.pairs(F.pad(tokens_BT[:, :-1], (1, 0)) * self.V + tokens_BT)
        if self.recipe.embedding_norm:
            x_BTD = self.embedding_norm(x_BTD)
        if self.recipe.smear:
            x_BTD = x_BTD + self.before * F.pad(x_BTD[:, :-1], (0, 0, 1, 0))
        first_BTD, (cos, sin) = x_BTD, self.angles
        for block in self.blocks:
            x_BTD = block(x_BTD, first_BTD, tokens_BT, (cos[: tokens_BT.shape[1]], sin[: tokens_BT.shape[1]]))
        x_BTD = self.norm(x_BTD)
        logits: Tensor = self.head(x_BTD) if self.recipe.untied else F.linear(x_BTD, self.embedding.weight)
        return self.recipe.soft_cap * torch.tanh(logits / self.recipe.soft_cap) if self.recipe.soft_cap else logits


def matrix(inputs: int, outputs: int, std: float = 0.02) -> nn.Linear:
    """A linear layer without a bias, normal."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=std)
    return layer


def rotated(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions, by halves."""
    a, b = x.chunk(2, -1)
    cos, sin = angles
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def orthogonal(x: Tensor, recipe: Recipe) -> Tensor:
    """As in the twins, with a choice of polynomials."""
    wide = x.shape[0] <= x.shape[1]
    y = x if wide else x.T
    y = y / (y.norm() + 1e-7)
    for step in range(recipe.newton_schulz):
        a, b, c = POLAR[min(step, 3)] if recipe.polar else NEWTON_SCHULZ
        gram = y @ y.T
        y = a * y + (b * gram + c * (gram @ gram)) @ y
    found: Tensor = y if wide else y.T
    return found


def train(recipe: Recipe, tokens: Tensor, V: int, seed: int) -> tuple[Model, float]:
    """A trained model, and the CPU seconds of its training."""
    torch.manual_seed(seed)
    model = Model(recipe, V)
    matrices = [p for name, p in model.blocks.named_parameters() if p.ndim == 2 and "values" not in name]
    moments = [torch.zeros_like(p) for p in matrices]
    mine = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in mine]
    wide = {"params": [p for p in rest if p.ndim == 2], "weight_decay": recipe.decay, "share": recipe.embedding_rate}
    narrow = {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0, "share": 1.0}
    adamw = torch.optim.AdamW([wide, narrow], betas=(recipe.beta1, recipe.beta2), fused=True)
    began = time.process_time()
    for step in range(recipe.steps):
        rate = recipe.learning_rate * min(1, (step + 1) / (recipe.warmup + 1)) * (1 - step / recipe.steps)
        length = recipe.short_context if step < recipe.short_share * recipe.steps and recipe.short_context else T
        small = recipe.small_batch and step < recipe.small_share * recipe.steps
        rows = (recipe.small_batch if small else recipe.batch) * T // length
        places = torch.from_numpy(keyed_generator(seed, "recipe", step).integers(0, len(tokens) - length - 1, rows))
        windows = tokens[places[:, None] + torch.arange(length + 1)]
        F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()).backward()
        if recipe.clip:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        rising = min(1, step / recipe.momentum_warmup) if recipe.momentum_warmup else 1
        momentum = 0.85 + (recipe.momentum - 0.85) * rising if recipe.momentum_warmup else recipe.momentum
        with torch.no_grad():
            for p, m in zip(matrices, moments, strict=True):
                assert p.grad is not None
                m.lerp_(p.grad, 1 - momentum)
                way = orthogonal(p.grad.lerp(m, momentum), recipe)
                kept = (way * p > 0).float() if recipe.cautious else 1.0
                p.mul_(1 - rate * recipe.decay * kept)
                p.sub_(way, alpha=rate * 0.2 * math.sqrt(max(p.shape)))
        for group in adamw.param_groups:
            group["lr"] = rate * group["share"]
        adamw.step()
        model.zero_grad(set_to_none=True)
    return model, time.process_time() - began


@torch.no_grad()
def loss(model: Model, tokens: Tensor) -> float:
    """Mean over all windows of a text, nats per token."""
    whole = (len(tokens) - 1) // T * T
    inputs, labels = tokens[:whole].reshape(-1, T), tokens[1 : whole + 1].reshape(-1, T)
    nats = [F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")
            for x, y in zip(inputs.split(128), labels.split(128), strict=True)]  # fmt: skip
    return float(sum(nats)) / whole


def changed(text: str) -> Recipe:
    """The recipe of `name=value name=value`.

    Raises:
        UserError: no such name, or no such value.
    """
    kinds: dict[str, Any] = {name: type(value) for name, value in dataclasses.asdict(Recipe()).items()}
    values: dict[str, Any] = {}
    for word in text.split():
        name, _, value = word.partition("=")
        if name not in kinds:
            raise UserError(f"no '{name}' in a recipe: there are {', '.join(kinds)}")
        try:
            values[name] = value in ("1", "true", "True") if kinds[name] is bool else kinds[name](value)
        except ValueError:
            raise UserError(f"{word}: {name} is a number") from None
    return Recipe(**values)


def splits(data_dir: Path) -> tuple[Tensor, Tensor, int]:
    """Tiny Shakespeare by characters, for training and validation, and the size of its vocabulary."""
    dataset = open_dataset("shakespeare_char", data_dir)
    text, val = (torch.from_numpy(np.asarray(split, np.int64)) for split in (dataset.train, dataset.val))
    return text, val, dataset.tokenizer.vocab_size


def main(argv: Sequence[str]) -> None:
    """The command."""
    command = parse(Recipes, argv, prog="python benchmarks/studies/recipes.py")
    recipes = [changed(text) for text in command.changes]
    text, val, vocab_size = splits(Path(command.data_dir))
    torch.set_num_threads(1)
    half = len(val) // 2
    print("first half  second half  CPU s  change")
    for words, recipe in zip(command.changes, recipes, strict=True):
        for seed in command.seeds:
            model, seconds = train(recipe, text, vocab_size, seed)
            print(
                f"{loss(model, val[:half]):10.4f}  {loss(model, val[half:]):11.4f}  {seconds:5.1f}  {words}", flush=True
            )


if __name__ == "__main__":
    run_main(main)
