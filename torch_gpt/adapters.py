"""Adapters: what is trained beside frozen matrices, LoRA and DoRA. In MLX: mlx_gpt/adapters.py.

Which matrices get one, and its first values, are gpt_common/adapting/placement.py.

Shape suffixes: X any leading dimensions, B batch, T time, I inputs, O outputs, R rank, H heads, E experts, M rows with
one expert each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.adapting.placement import adapter_shapes, initial_adapters, placed
from gpt_common.config import ModelConfig
from gpt_common.network.parameters import parameter_shapes
from torch_gpt.kernels import add_linear, linear
from torch_gpt.layers import Linear, StackedLinear, dropout


class Dropping:
    """What the adapters of a model drop of their inputs in the pass that is going on."""

    def __init__(self, rate: float, rng: str) -> None:
        self.rate = rate
        self.rng = rng
        self.key: Tensor | None = None

    def __call__(self, x_XI: Tensor, site: int) -> Tensor:
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
        self.lora_a = nn.Parameter(torch.zeros(rank, inputs))
        self.lora_b = nn.Parameter(torch.zeros(outputs, rank))
        self.scale = scale
        self.drops = drops
        self.site = site

    def forward(self, x_XI: Tensor) -> Tensor:
        """(X, I) -> (X, O)."""
        return self.onto(super().forward(x_XI), x_XI)

    def onto(self, y_XO: Tensor, x_XI: Tensor) -> Tensor:
        """y, and on top of it what the adapter adds for x: (X, O)."""
        h_XR = linear(self.drops(x_XI, self.site), self.lora_a.to(x_XI.dtype))
        return add_linear(y_XO, h_XR, self.lora_b.to(x_XI.dtype), self.scale)

    def per_head(self, x_BHTI: Tensor, first: int = 0) -> Tensor:
        """(B, H, T, I) -> (B, H, T, O / H - first): each head by its own rows of the adapted weight."""
        h_BHTR = x_BHTI @ self.lora_a.to(x_BHTI.dtype).transpose(-2, -1)
        b_HKR = self.of_heads(self.lora_b, x_BHTI)[:, first:]
        return super().per_head(x_BHTI, first) + h_BHTR @ b_HKR.transpose(-2, -1) * self.scale

    def per_head_transposed(self, x_BHTO: Tensor) -> Tensor:
        """(B, H, T, O) -> (B, H, T, I): from each head's first O outputs back to inputs."""
        h_BHTR = x_BHTO @ self.of_heads(self.lora_b, x_BHTO)[:, : x_BHTO.shape[-1]]
        return super().per_head_transposed(x_BHTO) + h_BHTR @ self.lora_a.to(x_BHTO.dtype) * self.scale

    def of_heads(self, b_OR: Tensor, x_BHTI: Tensor) -> Tensor:
        """Rows (H, O / H, R) in the dtype of x, which belong to the heads in turn."""
        return b_OR.to(x_BHTI.dtype).reshape(x_BHTI.shape[1], -1, b_OR.shape[-1])


class DoRALinear(LoRALinear):
    """LoRA whose rows have lengths of their own (Liu et al. 2024, "DoRA", equation 5): `m / |W + scale B A|` times it.

    The length that is divided by counts as a number, not as something to differentiate (section 4.3).
    """

    def __init__(
        self, inputs: int, outputs: int, bias: bool, rank: int, scale: float, drops: Dropping, site: int
    ) -> None:
        super().__init__(inputs, outputs, bias, rank, scale, drops, site)
        self.magnitude = nn.Parameter(torch.zeros(outputs))

    def forward(self, x_XI: Tensor) -> Tensor:
        """(X, I) -> (X, O)."""
        y_XO = self.onto(self.product(x_XI), x_XI)
        y_XO = y_XO * self.stretch().to(x_XI.dtype)
        return y_XO if self.bias is None else y_XO + self.bias.to(x_XI.dtype)

    def per_head(self, x_BHTI: Tensor, first: int = 0) -> Tensor:
        """(B, H, T, I) -> (B, H, T, O / H - first): each head by its own rows of the adapted weight."""
        stretch_HK1 = self.of_heads(self.stretch()[:, None], x_BHTI)[:, first:]
        return super().per_head(x_BHTI, first) * stretch_HK1.transpose(-2, -1)

    def per_head_transposed(self, x_BHTO: Tensor) -> Tensor:
        """(B, H, T, O) -> (B, H, T, I): from each head's first O outputs back to inputs."""
        stretch_HK1 = self.of_heads(self.stretch()[:, None], x_BHTO)[:, : x_BHTO.shape[-1]]
        return super().per_head_transposed(x_BHTO * stretch_HK1.transpose(-2, -1))

    def stretch(self) -> Tensor:
        """By how much each row is longer than it would be, (O), float32."""
        adapted_OI = self.matrix(self.magnitude.dtype) + self.scale * (self.lora_b @ self.lora_a)
        return self.magnitude / adapted_OI.square().sum(dim=-1).sqrt().detach()


class LoRAStackedLinear(StackedLinear):
    """LoRA beside one matrix per expert: A (E, R, I), B (E, O, R). Arguments as LoRALinear's."""

    def __init__(
        self, experts: int, inputs: int, outputs: int, rank: int, scale: float, drops: Dropping, site: int
    ) -> None:
        super().__init__(experts, inputs, outputs)
        self.lora_a = nn.Parameter(torch.zeros(experts, rank, inputs))
        self.lora_b = nn.Parameter(torch.zeros(experts, outputs, rank))
        self.scale = scale
        self.drops = drops
        self.site = site

    def forward(self, x_MI: Tensor, expert_M: Tensor) -> Tensor:
        """(M, I) -> (M, O), for rows in the order of their experts, `expert_M`."""
        h_MR = self.grouped(self.drops(x_MI, self.site), self.lora_a, expert_M)
        return super().forward(x_MI, expert_M) + self.grouped(h_MR * self.scale, self.lora_b, expert_M)


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

    def new_pass(self, key: Tensor | None) -> None:
        """From here on the adapters drop by this key; None drops nothing."""
        self.drops.key = key

    def initialise(self, model: nn.Module, seed: int) -> None:
        """Set every adapter of the model to its initial value, beside weights that are there already."""
        places = model.state_dict()
        with torch.no_grad():
            for name, value in initial_adapters(
                self.shapes, self.config, seed, lambda layer: part(model, layer).matrix(torch.float32).cpu().numpy()
            ):
                places[name].copy_(torch.from_numpy(value))


def part(model: nn.Module, name: str) -> Any:
    """The module of a model that a name like `blocks.0.attention` means."""
    found: Any = model
    for word in name.split(".") if name else ():
        found = found[int(word)] if word.isdigit() else getattr(found, word)
    return found


def freeze(model: nn.Module, trained: set[str], dtype: str) -> None:
    """Leave only the parameters `trained` to training; frozen matrices are kept in `dtype`."""
    for name, parameter in list(model.named_parameters()):
        if name not in trained:
            # A buffer: saved and moved with the model, and no business of any optimiser.
            parent, _, leaf = name.rpartition(".")
            module, value = part(model, parent), parameter.detach()
            half = dtype == "bfloat16" and value.ndim >= 2
            delattr(module, leaf)
            module.register_buffer(leaf, value.to(torch.bfloat16) if half else value)
    for module in list[Any](model.modules()):
        if hasattr(module, "balances"):
            module.balances = False
