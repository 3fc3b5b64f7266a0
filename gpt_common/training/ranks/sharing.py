"""How ranks may share a run: what goes together, and what is refused before anything starts.

An engine changes nothing of what comes out of a run, is no field of its configuration, and a run goes on with another;
averages do and are.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpt_common.commands import TrainCommand
from gpt_common.config import RunConfig
from gpt_common.errors import UserError


def check_shared(command: TrainCommand, twin: str, world: int, *, by_hand: bool = False) -> None:
    """Refuse ways of sharing that do not go with this run, or with each other, in one line.

    Args:
        world: how many ranks there are.
        by_hand: they were started by --listen and --join.

    Raises:
        UserError: names what does not go together, and what to leave out.
    """
    config = command.run
    asked = f"--parallel {command.parallel}"
    flags = [asked] * (command.parallel != "flat") + ["--shard-optimizer"] * command.shard_optimizer
    if by_hand and flags:
        raise UserError(f"{flags[0]} needs a launcher, torchrun or mlx.launch: leave it out with --listen and --join")
    if config.train.average_every:
        _check_averages(config, world, flags + ["--follow"] * config.data.follow)
    if command.parallel != "flat":
        _check_engine(command, twin, world, asked)


def _check_averages(config: RunConfig, world: int, flags: Sequence[str]) -> None:
    """Refuse what does not go with ranks that take steps of their own.

    Args:
        flags: those given that need the other ranks at every step.
    """
    every = config.train.average_every
    if world == 1:
        raise UserError(f"average_every {every} is for several ranks, and this is one: --average-every 0")
    if flags:
        raise UserError(f"{flags[0]} asks the other ranks at every step, and averages do not: leave one of them out")
    for name in ("eval_interval", "checkpoint_interval"):
        if (interval := getattr(config.train, name)) % every:
            raise UserError(f"{name} is {interval}, and ranks are equal every {every} steps only: make it a multiple")
    if config.optim.ema_decay:
        raise UserError("ema_decay is a mean over every step, and ranks meet at averages only: leave one of them out")
    if config.model.feed_forward == "moe" and config.model.balancing == "bias":
        raise UserError("balancing by a bias needs every step's loads of all ranks: leave average_every out")


def _check_engine(command: TrainCommand, twin: str, world: int, asked: str) -> None:
    """Refuse what an engine of PyTorch's, `asked` for by this flag, cannot carry."""
    config = command.run
    if twin == "mlx_gpt":
        raise UserError(f"{asked} is PyTorch's: leave it out, MLX adds gradients up in one flat sum")
    if world == 1:
        raise UserError(f"{asked} is for several ranks, and this is one: start them by torchrun, or leave it out")
    if config.train.compile:
        raise UserError(f"{asked} runs the step as it is written: leave out --compile")
    if config.train.device == "mps":
        raise UserError(f"{asked} needs collectives, which MPS has not: leave it out")
    if command.parallel == "ddp":
        return
    dealt = "--parallel fsdp deals the weights to ranks"
    if config.adapter.adapts:
        raise UserError(f"{dealt}, and those beside an adapter are not trained: take ddp")
    if config.optim.optimizer == "muon":
        raise UserError(f"{dealt}, and Muon needs whole matrices: take --parallel ddp --shard-optimizer")
    if config.optim.ema_decay:
        raise UserError(f"{dealt}, and their mean stays whole: take ddp, or leave out --ema-decay")
    if command.shard_optimizer:
        raise UserError(f"{dealt}, and the optimiser's state with them: leave out --shard-optimizer")
    if config.train.sample_tokens:
        raise UserError(f"{dealt}, so none of them can write samples: add --sample-tokens 0, and sample what is saved")
