"""The lines that `plan.py --devices` adds to its tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.devices.expectation import COPIES, UPDATE
from benchmarks.devices.links import LOCALHOST
from gpt_common.words import in_memory, share

Rows = dict[str, Callable[[Any], str]]


def device_rows(amount: Callable[[float], str], duration: Callable[[float], str], devices: dict[str, Any]) -> Rows:
    """What the rows are called, and what each says of a twin."""

    def step(part: str) -> Callable[[Any], str]:
        def write(one: Any) -> str:
            seconds = one["devices"]["step"][part]
            return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"

        return write

    here = devices["link"] == LOCALHOST
    of = f" of {devices['count']}" if here else ""
    return {
        "a step of one": step("alone"),
        "a step of all": step("seconds"),
        "  its micro-steps": step("compute"),
        "  clip and update": step("update"),
        "  copies": step("copies"),
        "  sum over the link": step("sum"),
        **({"  slowed and waiting": step("waits")} if here else {}),
        "efficiency": lambda one: share(one["devices"]["efficiency"]),
        "tokens/s in all": lambda one: amount(one["devices"]["tokens_per_second"]),
        "tokens/s of each": lambda one: amount(one["devices"]["tokens_per_second_per_device"]),
        "time": lambda one: duration(one["devices"]["seconds"]),
        "memory of each": lambda one: in_memory(one["devices"]["memory_bytes"]),
        f"fits{of}": lambda one: "yes" if one["devices"]["fits"] else "no",
    }


def title(devices: dict[str, Any]) -> str:
    """Of the table."""
    return f"{devices['count']} over {devices['link']}"


def device_notes(plan: dict[str, Any]) -> Iterator[str]:
    """Where the figures come from."""
    devices, accumulated = plan["devices"], plan["config"]["train"]["grad_accum_steps"]
    yield (
        f"devices: {accumulated} micro-steps (grad_accum_steps), {accumulated // devices['count']} of each, a multiple "
        f"of the devices; every one holds all weights and moments, and {in_memory(devices['bytes'])} twice for the sum"
    )
    yield (
        f"sum: a ring over {in_memory(devices['bytes'])} of float32, 2 (N - 1) / N of it sent by each, in 2 (N - 1) "
        "messages; nothing overlaps with it"
    )
    for one in plan["twins"]:
        yield f"link: {one['devices']['link']}"
    for one in plan["twins"]:
        yield f"waiting: {one['devices']['waits']}"
    for one in plan["twins"]:
        yield (
            f"copies and update: {COPIES} and {UPDATE} times the parameters over memory, "
            f"{one['devices']['memory_rate']['basis']}"
        )
