"""Parameters and FLOPs: hand calculations, nanoGPT's log, and PyTorch's own counter."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.adapting.placement import block_of
from gpt_common.config import ModelConfig, load_preset
from gpt_common.data.batches import Batch
from gpt_common.network.flops import (
    A100_BF16_PEAK,
    active_parameter_count,
    buffer_count,
    describe_model,
    flops_per_step_exact,
    flops_per_token_palm,
    mfu,
    parameter_count,
    parameter_table,
)
from gpt_common.network.parameters import parameter_shapes, trained_shapes

pytestmark = pytest.mark.usefixtures("without_onednn")

SHAKESPEARE_CHAR = ModelConfig(vocab_size=65, block_size=256, n_layer=6, n_head=6, n_embd=384)
GPT2 = ModelConfig(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768, bias=True)

models = st.builds(
    lambda heads, width, **other: ModelConfig(n_head=heads, n_embd=heads * width, **other),
    heads=st.integers(1, 4),
    width=st.integers(1, 8),
    vocab_size=st.integers(1, 200),
    block_size=st.integers(1, 64),
    n_layer=st.integers(1, 4),
    bias=st.booleans(),
    tied_head=st.booleans(),
)


def test_published_parameter_counts() -> None:
    assert parameter_count(GPT2) == 124_439_808  # the sum over the tensors of OpenAI's release
    position = 256 * 384
    assert parameter_count(SHAKESPEARE_CHAR) - position == 10_646_784  # nanoGPT prints "10.65M"
    assert parameter_table(SHAKESPEARE_CHAR)["position embedding"] == position


FAMILIES = {
    name: replace(load_preset(name).model, vocab_size=54, block_size=32, n_layer=layers)
    for name, layers in (("llama-tiny", 2), ("smollm-135m", 1), ("custom-llm-tiny", 2), ("custom-llm-1b", 1))
} | {
    "deepseek-tiny": replace(load_preset("deepseek-tiny").model, vocab_size=54, block_size=32),
    # What no preset has: queries without a latent, no shared experts, norms of heads, a head size of its own.
    "deepseek, no query latent": replace(
        load_preset("deepseek-tiny").model, vocab_size=54, block_size=32, q_latent=0, n_shared_expert=0, n_dense_layer=0
    ),
    "norms of heads": replace(
        load_preset("llama-tiny").model, vocab_size=54, block_size=32, head_size=24, qk_norm=True, attention_bias=True
    ),
}


def test_families_have_their_published_sizes() -> None:
    """CustomLLM by its document, with and without what steers its routers; SmolLM as its published weights add up."""
    custom = load_preset("custom-llm-1b").model
    assert parameter_count(custom) == 1_075_060_736
    assert parameter_count(custom) + buffer_count(custom) == 1_075_060_904
    assert parameter_count(load_preset("smollm-135m").model) == 134_515_008


def test_active_parameters_by_hand() -> None:
    custom = load_preset("custom-llm-1b").model
    idle = 24 * (7 - 2) * 3 * 1024 * 1536
    assert active_parameter_count(custom) == 1_075_060_736 - idle
    tiny = FAMILIES["deepseek-tiny"]
    assert active_parameter_count(tiny) == parameter_count(tiny) - 2 * (8 - 2) * 3 * 64 * 64
    for dense in (GPT2, load_preset("smollm-135m").model):
        assert active_parameter_count(dense) == parameter_count(dense)
        assert buffer_count(dense) == 0


def test_the_console_names_active_parameters_where_they_are_not_all() -> None:
    line = "model: 1,075,060,736 parameters (508,829,696 active), 24 layers x 1024, 16 heads, block 2048"
    assert describe_model(load_preset("custom-llm-1b").model) == line
    assert describe_model(GPT2) == "model: 124,439,808 parameters, 12 layers x 768, 12 heads, block 1024"


def test_the_table_names_the_parts_of_every_family() -> None:
    table = parameter_table(FAMILIES["deepseek-tiny"])
    assert table["latent norms"] == 3 * (48 + 32)
    assert table["router"] == 2 * 8 * 64
    assert table["experts"] == 2 * 8 * 3 * 64 * 64
    assert table["shared experts"] == 2 * 3 * 64 * 64
    assert table["feed-forward"] == 3 * 64 * 192
    assert parameter_table(FAMILIES["norms of heads"])["q/k norms"] == 2 * 2 * 24
    for model in FAMILIES.values():
        assert sum(parameter_table(model).values()) == parameter_count(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_palm_counts_active_parameters(family: str) -> None:
    """Both counts differ by norms and biases only, as in GPT-2; with all experts they would differ by far more."""
    model = FAMILIES[family]
    exact = flops_per_step_exact(model, 3, causal=False) / (3 * model.block_size)
    vectors = sum(shape[0] for shape in parameter_shapes(model).values() if len(shape) == 1)
    assert flops_per_token_palm(model) == exact + 6 * vectors


@given(models)
def test_the_table_is_complete(model: ModelConfig) -> None:
    table = parameter_table(model)
    assert sum(table.values()) == parameter_count(model) == sum(map(math.prod, parameter_shapes(model).values()))
    assert all(table.values())
    assert ("head" in table) == (not model.tied_head)


def test_nanogpts_log_is_reproduced() -> None:
    """An M3 Max: `iter 10: loss 3.1459, time 220.50ms, mfu 1.69%`, with 64 sequences of 256 per step."""
    flops = flops_per_token_palm(SHAKESPEARE_CHAR) * 64 * 256
    utilisation = mfu(flops / 0.2205, A100_BF16_PEAK)
    assert utilisation is not None
    assert f"{utilisation * 100:.2f}%" == "1.69%"


def test_palm_and_exact_by_hand() -> None:
    T, D, L, V = 256, 384, 6, 65
    N = 12 * L * D * D + V * D + (2 * L + 1) * D
    assert flops_per_token_palm(SHAKESPEARE_CHAR) == 6 * N + 12 * L * D * T
    weights = 6 * (12 * L * D * D + V * D)
    assert flops_per_step_exact(SHAKESPEARE_CHAR, 64, causal=False) == 64 * T * (weights + 12 * L * D * T)
    assert flops_per_step_exact(SHAKESPEARE_CHAR, 64) == 64 * T * (weights + 6 * L * D * (T + 1))


@given(models)
def test_palm_differs_from_exact_by_norms_and_biases_only(model: ModelConfig) -> None:
    exact = flops_per_step_exact(model, 3, causal=False) / (3 * model.block_size)
    shapes = parameter_shapes(model)
    vectors = sum(shape[0] for shape in shapes.values() if len(shape) == 1)
    assert flops_per_token_palm(model) == exact + 6 * vectors


@given(models)
def test_a_tied_head_costs_what_an_untied_one_does(model: ModelConfig) -> None:
    other = ModelConfig(**{**vars(model), "tied_head": not model.tied_head})
    assert flops_per_step_exact(model, 2) == flops_per_step_exact(other, 2)
    assert flops_per_token_palm(model) == flops_per_token_palm(other)


def test_a_shorter_sequence_than_the_models() -> None:
    short = ModelConfig(**{**vars(GPT2), "block_size": 128})
    assert flops_per_step_exact(GPT2, 4, 128) == flops_per_step_exact(short, 4)
    assert flops_per_token_palm(GPT2, 128) == flops_per_token_palm(short)


def test_one_token_attends_to_itself_alone() -> None:
    assert flops_per_step_exact(GPT2, 1, 1, causal=True) == flops_per_step_exact(GPT2, 1, 1, causal=False)


def test_mfu_of_an_unknown_chip_is_unknown() -> None:
    assert mfu(1e12, None) is None
    assert mfu(1e12, 4e12) == 0.25


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tied_head", [False, True])
def test_the_exact_count_is_what_pytorch_counts(tied_head: bool, checkpointing: bool) -> None:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from torch_gpt.model import GPT, loss

    shape = ModelConfig(vocab_size=65, block_size=64, n_layer=3, n_head=2, n_embd=48, bias=True, tied_head=tied_head)
    model = GPT(shape, gradient_checkpointing=checkpointing)
    tokens = torch.zeros(2, 64, dtype=torch.long)
    # PyTorch's counter does not know the fused attention of CPUs; the plain one multiplies all pairs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss(model, Batch(tokens, tokens)).backward()
    exact = flops_per_step_exact(shape, 2, causal=False, gradient_checkpointing=checkpointing)
    assert counter.get_total_flops() == exact
    # What would be missed: the head, the recomputation, half of attention.
    for other in (ModelConfig(**{**vars(shape), "vocab_size": 1}), ModelConfig(**{**vars(shape), "n_layer": 2})):
        count = flops_per_step_exact(other, 2, causal=False, gradient_checkpointing=checkpointing)
        assert abs(count / exact - 1) > 0.01
    assert flops_per_step_exact(shape, 2, gradient_checkpointing=checkpointing) < 0.99 * exact


def grouped_flops(a: Any, b: Any, *_: Any, **__: Any) -> int:
    """A product of rows with the matrix of their group (M, in) x (E, in, out), or its gradient (in, M) x (M, out)."""
    return 2 * math.prod(a) * b[-1]


@pytest.mark.parametrize(("checkpointing", "dropout"), [(False, 0.0), (True, 0.0), (True, 0.1)])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_exact_count_of_every_family_is_what_pytorch_counts(
    family: str, checkpointing: bool, dropout: float
) -> None:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from torch_gpt.model import GPT, loss

    shape = replace(FAMILIES[family], dropout=dropout)
    model = GPT(shape, gradient_checkpointing=checkpointing)
    model.initialise(0)
    tokens = torch.arange(64).reshape(2, 32) % 54
    key = torch.zeros(2, dtype=torch.int64) if dropout else None
    # PyTorch's counter has no formula for grouped products: ours is what every row costs, whoever its expert is.
    formulas = {torch.ops.aten._grouped_mm: grouped_flops}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        loss(model, Batch(tokens, tokens), key).backward()
    exact = flops_per_step_exact(shape, 2, causal=False, gradient_checkpointing=checkpointing)
    assert counter.get_total_flops() == exact
    # What would be missed: an expert more, wider values, another key head.
    others = [replace(shape, experts_per_token=3), replace(shape, n_shared_expert=2)] if shape.n_expert else []
    others += [replace(shape, value_size=2 * shape.value_size)] if shape.value_size else []
    others += [replace(shape, n_kv_head=1)] if shape.n_kv_head else []
    for other in others:
        count = flops_per_step_exact(other, 2, causal=False, gradient_checkpointing=checkpointing)
        assert abs(count / exact - 1) > 0.01


ADAPTERS = {
    "all": AdapterConfig(adapter="lora", adapter_rank=3),
    "the last block": AdapterConfig(adapter="lora", adapter_rank=2, adapter_layers=1),
    "head beside": AdapterConfig(adapter="lora", adapter_whole=("head",)),
    "an embedding beside": AdapterConfig(adapter="lora", adapter_layers=1, adapter_whole=("token_embedding",)),
    "patterns": AdapterConfig(adapter="lora", adapter_ranks=("down_proj=5",)),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("family", ["gpt2", "llama-tiny", "custom-llm-tiny"])
def test_what_an_adapters_run_costs_is_what_pytorch_counts(family: str, adapter: str, tied: bool) -> None:
    if tied and "head" in ADAPTERS[adapter].adapter_whole:
        pytest.skip("the head is the embedding")
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from torch_gpt.model import GPT, loss

    shapes = FAMILIES | {"gpt2": ModelConfig(vocab_size=54, block_size=32, n_layer=3, n_head=2, n_embd=48)}
    shape, config = replace(shapes[family], tied_head=tied, head_bias=False), ADAPTERS[adapter]
    model = GPT(shape, adapter=config)
    tokens = torch.arange(64).reshape(2, 32) % 54
    formulas = {torch.ops.aten._grouped_mm: grouped_flops}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        loss(model, Batch(tokens, tokens)).backward()
    trained = trained_shapes(shape, config)
    vectors = {name: size[0] for name, size in parameter_shapes(shape).items() if len(size) == 1}
    first = min(block_of(name, shape.n_layer) for name in trained)
    exact = flops_per_step_exact(shape, 2, causal=False, adapter=config)
    assert flops_per_step_exact(shape, 2, adapter=config) < exact
    passes = {name: 2 + 2 * (name in trained) + 2 * (block_of(name, shape.n_layer) >= first) for name in vectors}
    counted = flops_per_token_palm(shape, adapter=config) - sum(size * passes[name] for name, size in vectors.items())
    # What goes backward is counted by whole blocks; of the first one PyTorch spares what lies before its first adapter.
    block = sum(math.prod(size[-2:]) for name, size in parameter_shapes(shape).items() if name.startswith("blocks.0."))
    assert 0 <= counted - counter.get_total_flops() / 64 <= 2 * block
    assert exact == pytest.approx(64 * counted, rel=1e-12)
