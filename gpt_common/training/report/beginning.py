"""What a run says before its first step: where it computes, what it trains, on what, what that takes, and where to."""

from __future__ import annotations

import dataclasses

from gpt_common.data import Dataset
from gpt_common.machine.device import ComputeDevice
from gpt_common.machine.mlx_wheel import advice, built_for
from gpt_common.network.flops import describe_model
from gpt_common.network.room import planned_bytes
from gpt_common.training.opening import Opening
from gpt_common.words import duration, in_memory, milliseconds

LONG_SECONDS = 3600.0


def opening_lines(opening: Opening, device: ComputeDevice, *, timed: bool) -> list[str]:
    """The lines on the console.

    Args:
        timed: the number of steps follows from a time.
    """
    config, data, memory = opening.config, opening.dataset, opening.hardware.memory_bytes
    train = config.train
    floor = f", floor {data.floor:.4f} nats/token" if data.floor is not None else ""
    settled = dataclasses.replace(config, train=dataclasses.replace(train, dtype=device.dtype))
    planned = in_memory(planned_bytes(settled, opening.planned_for, device.name, opening.grids))
    machine = opening.hardware
    # MLX alone calls its device so.
    wheel = advice(machine.chip, built_for(), machine.os) if device.name == "gpu" else None
    steps = f"{opening.first_step} to {opening.stop_at}"
    if timed:
        steps = f"what fits into {train.max_minutes:g} minutes, by the time of the first"
    return [
        f"{device.description}, {device.dtype}, on {opening.hardware.chip}",
        describe_model(config.model),
        f"data: {data.name}, {_tokens(data)}{floor}",
        f"memory: about {planned} for a training step" + (f", of {in_memory(memory)}" if memory else ""),
        f"steps: {steps}, {train.batch_size * train.grad_accum_steps} x {config.model.block_size} tokens each",
        f"folder: {opening.folder}",
        *([wheel] if wheel else []),
        *opening.messages,
    ]


def _tokens(data: Dataset) -> str:
    """How many there are for training and for validation, and whether more may come."""
    if data.stream is None:
        return f"{len(data.train):,} + {len(data.val):,} tokens"
    so_far = "" if data.stream.ended else " so far" + ("" if data.stream.grows else ", and nobody prepares more")
    return f"followed: {len(data.val):,} tokens for validation, behind them {len(data.stream):,}{so_far}"


def long_way(steps_left: int, seconds_per_step: float) -> str | None:
    """A line on the time to the end, if it is hours: nobody should find that out the next day. None if NaN too."""
    left = steps_left * seconds_per_step
    if not left > LONG_SECONDS:
        return None
    return f"at {milliseconds(seconds_per_step)} ms a step the training itself takes {duration(left)} to the end"
