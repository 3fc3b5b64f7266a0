"""Chips that a plan knows by their names."""

from __future__ import annotations

import re

from gpt_common.errors import UserError, nearest
from gpt_common.machine.hardware import Hardware
from gpt_common.machine.peaks import APPLE_GPUS

NVIDIA_CHIPS = {
    "A100": ("NVIDIA A100-SXM4-80GB", 80),
    "H100": ("NVIDIA H100 80GB HBM3", 80),
    "H200": ("NVIDIA H200", 141),
    "L4": ("NVIDIA L4", 24),
    "RTX 4090": ("NVIDIA GeForce RTX 4090", 24),
    "RTX 3090": ("NVIDIA GeForce RTX 3090", 24),
}
"""Full name and memory in GB of GPUs that --chip knows by a short one."""


def named_chip(chip: str, gpu_cores: int | None) -> Hardware:
    """A chip by its name, upper or lower case, with or without "Apple" or "NVIDIA".

    Raises:
        UserError: a chip that no table here knows; the message names the nearest.
    """
    words = re.sub("^(apple|nvidia) ", "", " ".join(chip.split()), flags=re.IGNORECASE)
    known = {name.lower(): name for name in (*APPLE_GPUS, *NVIDIA_CHIPS)}
    name = known.get(words.lower())
    if name in NVIDIA_CHIPS:
        full, memory = NVIDIA_CHIPS[name]
        return Hardware(chip=full, kind="cuda", memory_bytes=memory * 2**30)
    if name in APPLE_GPUS:
        most = APPLE_GPUS[name].cores
        cores = most if gpu_cores is None else gpu_cores
        if not most / 2 <= cores <= most:
            raise UserError(f"--gpu-cores {cores}: an {name} has {most} GPU cores, or somewhat fewer, not under half")
        return Hardware(chip=f"Apple {name}", kind="apple", cpu=f"Apple {name}", gpu_cores=cores)
    if match := re.fullmatch(r"m(\d+)( pro| max| ultra)?", words.lower()):
        # Newer than the table: its memory can be planned, its peak is unknown.
        title = f"Apple M{match.group(1)}{(match.group(2) or '').title()}"
        return Hardware(chip=title, kind="apple", cpu=title, gpu_cores=gpu_cores)
    raise UserError(f"no chip '{chip}': {nearest(words, known.values())}")
