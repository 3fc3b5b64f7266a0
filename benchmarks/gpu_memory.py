"""How much of a machine's memory a training can use, and who says so."""

from __future__ import annotations

import subprocess
import sys

from gpt_common.machine.hardware import Hardware, wired_limit

USABLE = {
    "cuda": (0.95, "95 % of the GPU's memory: the driver takes its share"),
    "cpu": (0.9, "90 % of memory: the rest is the system's"),
}
LARGE_BYTES = 32 * 2**30
"""Up to so much memory macOS lets a GPU hold two thirds of it, of more three quarters: what Metal recommends, as many
have read it off (github.com/ggml-org/llama.cpp/discussions/2182). From macOS 15 on it is more, 74 to 84 %; how much, a
Mac is asked."""
QUESTIONS = {
    "MLX's device_info": "import mlx.core as mx; print(int(mx.device_info()['max_recommended_working_set_size']))",
    "torch.mps.recommended_max_memory": "import torch; print(torch.mps.recommended_max_memory())",
}


def usable_memory(
    hardware: Hardware, device: str = "auto", limit: tuple[int, str] | None = None
) -> tuple[int | None, str]:
    """Bytes that training can use, and why so many; None if the memory is unknown.

    Args:
        hardware: the machine.
        device: "cpu", or anything else for its GPU, if it has one.
        limit: what `limit_here` found, if the machine is this one.
    """
    kind = "cpu" if device == "cpu" else hardware.kind
    if kind == "apple" and limit is not None:
        return limit
    if (memory := hardware.memory_bytes) is None:
        return None, "memory unknown"
    if kind == "apple":
        part, words = (3 / 4, "three quarters") if memory > LARGE_BYTES else (2 / 3, "two thirds")
        source = "github.com/ggml-org/llama.cpp/discussions/2182; macOS 15 and later let it hold more"
        return int(memory * part), f"{words} of memory, which macOS lets a GPU hold: {source}"
    part, basis = USABLE[kind]
    return int(memory * part), basis


def limit_here() -> tuple[int, str] | None:
    """What the GPU of this Mac may hold, and who says so: its owner, or Metal; None if neither does.

    A process of its own asks Metal: a plan loads no framework.
    """
    if (owners := wired_limit()) is not None:
        return owners, "the limit that is set on this Mac, sysctl iogpu.wired_limit_mb"
    for who, question in QUESTIONS.items():
        try:
            done = subprocess.run([sys.executable, "-c", question], capture_output=True, timeout=60, text=True)
            return int(done.stdout), f"what Metal recommends on this Mac, as {who} says"
        except (OSError, subprocess.SubprocessError, ValueError):
            continue
    return None
