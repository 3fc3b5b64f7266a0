"""Where adapters sit, how they are called, how they begin, and what is wrong with a name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.adapting.placement import adapter_shapes, check_ranks, initial_adapters, placed
from gpt_common.config import ModelConfig, RunConfig, from_dict, to_dict
from gpt_common.errors import UserError
from gpt_common.network.parameters import parameter_shapes

GPT2 = ModelConfig(vocab_size=24, block_size=12, n_layer=3, n_head=2, n_embd=16)
MIXTURE = ModelConfig(
    vocab_size=24, block_size=12, n_layer=2, n_head=2, n_embd=16, feed_forward="moe", n_dense_layer=1, n_expert=4,
    experts_per_token=2, expert_width=8, tied_head=False, attention="grouped_query", positions="rope",
)  # fmt: skip


def shapes(model: ModelConfig, **fields: Any) -> dict[str, tuple[int, ...]]:
    return adapter_shapes(parameter_shapes(model), AdapterConfig(adapter="lora", adapter_rank=4, **fields))


def test_all_are_the_matrices_of_the_blocks() -> None:
    found = shapes(GPT2)
    assert len(found) == 3 * 4 * 2
    assert found["blocks.0.attention.qkv_proj.lora_a"] == (4, 16)
    assert found["blocks.0.attention.qkv_proj.lora_b"] == (48, 4)
    of_experts = shapes(MIXTURE)
    assert of_experts["blocks.1.feed_forward.experts.up_proj.lora_a"] == (4, 4, 16)
    assert of_experts["blocks.1.feed_forward.experts.up_proj.lora_b"] == (4, 8, 4)
    assert not [name for name in of_experts if "router" in name or "head" in name or "embedding" in name]


def test_targets_layers_and_what_is_whole() -> None:
    found = shapes(GPT2, adapter_targets=("qkv_proj", "blocks.2.attention.out_proj"), adapter_layers=2)
    assert {name.rpartition(".")[0] for name in found} == {
        "blocks.1.attention.qkv_proj", "blocks.2.attention.qkv_proj", "blocks.2.attention.out_proj",
    }  # fmt: skip
    assert "token_embedding.weight" in shapes(GPT2, adapter_whole=("token_embedding",))
    assert "head.lora_a" in shapes(MIXTURE, adapter_targets=("head",))


def test_ranks_and_scales() -> None:
    config = AdapterConfig(
        adapter="lora", adapter_rank=4, adapter_alpha=8.0,
        adapter_ranks=("qkv_proj=2", "blocks.1.attention.qkv_proj=1"), adapter_alphas=("out_proj=2",),
    )  # fmt: skip
    found = {one.name: one for one in placed(parameter_shapes(GPT2), config)}
    assert [found[f"blocks.{i}.attention.qkv_proj"].rank for i in range(3)] == [2, 1, 2], "the longer name is meant"
    assert found["blocks.0.attention.qkv_proj"].scale == 8 / 2
    assert found["blocks.0.attention.out_proj"].scale == 2 / 4
    assert AdapterConfig(adapter="lora", adapter_rslora=True).scale(16, 8.0) == 8 / 4


def test_initial_values() -> None:
    config = AdapterConfig(adapter="dora", adapter_rank=4)
    base = np.arange(48 * 16, dtype=np.float32).reshape(48, 16)
    ask = lambda name: base if "qkv" in name else np.ones(parameter_shapes(GPT2)[f"{name}.weight"], np.float32)  # noqa: E731
    values = dict(initial_adapters(parameter_shapes(GPT2), config, 7, ask))
    assert {name: value.shape for name, value in values.items()} == adapter_shapes(parameter_shapes(GPT2), config)
    a = values["blocks.0.attention.qkv_proj.lora_a"]
    assert np.abs(a).max() <= 1 / math.sqrt(16)
    assert np.abs(a.mean()) < 5 * (1 / 4) / math.sqrt(3 * a.size)  # 5 standard errors of a uniform's mean
    assert not np.array_equal(a, values["blocks.1.attention.qkv_proj.lora_a"])
    assert not any(value.any() for name, value in values.items() if name.endswith("lora_b"))
    np.testing.assert_allclose(values["blocks.0.attention.qkv_proj.magnitude"], np.linalg.norm(base, axis=1), rtol=1e-6)
    again = dict(initial_adapters(parameter_shapes(GPT2), AdapterConfig(adapter="lora", adapter_rank=4), 7, ask))
    assert np.array_equal(again["blocks.0.attention.qkv_proj.lora_a"], a), "of its name and the seed alone"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"adapter_targets": ("qkv_porj",)}, "did you mean 'qkv_proj'"),
        ({"adapter_targets": ("attention.qkv_porj",)}, "did you mean 'attention.qkv_proj'"),
        ({"adapter_targets": ("token_embedding",)}, "no matrix"),
        ({"adapter_layers": 4}, "has 3 blocks"),
        ({"adapter_whole": ("head",)}, "no 'head'"),
        ({"adapter_ranks": ("k_proj=3",)}, "adapter_ranks: no matrix"),
        ({"adapter_targets": ("blocks.0.attention.qkv_proj",), "adapter_layers": 1}, "take more blocks"),
    ],
)
def test_a_name_that_is_none(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        shapes(GPT2, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"adapter_rank": 0}, {"adapter_alpha": 0.0}, {"adapter_alpha": -1.0}, {"adapter_alpha": math.nan},
        {"adapter_dropout": 1.0}, {"adapter_layers": -1}, {"adapter_ranks": ("q_proj",)},
        {"adapter_ranks": ("q_proj=1.5",)}, {"adapter_alphas": ("q_proj=-2",)}, {"adapter_targets": ()},
    ],
)  # fmt: skip
def test_an_impossible_adapter_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        AdapterConfig(adapter="lora", **fields)


def test_dora_is_refused_beside_a_row_of_zeros() -> None:
    config = AdapterConfig(adapter="dora", adapter_targets=("qkv_proj",))
    base = np.ones((48, 16), np.float32)
    base[7] = 0
    with pytest.raises(UserError, match=r"row 7 of blocks\.0\.attention\.qkv_proj is zero"):
        list(initial_adapters(parameter_shapes(GPT2), config, 0, lambda _: base))
    assert list(initial_adapters(parameter_shapes(GPT2), AdapterConfig(adapter="lora"), 0, lambda _: base))


def test_a_rank_for_what_has_no_adapter_is_refused() -> None:
    with pytest.raises(UserError, match="'out_proj' has no adapter"):
        shapes(GPT2, adapter_targets=("qkv_proj",), adapter_ranks=("out_proj=2",))
    with pytest.raises(UserError, match="has no adapter"):
        shapes(GPT2, adapter_layers=1, adapter_alphas=("blocks.0.attention.qkv_proj=2",))


def test_no_adapter_has_no_rank() -> None:
    with pytest.raises(UserError, match="add --adapter"):
        AdapterConfig(adapter_rank=4)
    with pytest.raises(UserError, match="trained whole and has an adapter"):
        shapes(MIXTURE, adapter_targets=("head",), adapter_whole=("head",))
    with pytest.raises(UserError, match="DoRA has no form"):
        placed(parameter_shapes(MIXTURE), AdapterConfig(adapter="dora"))


def test_it_is_a_table_of_the_configuration() -> None:
    config = RunConfig(adapter=AdapterConfig(adapter="dora", adapter_ranks=("q_proj=4",)))
    assert from_dict(to_dict(config)) == config
    assert from_dict({}).adapter == AdapterConfig()


@pytest.mark.parametrize(
    ("model", "fields", "said"),
    [
        (GPT2, {"adapter_rank": 17}, "is 17, and blocks.0.attention.qkv_proj is 48 x 16: its rank is at most 16"),
        (MIXTURE, {"adapter_rank": 9}, "blocks.1.feed_forward.experts.gate_proj is 8 x 16: its rank is at most 8"),
        (
            GPT2,
            {"adapter_rank": 4, "adapter_ranks": ("down_proj=40",)},
            "is 40, and blocks.0.feed_forward.down_proj is",
        ),
    ],
)
def test_a_rank_that_no_matrix_has(model: ModelConfig, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        check_ranks(parameter_shapes(model), AdapterConfig(adapter="lora", **fields))
    assert said in str(error.value)
    check_ranks(parameter_shapes(model), AdapterConfig(adapter="lora", adapter_rank=8, adapter_ranks=("up_proj=4",)))
