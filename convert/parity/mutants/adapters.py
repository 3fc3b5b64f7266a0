"""Wrong adapters: their product, scale, dropout and lengths, what is frozen, what a cache uses, how they are saved."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from convert.parity.mutants.climb import Change, Changes, mutants, wrap
from convert.parity.twins.replaced import replaced
from mlx_gpt import checkpoint, train
from mlx_gpt.adapters import DoRALinear, Dropping, LoRALinear, LoRAStackedLinear
from mlx_gpt.kernels import linear
from mlx_gpt.layers import Linear, StackedLinear


def _scaled(wrong: Any) -> Change:
    """LoRA's layers, whose scale becomes another."""

    def make(right: Any) -> Any:
        def init(self: Any, *args: Any) -> None:
            right(self, *args)
            self.scale = wrong(self)

        return init

    return wrap(LoRALinear, "__init__", make)


def _swapped(right: Any) -> Any:
    """A and B change places where the matrix is square, and the shapes allow it."""

    def onto(self: Any, y: Any, x: Any) -> Any:
        if self.weight.shape[0] != self.weight.shape[1]:
            return right(self, y, x)
        return y + linear(linear(self.drops(x, self.site), self.lora_b.T), self.lora_a.T) * self.scale

    return onto


def _shrinking(right: Any) -> Any:
    """The update decays a frozen matrix as well."""

    def update(self: Any, gradients: Any) -> Any:
        norm = right(self, gradients)
        for block in self.model.blocks:
            if isinstance(block.attention.out_proj, LoRALinear):
                block.attention.out_proj.weight = block.attention.out_proj.weight * (1 - 1e-3)
        return norm

    return update


def _differentiated(self: Any) -> mx.array:
    """As it is, with a gradient through the length that is divided by."""
    adapted_OI = self.weight + self.scale * (self.lora_b @ self.lora_a)
    return self.magnitude / adapted_OI.square().sum(axis=-1).sqrt()


def _without_lengths(right: Any) -> Any:
    """A run that is taken up begins with lengths of one."""

    def load(path: Any, model: Any, *rest: Any) -> Any:
        manifest = right(path, model, *rest)
        for block in model.blocks:
            if hasattr(block.attention.out_proj, "magnitude"):
                block.attention.out_proj.magnitude = mx.ones_like(block.attention.out_proj.magnitude)
        return manifest

    return load


GPT: Changes = {
    ("A", "adapter's scale forgotten"): lambda: _scaled(lambda _: 1.0),
    ("A", "rank over alpha"): lambda: _scaled(lambda self: 1 / self.scale),
    ("A", "A and B swapped on a square matrix"): lambda: wrap(LoRALinear, "onto", _swapped),
    ("A", "DoRA's length differentiated"): lambda: replaced(DoRALinear, "stretch", _differentiated),
    ("A", "DoRA's length that of the base"): lambda: replaced(
        DoRALinear, "stretch", lambda self: self.magnitude / mx.linalg.norm(self.weight, axis=1)
    ),
    ("A", "adapter drops nothing"): lambda: replaced(Dropping, "__call__", lambda self, x, site: x),  # noqa: ARG005
    ("A", "adapters share a mask"): lambda: wrap(
        Dropping,
        "__call__",
        lambda f: lambda self, x, site: f(self, x, 99),  # noqa: ARG005
    ),
    ("A", "base updated"): lambda: wrap(train.TrainStep, "clip_and_update", _shrinking),
    ("A", "lengths not taken up"): lambda: wrap(checkpoint, "load_checkpoint", _without_lengths),
}
LATENT: Changes = {
    ("A", "adapter ignored with the cache"): lambda: replaced(LoRALinear, "per_head", Linear.per_head),
    ("A", "adapter ignored by the cache's queries"): lambda: replaced(
        LoRALinear, "per_head_transposed", Linear.per_head_transposed
    ),
    ("A", "experts without their adapters"): lambda: replaced(LoRAStackedLinear, "__call__", StackedLinear.__call__),
}
ADAPTER_MUTANTS = [*mutants("gpt", GPT), *mutants("deepseek", LATENT)]
