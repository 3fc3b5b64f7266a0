"""What a run says before its first step: where it computes, what it trains, on what, what that takes, and where to."""

from __future__ import annotations

import dataclasses
import math

from gpt_common.adapting.placement import placed
from gpt_common.config import RunConfig
from gpt_common.data import Dataset
from gpt_common.machine.device import ComputeDevice
from gpt_common.machine.hardware import memory_for
from gpt_common.machine.mlx_wheel import advice, built_for
from gpt_common.network.flops import describe_model, parameter_count
from gpt_common.network.parameters import parameter_shapes, trained_shapes
from gpt_common.network.room import planned_bytes
from gpt_common.training.opening import Opening
from gpt_common.words import duration, in_memory, milliseconds, share

LONG_SECONDS = 3600.0


def opening_lines(opening: Opening, device: ComputeDevice, *, timed: bool) -> list[str]:
    """The lines on the console.

    Args:
        timed: the number of steps follows from a time.
    """
    config, data, memory = opening.config, opening.dataset, memory_for(opening.hardware, device.name)
    train = config.train
    floor = f", floor {data.floor:.4f} nats/token" if data.floor is not None else ""
    settled = dataclasses.replace(config, train=dataclasses.replace(train, dtype=device.dtype))
    planned = in_memory(planned_bytes(settled, opening.planned_for, device.name, opening.grids, opening.together))
    machine = opening.hardware
    # MLX alone calls its device so.
    wheel = advice(machine.chip, built_for(), machine.os) if device.name == "gpu" else None
    steps = f"{opening.first_step} to {opening.stop_at}"
    if timed:
        steps = f"what fits into {train.max_minutes:g} minutes, by the time of the first"
    return [
        f"{device.description}, {device.dtype}, on {opening.hardware.chip}",
        describe_model(config.model),
        *_adapter(config),
        f"data: {data.name}, {_tokens(data)}{floor}",
        f"memory: about {planned} for a training step" + (f", of {in_memory(memory)}" if memory else ""),
        f"steps: {steps}, {train.batch_size * train.grad_accum_steps} x {config.model.block_size} tokens each",
        f"folder: {opening.folder}",
        *([wheel] if wheel else []),
        *opening.messages,
    ]


def _adapter(config: RunConfig) -> list[str]:
    """How little is trained, where there is an adapter."""
    if not config.adapter.adapts:
        return []
    shapes, kind = (
        trained_shapes(config.model, config.adapter),
        {"lora": "LoRA", "dora": "DoRA"}[config.adapter.adapter],
    )
    trained = sum(math.prod(shape) for shape in shapes.values())
    whole = f", {', '.join(config.adapter.adapter_whole)} whole" if config.adapter.adapter_whole else ""
    count = len(placed(parameter_shapes(config.model), config.adapter))
    part = share(trained / parameter_count(config.model))
    return [f"adapter: {kind} beside {count} matrices{whole}: {trained:,} numbers to train, {part} of the model's"]


def _tokens(data: Dataset) -> str:
    """How many there are for training and for validation, and whether more may come."""
    if data.stream is None:
        said = f"{len(data.train):,} + {len(data.val):,} tokens"
        if data.examples is None:
            return said
        train, val = (int(part.counted.sum()) for part in data.examples)
        return f"{said}, of which {train:,} + {val:,} are learnt"
    so_far = "" if data.stream.ended else " so far" + ("" if data.stream.grows else ", and nobody prepares more")
    return f"followed: {len(data.val):,} tokens for validation, behind them {len(data.stream):,}{so_far}"


def long_way(steps_left: int, seconds_per_step: float) -> str | None:
    """A line on the time to the end, if it is hours: nobody should find that out the next day. None if NaN too."""
    left = steps_left * seconds_per_step
    if not left > LONG_SECONDS:
        return None
    return f"at {milliseconds(seconds_per_step)} ms a step the training itself takes {duration(left)} to the end"
