"""What ways of sharing a run go with it and with each other; each refusal names what to leave out."""

from __future__ import annotations

from typing import Any

import pytest

from gpt_common.commands import TrainCommand
from gpt_common.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from gpt_common.errors import UserError
from gpt_common.training.ranks.sharing import check_shared

EXPERTS = {"feed_forward": "moe", "n_expert": 4, "experts_per_token": 2, "expert_width": 16, "balancing": "bias"}


def command(
    train: dict[str, Any] | None = None,
    optim: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    *,
    follow: bool = False,
    **flags: Any,
) -> TrainCommand:
    run = RunConfig(
        train=TrainConfig(**{"sample_tokens": 0, **(train or {})}),
        optim=OptimConfig(**(optim or {})),
        model=ModelConfig(**(model or {})),
        data=DataConfig(dataset="mine", follow=follow),
    )
    return TrainCommand(run=run, **flags)


def averages(more: dict[str, Any] | None = None, **others: Any) -> TrainCommand:
    return command({"average_every": 2, "eval_interval": 4, "checkpoint_interval": 4, **(more or {})}, **others)


@pytest.mark.parametrize(
    ("asked", "world", "said"),
    [
        (averages(), 1, "for several ranks, and this is one: --average-every 0"),
        (averages({"eval_interval": 5}), 2, "eval_interval is 5, and ranks are equal every 2 steps"),
        (averages({"checkpoint_interval": 5}), 2, "checkpoint_interval is 5"),
        (averages(optim={"ema_decay": 0.9}), 2, "ema_decay is a mean over every step"),
        (averages(model=EXPERTS), 2, "balancing by a bias"),
        (averages(follow=True), 2, "--follow asks the other ranks at every step"),
        (averages(parallel="ddp"), 2, "--parallel ddp asks the other ranks at every step"),
        (averages(shard_optimizer=True), 2, "--shard-optimizer asks the other ranks at every step"),
        (command(parallel="ddp"), 1, "--parallel ddp is for several ranks, and this is one"),
        (command({"compile": True}, parallel="ddp"), 2, "leave out --compile"),
        (command({"device": "mps"}, parallel="fsdp"), 2, "which MPS has not"),
        (command(optim={"optimizer": "muon"}, parallel="fsdp"), 2, "take --parallel ddp --shard-optimizer"),
        (command(optim={"ema_decay": 0.9}, parallel="fsdp"), 2, "leave out --ema-decay"),
        (command(parallel="fsdp", shard_optimizer=True), 2, "leave out --shard-optimizer"),
        (command({"sample_tokens": 5}, parallel="fsdp"), 2, "add --sample-tokens 0"),
    ],
)
def test_what_does_not_go_together_is_refused(asked: TrainCommand, world: int, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        check_shared(asked, "torch_gpt", world)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("flags", "said"), [({"parallel": "ddp"}, "ddp"), ({"shard_optimizer": True}, "--shard-")])
def test_what_needs_a_launcher(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"{said}.* needs a launcher"):
        check_shared(command(**flags), "torch_gpt", 2, by_hand=True)
    check_shared(command(**flags), "torch_gpt", 2)


def test_what_goes_together() -> None:
    for twin in ("mlx_gpt", "torch_gpt"):
        check_shared(command(), twin, 1)
        check_shared(averages(), twin, 2, by_hand=True)
        check_shared(command(optim={"optimizer": "muon"}, shard_optimizer=True), twin, 2)
    check_shared(command(parallel="fsdp"), "torch_gpt", 2)
    with pytest.raises(UserError, match="is PyTorch's"):
        check_shared(command(parallel="ddp"), "mlx_gpt", 2)
