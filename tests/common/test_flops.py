"""Parameters and FLOPs: hand calculations, nanoGPT's log, and PyTorch's own counter."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_common.config import ModelConfig
from gpt_common.flops import (
    A100_BF16_PEAK,
    flops_per_step_exact,
    flops_per_token_palm,
    mfu,
    parameter_count,
    parameter_table,
)
from gpt_common.init import parameter_shapes

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
        loss(model, tokens, tokens).backward()
    exact = flops_per_step_exact(shape, 2, causal=False, gradient_checkpointing=checkpointing)
    assert counter.get_total_flops() == exact
    # What would be missed: the head, the recomputation, half of attention.
    for other in (ModelConfig(**{**vars(shape), "vocab_size": 1}), ModelConfig(**{**vars(shape), "n_layer": 2})):
        count = flops_per_step_exact(other, 2, causal=False, gradient_checkpointing=checkpointing)
        assert abs(count / exact - 1) > 0.01
    assert flops_per_step_exact(shape, 2, gradient_checkpointing=checkpointing) < 0.99 * exact
