"""LoRA and DoRA in both twins: what they compute, what they train, what stays, with a cache and without."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.adapting.placement import placed
from gpt_common.config import ModelConfig, OptimConfig, RunConfig, TrainConfig
from gpt_common.data.batches import Batch
from gpt_common.keyed import keyed_generator
from gpt_common.network.parameters import parameter_shapes, saved_shapes, tensor_shapes
from gpt_common.training.health.adapter_gates import check_frozen, check_used, stirred
from gpt_common.training.health.gates import GateFailed
from tests.twins import TWINS

BASE: dict[str, Any] = {"vocab_size": 30, "block_size": 12, "n_layer": 2, "n_head": 4, "n_embd": 16}
LATENT: dict[str, Any] = {"positions": "rope", "kv_latent": 12, "nope_size": 8, "rope_size": 4, "value_size": 10}
EXPERTS: dict[str, Any] = {"feed_forward": "moe", "n_expert": 4, "experts_per_token": 2, "expert_width": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "multi_head": {"bias": True},
    "grouped_query": {"attention": "grouped_query", "n_kv_head": 2, "feed_forward": "swiglu", "positions": "rope"},
    "latent": {**LATENT, "attention": "latent", "q_latent": 16},
    "latent_per_head": {**LATENT, "attention": "latent_per_head", "q_latent": 16},
    "experts": {**EXPERTS, "n_shared_expert": 1, "n_dense_layer": 1, "balancing": "bias", "tied_head": False},
}
TOKENS = (np.arange(24, dtype=np.int32).reshape(2, 12) * 7) % 30
BATCH = Batch(TOKENS, (TOKENS + 3) % 30)
PAIRS = [(family, kind) for family in FAMILIES for kind in ("lora", "dora") if (family, kind) != ("experts", "dora")]
Arrays = dict[str, npt.NDArray[np.float32]]


def weights(model: ModelConfig, adapter: AdapterConfig) -> Arrays:
    """Random, of a size at which every tensor shows, B among them."""
    return {
        name: np.float32(0.2) * keyed_generator(1, name).standard_normal(shape, np.float32)
        + np.float32("norm" in name or "magnitude" in name)
        for name, shape in (tensor_shapes(model) | saved_shapes(model, adapter)).items()
    }


def built(twin: str, model: ModelConfig, adapter: AdapterConfig, values: Arrays) -> Any:
    """A twin with these weights."""
    import_module(f"{twin}.device").select_device("cpu")
    kinds = import_module(f"{twin}.model")
    if twin == "torch_gpt":
        import torch

        network = kinds.GPT(model, torch.float32, adapter=adapter)
        with torch.no_grad():
            for name, place in network.state_dict().items():
                place.copy_(torch.from_numpy(values[name]))
        return network
    import mlx.core as mx
    from mlx.utils import tree_unflatten

    network = kinds.GPT(model, mx.float32, adapter=adapter)
    network.update(
        tree_unflatten(
            [(name, mx.array(values[name]).astype(place.dtype)) for name, place in network.state_dict().items()]
        )
    )
    return network


def probe(twin: str, config: RunConfig, values: Arrays) -> Any:
    network = built(twin, config.model, config.adapter, values)
    optimizer = import_module(f"{twin}.optim").build_optimizer(network, config.optim)
    step = import_module(f"{twin}.train").TrainStep(network, optimizer, config, compiled=False)
    return import_module(f"{twin}.probe").TrainingProbe(network, step)


def merged(model: ModelConfig, adapter: AdapterConfig, values: Arrays) -> Arrays:
    """By definition, in float64: W + s B A, each row stretched to its magnitude if it has one."""
    found = {name: values[name] for name in tensor_shapes(model)}
    for one in placed(parameter_shapes(model), adapter):
        a, b = values[f"{one.name}.lora_a"].astype(np.float64), values[f"{one.name}.lora_b"].astype(np.float64)
        whole = found[f"{one.name}.weight"] + one.scale * (b @ a)
        if adapter.adapter == "dora":
            whole *= (values[f"{one.name}.magnitude"] / np.linalg.norm(whole, axis=1))[:, None]
        found[f"{one.name}.weight"] = whole.astype(np.float32)
    return found


def apart(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """Relative L2."""
    return float(np.linalg.norm(one.astype(np.float64) - other) / np.linalg.norm(other.astype(np.float64)))


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_an_adapted_model_is_the_merged_one_with_and_without_a_cache(family: str, kind: Any, twin: str) -> None:
    model = ModelConfig(**{**BASE, **FAMILIES[family]})
    adapter = AdapterConfig(adapter=kind, adapter_rank=4, adapter_alpha=6.0)
    config = RunConfig(model=model, adapter=adapter)
    values = weights(model, adapter)
    asked = probe(twin, config, values)
    plain = probe(twin, RunConfig(model=model), merged(model, adapter, values))
    logits = asked.logits(TOKENS)
    assert apart(logits, plain.logits(TOKENS)) < 5e-6
    assert apart(asked.cached_logits(TOKENS), logits) < 5e-6
    assert apart(logits, probe(twin, RunConfig(model=model), values).logits(TOKENS)) > 0.1, "it does something"


@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_the_twins_train_the_same_adapters_and_nothing_else(family: str, kind: Any) -> None:
    model = ModelConfig(**{**BASE, **FAMILIES[family], "dropout": 0.1, "dropout_rng": "shared"})
    adapter = AdapterConfig(adapter=kind, adapter_rank=4, adapter_dropout=0.2, adapter_whole=("token_embedding",))
    config = RunConfig(model=model, adapter=adapter, optim=OptimConfig(learning_rate=1e-2), train=TrainConfig())
    trained = {}
    for twin in TWINS:
        asked = probe(twin, config, weights(model, adapter))
        assert set(asked.parameter_names()) == set(saved_shapes(model, adapter))
        assert {f"exp_avg.{name}" for name in asked.parameter_names()} < set(asked.moments())
        before, frozen = asked.checksums(), asked.frozen_checksums()
        assert set(frozen) == set(tensor_shapes(model)) - {"token_embedding.weight"}
        losses = [float(asked.train_step([BATCH, BATCH], number, 1e-2)[0]) for number in range(3)]
        assert not [name for name, checksum in asked.checksums().items() if checksum == before[name]]
        check_frozen(frozen, asked.frozen_checksums())
        trained[twin] = losses, asked.weights()
    (one, mine), (other, theirs) = trained.values()
    np.testing.assert_allclose(one, other, rtol=1e-5)
    # Where the second moment is near zero AdamW divides rounding by rounding: a step is at most 1e-2.
    assert max(apart(mine[name], theirs[name]) for name in mine) < 1e-3


@pytest.mark.parametrize("twin", TWINS)
def test_dropout_of_adapters_has_masks_of_its_own(twin: str) -> None:
    model = ModelConfig(**BASE, dropout_rng="shared")
    adapter = AdapterConfig(adapter="lora", adapter_dropout=0.5)
    asked = probe(twin, RunConfig(model=model, adapter=adapter), weights(model, adapter))
    plain = asked.step_loss([BATCH], 0, dropout=False)
    first, again, next_step = (asked.step_loss([BATCH], step) for step in (0, 0, 1))
    assert first == again
    assert len({plain, first, next_step}) == 3
    assert plain == pytest.approx(asked.loss(BATCH), rel=1e-6), "evaluation drops nothing"


@pytest.mark.parametrize("twin", TWINS)
def test_a_new_adapter_changes_nothing(twin: str) -> None:
    model = ModelConfig(**BASE)
    for kind in ("lora", "dora"):
        adapter = AdapterConfig(adapter=kind)
        values = weights(model, adapter)
        network = built(twin, model, adapter, values)
        network.adapters.initialise(network, 3)
        asked = import_module(f"{twin}.probe").TrainingProbe(network)
        plain = probe(twin, RunConfig(model=model), values).logits(TOKENS)
        # Of DoRA the quotient of two lengths, in float32, is not quite 1.
        assert apart(asked.logits(TOKENS), plain) < (1e-12 if kind == "lora" else 2e-6)


@pytest.mark.parametrize("twin", TWINS)
def test_a_base_in_half_precision(twin: str) -> None:
    model = ModelConfig(**BASE)
    adapter = AdapterConfig(adapter="lora", adapter_base_dtype="bfloat16")
    values = weights(model, adapter)
    logits = probe(twin, RunConfig(model=model, adapter=adapter), values).logits(TOKENS)
    exact = dataclasses.replace(adapter, adapter_base_dtype="float32")
    assert 1e-5 < apart(logits, probe(twin, RunConfig(model=model, adapter=exact), values).logits(TOKENS)) < 2e-2
    network = built(twin, model, adapter, values)
    assert "bfloat16" in str(network.state_dict()["blocks.0.attention.qkv_proj.weight"].dtype)
    assert "float32" in str(network.state_dict()["blocks.0.attention_norm.weight"].dtype)
    assert "float32" in str(network.state_dict()["blocks.0.attention.qkv_proj.lora_a"].dtype)


@pytest.mark.parametrize("twin", TWINS)
def test_the_gates_see_a_cache_without_adapters_and_a_base_that_moves(
    twin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelConfig(**{**BASE, **FAMILIES["latent"]})
    adapter = AdapterConfig(adapter="lora")
    values = weights(model, adapter)
    values |= {name: np.zeros_like(value) for name, value in values.items() if name.endswith("lora_b")}
    asked = probe(twin, RunConfig(model=model, adapter=adapter), values)
    with stirred(asked, 0):
        check_used(asked, BATCH, exact=True)
        layers, adapters = (import_module(f"{twin}.{name}") for name in ("layers", "adapters"))
        for method in ("per_head", "per_head_transposed"):
            with monkeypatch.context() as patch:
                patch.setattr(adapters.LoRALinear, method, getattr(layers.Linear, method))
                with pytest.raises(GateFailed, match="cache"):
                    check_used(asked, BATCH, exact=True)
    assert not any(value.any() for name, value in asked.weights().items() if name.endswith("lora_b"))
    frozen = asked.frozen_checksums()
    with pytest.raises(GateFailed, match="frozen"):
        check_frozen(frozen, frozen | {"blocks.0.attention.q_up_proj.weight": 0})
