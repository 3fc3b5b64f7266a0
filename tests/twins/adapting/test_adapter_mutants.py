"""Mistakes that adapters invite, made in one twin: the gradient of a step, or a gate, tells each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.config import ModelConfig, RunConfig
from gpt_common.training.health.adapter_gates import check_frozen
from gpt_common.training.health.gates import GateFailed
from tests.twins.adapting.test_adapters import BASE, BATCH, probe, weights

MODEL = ModelConfig(**BASE, dropout=0.1, dropout_rng="shared")
SQUARE = AdapterConfig(
    adapter="dora", adapter_rank=16, adapter_alpha=24.0, adapter_dropout=0.3, adapter_targets=("attention.out_proj",)
)
"""Rank and both sides of the matrix are 16: whatever is taken for something else still has its shape."""
Patch = Callable[[pytest.MonkeyPatch, Any], None]


def gradients(twin: str) -> dict[str, Any]:
    _, found = probe(twin, RunConfig(model=MODEL, adapter=SQUARE), weights(MODEL, SQUARE)).step_gradients([BATCH], 3)
    return dict(found)


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Relative L2 over all tensors."""
    assert one.keys() == other.keys()
    apart = sum(float(np.square(one[name].astype(np.float64) - other[name]).sum()) for name in one)
    return float(np.sqrt(apart / sum(float(np.square(value.astype(np.float64)).sum()) for value in other.values())))


def no_scale(patch: pytest.MonkeyPatch, adapters: Any) -> None:
    right = adapters.LoRALinear.onto
    patch.setattr(adapters.LoRALinear, "onto", lambda self, y, x: y + (right(self, y, x) - y) / self.scale)


def swapped(patch: pytest.MonkeyPatch, adapters: Any) -> None:
    def onto(self: Any, y: Any, x: Any) -> Any:
        return y + adapters.linear(adapters.linear(self.drops(x, self.site), self.lora_b), self.lora_a) * self.scale

    patch.setattr(adapters.LoRALinear, "onto", onto)


def differentiated_length(patch: pytest.MonkeyPatch, adapters: Any) -> None:
    patch.setattr(adapters.mx, "stop_gradient", lambda x: x)


def nothing_dropped(patch: pytest.MonkeyPatch, adapters: Any) -> None:
    patch.setattr(adapters.Dropping, "__call__", lambda self, x, site: x)  # noqa: ARG005


def one_mask(patch: pytest.MonkeyPatch, adapters: Any) -> None:
    right = adapters.Dropping.__call__
    patch.setattr(adapters.Dropping, "__call__", lambda self, x, site: right(self, x, 7))  # noqa: ARG005


def not_stretched(patch: pytest.MonkeyPatch, adapters: Any) -> None:
    patch.setattr(adapters.DoRALinear, "stretch", lambda self: self.magnitude)


def length_of_the_base(patch: pytest.MonkeyPatch, adapters: Any) -> None:
    def stretch(self: Any) -> Any:
        return self.magnitude / self.weight.square().sum(axis=-1).sqrt()

    patch.setattr(adapters.DoRALinear, "stretch", stretch)


MUTANTS: dict[str, Patch] = {
    "scale forgotten": no_scale,
    "A and B swapped": swapped,
    "length differentiated": differentiated_length,
    "nothing dropped": nothing_dropped,
    "one mask for all": one_mask,
    "rows not divided by their length": not_stretched,
    "length of the base alone": length_of_the_base,
}


@pytest.fixture(scope="module")
def right() -> dict[str, Any]:
    return gradients("torch_gpt")


def test_the_twins_agree(right: dict[str, Any]) -> None:
    assert distance(gradients("mlx_gpt"), right) < 1e-5


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mistake_shows_in_the_gradient(mutant: str, right: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_gpt import adapters

    MUTANTS[mutant](monkeypatch, adapters)
    assert distance(gradients("mlx_gpt"), right) > 1e-3


def test_alpha_over_rank_and_not_the_other_way_round() -> None:
    assert SQUARE.scale(16, 24.0) == 1.5


@pytest.mark.parametrize("twin", ["mlx_gpt", "torch_gpt"])
def test_a_base_that_is_trained_too_is_seen(twin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimiser that decays whatever it finds."""
    asked = probe(twin, RunConfig(model=MODEL, adapter=SQUARE), weights(MODEL, SQUARE))
    before = asked.frozen_checksums()
    asked.train_step([BATCH], 0, 1e-2)
    check_frozen(before, asked.frozen_checksums())
    layer = asked.model.blocks[0].attention.qkv_proj
    monkeypatch.setattr(layer, "weight", layer.weight * 0.999)
    with pytest.raises(GateFailed, match=r"qkv_proj\.weight"):
        check_frozen(before, asked.frozen_checksums())
