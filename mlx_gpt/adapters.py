"""Adapters: what is trained beside frozen matrices, LoRA and DoRA. In PyTorch: torch_gpt/adapters.py.

Which matrices get one, and its first values, are gpt_common/adapting/placement.py.

Shape suffixes: X any leading dimensions, B batch, T time, I inputs, O outputs, R rank, H heads, E experts, M rows with
one expert each.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.adapting.placement import adapter_shapes, initial_adapters, placed
from gpt_common.config import ModelConfig
from gpt_common.network.parameters import parameter_shapes
from mlx_gpt.kernels import add_linear, linear
from mlx_gpt.layers import Linear, StackedLinear, dropout


class Dropping:
    """What the adapters of a model drop of their inputs in the pass that is going on."""

    def __init__(self, rate: float, rng: str) -> None:
        self.rate = rate
        self.rng = rng
        self.key: mx.array | None = None

    def __call__(self, x_XI: mx.array, site: int) -> mx.array:
        """(X, I) -> (X, I), for the adapter of this site."""
        return dropout(x_XI, self.rate, self.key, site, self.rng)


class LoRALinear(Linear):
    """`x W.T + scale drop(x) A.T B.T + bias` (Hu et al. 2021, section 4.1): W (O, I) stays, A (R, I) and B (O, R) are
    trained.

    Args:
        rank: R.
        scale: on the product of A and B.
        drops: what is dropped of the adapter's input.
        site: of that dropout.
    """

    def __init__(
        self, inputs: int, outputs: int, bias: bool, rank: int, scale: float, drops: Dropping, site: int
    ) -> None:
        super().__init__(inputs, outputs, bias)
        self.lora_a = mx.zeros((rank, inputs))
        self.lora_b = mx.zeros((outputs, rank))
        self.scale = scale
        self.drops = drops
        self.site = site

    def __call__(self, x_XI: mx.array) -> mx.array:
        """(X, I) -> (X, O)."""
        return self.onto(super().__call__(x_XI), x_XI)

    def onto(self, y_XO: mx.array, x_XI: mx.array) -> mx.array:
        """y, and on top of it what the adapter adds for x: (X, O)."""
        h_XR = linear(self.drops(x_XI, self.site), self.lora_a.astype(x_XI.dtype))
        return add_linear(y_XO, h_XR, self.lora_b.astype(x_XI.dtype), self.scale)

    def per_head(self, x_BHTI: mx.array, first: int = 0) -> mx.array:
        """(B, H, T, I) -> (B, H, T, O / H - first): each head by its own rows of the adapted weight."""
        h_BHTR = x_BHTI @ self.lora_a.astype(x_BHTI.dtype).swapaxes(-2, -1)
        b_HKR = self.of_heads(self.lora_b, x_BHTI)[:, first:]
        return super().per_head(x_BHTI, first) + h_BHTR @ b_HKR.swapaxes(-2, -1) * self.scale

    def per_head_transposed(self, x_BHTO: mx.array) -> mx.array:
        """(B, H, T, O) -> (B, H, T, I): from each head's first O outputs back to inputs."""
        h_BHTR = x_BHTO @ self.of_heads(self.lora_b, x_BHTO)[:, : x_BHTO.shape[-1]]
        return super().per_head_transposed(x_BHTO) + h_BHTR @ self.lora_a.astype(x_BHTO.dtype) * self.scale

    def of_heads(self, b_OR: mx.array, x_BHTI: mx.array) -> mx.array:
        """Rows (H, O / H, R) in the dtype of x, which belong to the heads in turn."""
        return b_OR.astype(x_BHTI.dtype).reshape(x_BHTI.shape[1], -1, b_OR.shape[-1])


class DoRALinear(LoRALinear):
    """LoRA whose rows have lengths of their own (Liu et al. 2024, "DoRA", equation 5): `m / |W + scale B A|` times it.

    The length that is divided by counts as a number, not as something to differentiate (section 4.3).
    """

    def __init__(
        self, inputs: int, outputs: int, bias: bool, rank: int, scale: float, drops: Dropping, site: int
    ) -> None:
        super().__init__(inputs, outputs, bias, rank, scale, drops, site)
        self.magnitude = mx.zeros(outputs)

    def __call__(self, x_XI: mx.array) -> mx.array:
        """(X, I) -> (X, O)."""
        y_XO = self.onto(self.product(x_XI), x_XI)
        y_XO = y_XO * self.stretch().astype(x_XI.dtype)
        return y_XO if self.bias is None else y_XO + self.bias.astype(x_XI.dtype)

    def per_head(self, x_BHTI: mx.array, first: int = 0) -> mx.array:
        """(B, H, T, I) -> (B, H, T, O / H - first): each head by its own rows of the adapted weight."""
        stretch_HK1 = self.of_heads(self.stretch()[:, None], x_BHTI)[:, first:]
        return super().per_head(x_BHTI, first) * stretch_HK1.swapaxes(-2, -1)

    def per_head_transposed(self, x_BHTO: mx.array) -> mx.array:
        """(B, H, T, O) -> (B, H, T, I): from each head's first O outputs back to inputs."""
        stretch_HK1 = self.of_heads(self.stretch()[:, None], x_BHTO)[:, : x_BHTO.shape[-1]]
        return super().per_head_transposed(x_BHTO * stretch_HK1.swapaxes(-2, -1))

    def stretch(self) -> mx.array:
        """By how much each row is longer than it would be, (O), float32."""
        adapted_OI = self.matrix(self.magnitude.dtype) + self.scale * (self.lora_b @ self.lora_a)
        return self.magnitude / mx.stop_gradient(adapted_OI.square().sum(axis=-1).sqrt())


class LoRAStackedLinear(StackedLinear):
    """LoRA beside one matrix per expert: A (E, R, I), B (E, O, R). Arguments as LoRALinear's."""

    def __init__(
        self, experts: int, inputs: int, outputs: int, rank: int, scale: float, drops: Dropping, site: int
    ) -> None:
        super().__init__(experts, inputs, outputs)
        self.lora_a = mx.zeros((experts, rank, inputs))
        self.lora_b = mx.zeros((experts, outputs, rank))
        self.scale = scale
        self.drops = drops
        self.site = site

    def __call__(self, x_MI: mx.array, expert_M: mx.array) -> mx.array:
        """(M, I) -> (M, O), for rows in the order of their experts, `expert_M`."""
        h_MR = self.grouped(self.drops(x_MI, self.site), self.lora_a, expert_M)
        return super().__call__(x_MI, expert_M) + self.grouped(h_MR * self.scale, self.lora_b, expert_M)


KINDS = {"lora": LoRALinear, "dora": DoRALinear}


class Adapters:
    """All adapters of a model, put in place of its layers; its own weights freeze. Often there are none.

    Args:
        model: changed in place.
        shape: its shape.
        config: which adapters.
    """

    def __init__(self, model: nn.Module, shape: ModelConfig, config: AdapterConfig) -> None:
        self.config = config
        self.shapes = parameter_shapes(shape) if config.adapts else {}
        self.drops = Dropping(config.adapter_dropout, shape.dropout_rng)
        for one in placed(self.shapes, config):
            parent, _, leaf = one.name.rpartition(".")
            place, site = part(model, parent), 3 * shape.n_layer + 1 + one.number  # behind the sites of the blocks
            rest = (one.rank, one.scale, self.drops, site)
            if len(one.shape) == 3:
                experts, outputs, inputs = one.shape
                setattr(place, leaf, LoRAStackedLinear(experts, inputs, outputs, *rest))
            else:
                outputs, inputs = one.shape
                bias = f"{one.name}.bias" in self.shapes
                setattr(place, leaf, KINDS[config.adapter](inputs, outputs, bias, *rest))
        if config.adapts:
            freeze(model, set(adapter_shapes(self.shapes, config)), config.adapter_base_dtype)

    def new_pass(self, key: mx.array | None) -> None:
        """From here on the adapters drop by this key; None drops nothing."""
        self.drops.key = key

    def initialise(self, model: nn.Module, seed: int) -> None:
        """Set every adapter of the model to its initial value, beside weights that are there already."""
        weights = [
            (name, mx.array(value))
            for name, value in initial_adapters(
                self.shapes, self.config, seed, lambda layer: np.array(part(model, layer).matrix(mx.float32))
            )
        ]
        model.update(tree_unflatten(weights))


def part(model: nn.Module, name: str) -> Any:
    """The module of a model that a name like `blocks.0.attention` means."""
    found: Any = model
    for word in name.split(".") if name else ():
        found = found[int(word)] if word.isdigit() else getattr(found, word)
    return found


def freeze(model: nn.Module, trained: set[str], dtype: str) -> None:
    """Leave only the parameters `trained` to training; frozen matrices are kept in `dtype`."""
    model.freeze()
    places: Any = tree_flatten(model.parameters())
    for name, value in places:
        parent, _, leaf = name.rpartition(".")
        module = part(model, parent)
        if name in trained:
            module.unfreeze(keys=[leaf], recurse=False)
        elif dtype == "bfloat16" and value.ndim >= 2:
            setattr(module, leaf, value.astype(mx.bfloat16))
    for module in list[Any](model.modules()):
        if hasattr(module, "balances"):
            module.balances = False
