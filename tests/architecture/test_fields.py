"""What a field of ModelConfig changes is declared once, and truly; no list that depends on it forgets a field."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from convert.difference import COMPUTED
from convert.parity.mutants.climb import FAMILIES
from convert.parity.random_configs import random_config
from gpt_common.config import ModelConfig, OptimConfig, RunConfig, TrainConfig
from gpt_common.data.batches import Batch
from gpt_common.keyed import keyed_generator
from gpt_common.network.changes import CHANGES
from gpt_common.network.flops import flops_per_step_exact
from gpt_common.network.memory import kv_cache_bytes_per_token, memory_plan
from gpt_common.network.parameters import tensor_shapes

FIELDS = [field.name for field in dataclasses.fields(ModelConfig)]
GPT2 = ModelConfig(vocab_size=24, block_size=12, n_layer=2, n_head=2, n_embd=16)
ROTARY = dataclasses.replace(GPT2, positions="rope", attention="grouped_query", n_head=4, head_size=4)
LATENT = dataclasses.replace(
    GPT2, positions="rope", attention="latent", kv_latent=8, q_latent=8, nope_size=4, rope_size=4, value_size=8
)
MIXTURE = dataclasses.replace(
    GPT2, feed_forward="moe", n_expert=4, experts_per_token=2, expert_width=8, n_expert_group=2, groups_per_token=2,
    router="sigmoid",
)  # fmt: skip
VARIANTS: dict[str, list[tuple[ModelConfig, Any]]] = {
    "vocab_size": [(GPT2, 30)],
    "block_size": [(GPT2, 16), (ROTARY, 16)],
    "n_layer": [(GPT2, 3)],
    "n_head": [(GPT2, 4), (ROTARY, 2)],
    "n_embd": [(GPT2, 24)],
    "bias": [(GPT2, True)],
    "norm": [(GPT2, "rmsnorm"), (dataclasses.replace(GPT2, bias=True), "rmsnorm")],
    "norm_eps": [(GPT2, 1e-2)],
    "final_norm": [(GPT2, False)],
    "positions": [(GPT2, "rope"), (GPT2, "both")],
    "rope_theta": [(ROTARY, 100.0)],
    "rope_layout": [(ROTARY, "interleaved")],
    "attention": [(GPT2, "grouped_query"), (LATENT, "latent_per_head")],
    "attention_bias": [(GPT2, True)],
    "n_kv_head": [(ROTARY, 2)],
    "head_size": [(GPT2, 4)],
    "qk_norm": [(GPT2, True)],
    "kv_latent": [(LATENT, 12)],
    "q_latent": [(LATENT, 12), (LATENT, 0)],
    "nope_size": [(LATENT, 6)],
    "rope_size": [(LATENT, 2)],
    "value_size": [(LATENT, 6)],
    "feed_forward": [(GPT2, "gelu_tanh"), (GPT2, "relu2"), (GPT2, "swiglu")],
    "feed_forward_width": [(GPT2, 20)],
    "n_dense_layer": [(MIXTURE, 1)],
    "n_expert": [(MIXTURE, 6)],
    "n_shared_expert": [(MIXTURE, 1)],
    "experts_per_token": [(MIXTURE, 1)],
    "expert_width": [(MIXTURE, 16)],
    "n_expert_group": [(dataclasses.replace(MIXTURE, groups_per_token=1), 1)],
    "groups_per_token": [(MIXTURE, 1)],
    "router": [(MIXTURE, "softmax")],
    "router_normalise": [(MIXTURE, False)],
    "router_scale": [(MIXTURE, 2.0)],
    "balancing": [(MIXTURE, "bias"), (MIXTURE, "loss")],
    "balancing_rate": [(dataclasses.replace(MIXTURE, balancing="loss"), 0.5)],
    "tied_head": [(GPT2, False)],
    "head_bias": [(dataclasses.replace(GPT2, tied_head=False), True)],
    "dropout": [(GPT2, 0.5)],
    "dropout_rng": [(dataclasses.replace(GPT2, dropout=0.5), "shared")],
}
"""For every field a few models and another value of the field; a new field is to be added here and in CHANGES."""

NO_RANDOM = {"dropout_rng"}
"""`native` masks are the framework's own: no two twins can be compared with them."""
NO_FAMILY = {"norm_eps", "final_norm", "rope_theta", "attention_bias", "feed_forward_width", "router_normalise"}
"""A number or a switch that mutants break themselves, or a width like others: random configurations have them all."""


def weights(config: ModelConfig) -> dict[str, np.ndarray[Any, Any]]:
    """Random, with a standard deviation at which every part of the network shows."""
    return {
        name: np.float32(0.3) * keyed_generator(1, name).standard_normal(shape, np.float32)
        for name, shape in tensor_shapes(config).items()
    }


def computed(config: ModelConfig) -> tuple[bytes, bytes]:
    """Logits without dropout, and all weights after one training step, of PyTorch's twin."""
    import torch

    from torch_gpt.model import GPT
    from torch_gpt.optim import build_optimizer
    from torch_gpt.probe import TrainingProbe
    from torch_gpt.train import TrainStep

    run = RunConfig(model=config, optim=OptimConfig(adam_eps=1.0), train=TrainConfig(device="cpu"))
    model = GPT(config)
    with torch.no_grad():
        places = model.state_dict()
        for name, value in weights(config).items():
            places[name].copy_(torch.from_numpy(value))
    ids = (np.arange(24, dtype=np.int32).reshape(2, 12) * 7) % config.vocab_size
    logits = TrainingProbe(model).logits(ids)
    TrainStep(model, build_optimizer(model, run.optim), run, compiled=False)([Batch(ids, (ids + 1) % 24)], 0, 0.1)
    return logits.tobytes(), b"".join(value.numpy().tobytes() for value in model.state_dict().values())


def cost(config: ModelConfig) -> list[float]:
    """Arithmetic and memory of a step in both twins, and memory of the cache."""
    run = RunConfig(model=config, train=TrainConfig(batch_size=2))
    plans = [memory_plan(run, twin).total for twin in ("mlx", "torch")]
    return [flops_per_step_exact(config, 2), *plans, kv_cache_bytes_per_token(config)]


def effects(name: str) -> set[str]:
    """What another value of a field is seen to change; computation and cost where the tensors stay the same."""
    seen = set()
    for before, value in VARIANTS[name]:
        after = dataclasses.replace(before, **{name: value})
        if tensor_shapes(before) != tensor_shapes(after):
            seen.add("tensors")
            continue
        (logits, trained), (other_logits, other_trained) = computed(before), computed(after)
        if logits != other_logits:
            seen.add("logits")
        elif trained != other_trained:
            seen.add("training")
        if cost(before) != cost(after):
            seen.add("cost")
    return seen


@pytest.mark.parametrize("name", FIELDS)
def test_what_a_field_changes_is_declared(name: str) -> None:
    declared = {effect for effect, fields in CHANGES.items() if name in fields}
    assert declared, f"{name} is not in CHANGES: what does it change?"
    assert effects(name) <= declared
    # What always comes with other tensors decides the logits too, but cannot be seen apart from them.
    assert declared - effects(name) <= ({"logits"} if "tensors" in declared else set())


def test_no_declaration_outlives_its_field() -> None:
    assert {name for fields in CHANGES.values() for name in fields} == set(FIELDS) == set(VARIANTS)


def test_a_difference_of_checkpoints_names_all_that_decides_the_logits() -> None:
    assert set(COMPUTED) == set(CHANGES["logits"])


def test_random_configurations_draw_every_field() -> None:
    drawn = [random_config(seed)[0].model for seed in range(300)]
    assert {name for name in FIELDS if len({getattr(model, name) for model in drawn}) < 2} == NO_RANDOM


def test_between_them_the_mutants_families_use_every_field() -> None:
    default = ModelConfig()
    unused = {n for n in FIELDS if all(getattr(model, n) == getattr(default, n) for model in FAMILIES.values())}
    assert unused == NO_FAMILY
