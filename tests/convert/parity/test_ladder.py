"""Every family climbs the ladder within the strict gates: PyTorch and MLX on the CPU, to each other and to float64."""

from __future__ import annotations

import dataclasses

import pytest

from convert.parity.climb import Climb
from convert.parity.ladder import NAMES, climb_ladder
from convert.parity.material import SIZES, shrink, with_dropout
from convert.parity.report.console import line
from gpt_common.config import ModelConfig, OptimConfig, RunConfig, TrainConfig, load_preset
from gpt_common.machine.backends import BACKENDS

pytestmark = pytest.mark.parity

PAIR = [BACKENDS["cpu"], BACKENDS["mlx-cpu"]]
TRAJECTORIES = ("L7", "L8")
STANDARD = ("stories-cpu", "shakespeare-char", "gpt2", "llama-tiny", "smollm-135m", "custom-llm-tiny", "deepseek-tiny")


def preset(name: str) -> RunConfig:
    """A preset's family at quick size."""
    return shrink(load_preset(name), SIZES["quick"])


def small(**model: object) -> RunConfig:
    """A model of two layers with something special."""
    shape = ModelConfig(vocab_size=80, block_size=24, n_layer=2, n_head=2, n_embd=32)
    train = TrainConfig(batch_size=3, grad_accum_steps=2)
    return RunConfig(model=dataclasses.replace(shape, **model), train=train)  # type: ignore[arg-type]


FAMILIES = {
    "stories-cpu": preset("stories-cpu"),
    "shakespeare-char, dropout": preset("shakespeare-char"),
    "gpt2, biases": preset("gpt2"),
    "biases and dropout": small(bias=True, dropout=0.2),
    "untied head": small(tied_head=False),
    "untied head with bias, tanh GELU": small(tied_head=False, head_bias=True, bias=True, feed_forward="gelu_tanh"),
    "one head, odd sizes": small(n_head=1, n_embd=33, vocab_size=71, block_size=19, bias=True),
    "gradient checkpointing and dropout": dataclasses.replace(
        small(dropout=0.1), train=TrainConfig(batch_size=2, gradient_checkpointing=True)
    ),
    "no clipping, warmup-stable-decay": dataclasses.replace(
        small(), optim=OptimConfig(grad_clip=0, schedule="wsd", weight_decay=0, beta2=0.999)
    ),
    "llama-tiny": preset("llama-tiny"),
    "smollm-135m": preset("smollm-135m"),
    "custom-llm-tiny": preset("custom-llm-tiny"),
    "custom-llm-1b, dropout and gradient checkpointing": preset("custom-llm-1b"),
    "deepseek-tiny": preset("deepseek-tiny"),
    "deepseek-tiny, Muon and an auxiliary loss": dataclasses.replace(
        preset("deepseek-tiny"),
        model=dataclasses.replace(
            preset("deepseek-tiny").model, balancing="loss", balancing_rate=0.01, router="softmax", q_latent=0
        ),
        optim=OptimConfig(optimizer="muon"),
    ),
}


def climb_all(climb: Climb, rungs: list[str]) -> None:
    """Climb, show the figures, and fail with the worst measurement."""
    report = climb_ladder(climb, rungs)
    for result in report.results:
        print(line(result))
    assert report.failed is None, line(report.failed)
    assert [result.rung.name for result in report.results] == rungs


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_climbs_to_the_step_and_generates(family: str) -> None:
    config = with_dropout(FAMILIES[family], FAMILIES[family].model.dropout)
    climb = Climb(config, PAIR, long_sums=family == "stories-cpu")
    # Nor S: these are at their own size already, and it has tests of its own. Nor A and Q, trajectories too, nor R.
    climb_all(climb, [name for name in NAMES if name not in (*TRAJECTORIES, "A", "Q", "R", "S")])


@pytest.mark.parametrize("family", ["shakespeare-char, dropout", "untied head with bias, tanh GELU"])
def test_three_hundred_steps_and_changes_of_framework(family: str) -> None:
    """L7 and L8 with the numbers of the specification; dropout is on in both."""
    config = dataclasses.replace(FAMILIES[family], train=TrainConfig(batch_size=4))
    climb = Climb(with_dropout(config, 0.2), PAIR)
    climb_all(climb, ["L4", *TRAJECTORIES])
    losses = climb.curves["loss"]
    assert len(losses) == 300
    assert losses[-1] < losses[0] - 0.5, "a trajectory that learns nothing compares nothing"
    # Two changes half-way, and five there and back.
    assert [name for name in climb.curves if " > " in name] == [
        "cpu > mlx-cpu",
        "mlx-cpu > cpu",
        "cpu > mlx-cpu > cpu ...",
    ]


@pytest.mark.parametrize("family", ["deepseek-tiny", "custom-llm-tiny"])
def test_routers_agree_along_a_trajectory_and_over_changes_of_framework(family: str) -> None:
    """L7 and L8 where experts are chosen and balanced, with Muon and with dropout; `convert parity` takes 300 steps."""
    optim = dataclasses.replace(FAMILIES[family].optim, optimizer="muon" if family == "deepseek-tiny" else "adamw")
    config = with_dropout(dataclasses.replace(FAMILIES[family], optim=optim), 0.1)
    climb = Climb(config, PAIR, trajectory_steps=40, switch_steps=20)
    climb_all(climb, ["L4", *TRAJECTORIES])
    losses = climb.curves["loss"]
    assert losses[-1] < losses[0] - 0.1, "a trajectory that learns nothing compares nothing"
    assert all(climb.followed), "in every step there were routers to follow"


def test_shrinking_keeps_what_a_family_is_made_of() -> None:
    kinds = ("attention", "feed_forward", "norm", "positions", "router", "balancing", "n_shared_expert", "tied_head")
    for name in ("llama-tiny", "smollm-135m", "custom-llm-tiny", "custom-llm-1b", "deepseek-tiny"):
        whole, small = load_preset(name).model, preset(name).model
        assert [getattr(small, kind) for kind in kinds] == [getattr(whole, kind) for kind in kinds]
        assert bool(small.n_dense_layer) == bool(whole.n_dense_layer)
        assert small.n_expert > small.experts_per_token or not whole.n_expert, "a router has a choice"
        assert (small.n_expert_group > small.groups_per_token) == (whole.n_expert_group > whole.groups_per_token)
        if whole.n_kv_head:
            assert small.n_head // small.n_kv_head == whole.n_head // whole.n_kv_head > 1 < small.n_kv_head
    assert any(preset("deepseek-tiny").model.has_experts(layer) for layer in range(2))


def test_bfloat16_climbs_its_own_gates() -> None:
    config = shrink(load_preset("gpt2"), dataclasses.replace(SIZES["quick"], head_size=24))
    climb = Climb(
        with_dropout(config, 0.1), PAIR, "bf16", trajectory_steps=100, switch_steps=30, tokens=64, long_sums=False
    )
    climb_all(climb, NAMES)


@pytest.mark.slow
@pytest.mark.timeout(900)
# PyTorch's own compiler imports what it has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["cpu-compiled", "mlx-cpu-compiled"])
def test_compiled_backends_meet_the_gates_of_eager_ones(name: str) -> None:
    climb = Climb(with_dropout(FAMILIES["gpt2, biases"], 0.0), [BACKENDS["cpu"], BACKENDS[name]], long_sums=False)
    climb_all(climb, NAMES)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", STANDARD)
def test_presets_climb_at_standard_size(name: str) -> None:
    config = shrink(load_preset(name), SIZES["standard"])
    climb_all(Climb(with_dropout(config, config.model.dropout), PAIR), NAMES)
