"""Which engines a run can be carried by: what goes together, and what is refused before anything starts.

Nothing here changes what comes out of a run: these are no fields of its configuration, and a run goes on with others.
"""

from __future__ import annotations

from gpt_common.commands import TrainCommand
from gpt_common.errors import UserError


def check_engine(command: TrainCommand, twin: str, world: int, *, by_hand: bool = False) -> None:
    """Refuse an engine that this run cannot be trained by, in one line.

    Args:
        by_hand: ranks were started by --listen and --join.

    Raises:
        UserError: names what does not go together, and what to leave out.
    """
    engine, config = command.parallel, command.run
    if by_hand:
        for flag in [f"--parallel {engine}"] * (engine != "flat") + ["--shard-optimizer"] * command.shard_optimizer:
            raise UserError(f"{flag} needs a launcher, torchrun or mlx.launch: leave it out with --listen and --join")
    if config.train.average_every:
        flags = [f"--parallel {engine}"] * (engine != "flat") + ["--shard-optimizer"] * command.shard_optimizer
        for flag in flags + ["--follow"] * config.data.follow:
            raise UserError(f"{flag} asks the other ranks at every step, and averages do not: leave one of them out")
    if engine == "flat":
        return
    asked = f"--parallel {engine}"
    if twin == "mlx_gpt":
        raise UserError(f"{asked} is PyTorch's: leave it out, MLX adds gradients up in one flat sum")
    if world == 1:
        raise UserError(f"{asked} is for several ranks, and this is one: start them by torchrun, or leave it out")
    if config.train.compile:
        raise UserError(f"{asked} runs the step as it is written: leave out --compile")
    if config.train.device == "mps":
        raise UserError(f"{asked} needs collectives, which MPS has not: leave it out")
    if engine == "ddp":
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
