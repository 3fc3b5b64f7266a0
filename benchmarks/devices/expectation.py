"""What a step takes when several devices share it, from what it takes one: behind `plan.py --devices N --link LINK`.

Micro-steps are divided, and what each device does whole is not: the copies into one flat float32 buffer and out of it,
the clip and the update. The buffer is added up by a ring, in which each device sends 2 (N - 1) / N of it in 2 (N - 1)
messages. On this machine it is measured instead, with what ranks side by side lose and how long each waits for the
slower; of devices apart nobody has measured that.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.devices.links import LINKS, LOCALHOST, Link, memory_rate
from benchmarks.devices.localhost import Load, Losses, measured
from gpt_common.config import RunConfig
from gpt_common.errors import UserError, nearest
from gpt_common.machine.hardware import Hardware
from gpt_common.network.parameters import trained_shapes
from gpt_common.training.ranks.agreement import WISHES, Agreement

NUMBER = 4
"""Bytes of a float32."""
COPIES = 4
"""How often the flat buffer is read or written by copies: gradients are read, it is written; it is read, they are."""
UPDATE = 9
"""How often AdamW's update and the clip go over the parameters: gradients for the norm and for the clip (read and
written), then weights and two moments (read and written)."""

NOT_KNOWN = "how long a device waits for the slower in each sum is not known, and not counted"


@dataclass(frozen=True)
class Expected:
    """A step of several devices, in seconds."""

    alone: float
    """Of one device, which does all micro-steps."""
    compute: float
    """Of its share of the micro-steps."""
    update: float
    """Of what each does whole."""
    copies: float
    """Into the flat buffer and out of it."""
    sum: float
    """Of the flat buffer, over the link, when all come at once."""
    devices: int
    waits: float | None = None
    """What each is slowed by the others and waits for the slower; None: not known, and not counted."""

    @property
    def step(self) -> float:
        """All of it."""
        return self.between + self.sum + (self.waits or 0.0)

    @property
    def between(self) -> float:
        """Of one device's own work, from one sum to the next."""
        return self.compute + self.update + self.copies

    @property
    def efficiency(self) -> float:
        """Against as many devices that each train alone."""
        return self.alone / (self.devices * self.step)


def summed_numbers(config: RunConfig) -> int:
    """Numbers that a step adds up over ranks: gradients, the loss, loads of experts, wishes."""
    model = config.model
    loads = sum(model.n_expert for layer in range(model.n_layer) if model.has_experts(layer))
    trained = sum(math.prod(shape) for shape in trained_shapes(model, config.adapter).values())
    return trained + 1 + loads + WISHES


def sum_seconds(count: int, devices: int, link: Link) -> float:
    """A ring's time for `count` float32 numbers."""
    rounds = 2 * (devices - 1)
    return rounds * link.latency + rounds / devices * NUMBER * count / link.rate


def expected(alone: float, count: int, devices: int, total: float, memory: float) -> Expected:
    """A step of several devices.

    Args:
        alone: seconds of one device for all micro-steps and the update.
        count: numbers that are added up.
        total: seconds of their sum.
        memory: bytes per second of a device's memory.
    """
    pass_over = NUMBER * count / memory
    update = min(UPDATE * pass_over, alone)
    copies = COPIES * pass_over if devices > 1 else 0.0
    return Expected(alone, (alone - update) / devices, update, copies, total if devices > 1 else 0.0, devices)


def expected_here(twin: str, alone: float, config: RunConfig, devices: int, memory: float) -> tuple[Expected, Losses]:
    """A step of several ranks on this machine, and what was measured for it.

    Args:
        twin: `torch` or `mlx`.
        alone: seconds of one rank for all micro-steps and the update.
        memory: bytes per second of its memory.

    Raises:
        WorkFailed: nothing could be measured.
    """
    count = summed_numbers(config)
    step = expected(alone, count, devices, 0.0, memory)
    found = measured(twin, devices, count, Load(step.between, config))
    return replace(step, sum=found.sum, waits=found.waits), found


def check(devices: int, link: str | None, config: RunConfig, hardware: Hardware) -> None:
    """Raise UserError if so many devices cannot share a step, or nobody knows what is between them."""
    if link is None:
        raise UserError(f"--devices {devices}: over which link? Add --link {' | '.join([*LINKS, LOCALHOST])}")
    if link not in (*LINKS, LOCALHOST):
        raise UserError(f"no link '{link}': {nearest(link, [*LINKS, LOCALHOST])}")
    if link == LOCALHOST and hardware.kind != "cpu" and config.train.device != "cpu":
        raise UserError("--link localhost is for ranks on the cores of one machine: add --device cpu")
    Agreement(world=devices).check_dealt(config.train.grad_accum_steps)


def with_devices(
    plan: dict[str, Any],
    config: RunConfig,
    hardware: Hardware,
    devices: int,
    link: str,
) -> dict[str, Any]:
    """A plan with what several devices make of it, as `devices` of the plan and of each twin.

    Args:
        plan: what `make_plan` made, of one device.
        config: planned.
        hardware: of each device.

    Raises:
        WorkFailed: nothing could be measured on this machine.
    """
    count, per_step = summed_numbers(config), plan["tokens"]["per_step"]
    twins = []
    for one in plan["twins"]:
        rate, basis = memory_rate(hardware, one["device"])
        usable, needed = plan["machine"]["usable_bytes"], one["memory"]["total"] + 2 * NUMBER * count
        shared = devices if link == LOCALHOST else 1
        several: dict[str, Any] = {
            "memory_bytes": needed,
            "fits": None if usable is None else shared * needed <= usable,
            "memory_rate": {"bytes_per_second": rate, "basis": basis},
            "link": None if link == LOCALHOST else LINKS[link].basis,
            "waits": None if link == LOCALHOST else NOT_KNOWN,
            "step": None,
        }
        if one["seconds"] is not None:
            alone = one["seconds"] * per_step / plan["tokens"]["count"]
            if link == LOCALHOST:
                step, found = expected_here(one["twin"], alone, config, devices, rate)
                several |= {"link": found.sum_basis, "waits": found.waits_basis}
            else:
                step = expected(alone, count, devices, sum_seconds(count, devices, LINKS[link]), rate)
            several |= {
                "step": {**dataclasses.asdict(step), "seconds": step.step},
                "efficiency": step.efficiency,
                "tokens_per_second": per_step / step.step,
                "tokens_per_second_per_device": per_step / step.step / devices,
                "seconds": step.step * plan["tokens"]["count"] / per_step,
            }
        twins.append({**one, "devices": several})
    about = {"count": devices, "link": link, "numbers": count, "bytes": NUMBER * count}
    return {**plan, "twins": twins, "devices": about}
