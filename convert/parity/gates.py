"""How far two backends may differ, by rung and by class of arithmetic.

The strict and bf16 figures stand near the noise that was measured on a Linux CPU (torch 2.13, MLX 0.32.4), and the
strict ones hold on an H100; they are never loosened to let a run pass. TF32 keeps 10 bits of the mantissa where bf16
keeps 7, so its gates are bf16's divided by 8: derived, not measured.
"""

from __future__ import annotations

from typing import Literal

Precision = Literal["strict", "tf32", "bf16"]

STRICT = {
    "L0": 0.0,
    "L1": 2e-6,
    "L1 long sums": 1e-5,
    "L2 forward": 3e-6,
    "L2 backward": 1e-5,
    "L3": 5e-6,
    "L4": 5e-6,
    "L5": 1e-5,
    "L6a distance": 1e-4,
    "L6a update": 2e-6,
    "L6a moments": 1e-6,
    "L6b": 5e-4,
    "L7 loss": 1e-5,
    "L7 weights": 1e-3,
    "L8": 1e-5,
    "R order": 1e-6,
    "R resume": 1e-5,
}
BF16 = {
    "L0": 0.0,
    "L1": 1e-2,
    "L1 long sums": 1e-2,
    "L2 forward": 1.5e-2,
    "L2 backward": 5e-2,
    "L3": 2.5e-2,
    "L4": 2e-3,
    "L5": 0.15,
    # The optimiser's state is float32 in every class.
    "L6a distance": 1e-4,
    "L6a update": 2e-6,
    "L6a moments": 1e-6,
    "L7 loss": 2e-2,
    "L7 mean of last 50": 1e-3,
    "L8": 2e-2,
    "L8 mean of last 50": 1e-3,
    "R order": 5e-3,
    "R resume": 2e-2,
}
TF32 = {name: gate if name.startswith(("L0", "L6a")) else gate / 8 for name, gate in BF16.items()}
TF32 |= {name: STRICT[name] for name in ("R order", "R resume")}  # ranks train on CPUs, which have no TF32
GATES: dict[Precision, dict[str, float]] = {"strict": STRICT, "tf32": TF32, "bf16": BF16}

ORACLE_RATIO = 8.0
"""MLX's error against the float64 oracle, at most this many times PyTorch's."""
ENVELOPE = 10.0
"""A trajectory may drift at most this many times as far as one whose first weights are changed by one unit in the last
place."""
COARSE_NOISE = 3.0
"""The gates of bf16 were measured on GPT-2's kinds of layers. With others a gate is at least this many times what
weights one unit in the last place off make of the same in float64: of a SwiGLU's block 1.8e-2, where PyTorch is off by
1.2e-2, MLX by 1.5e-2, and the gate is 1.5e-2. What multiplies two numbers adds up their rounding."""
SIGMAS = 5.0
"""The share that dropout sets to zero lies within this many standard deviations of a binomial draw: a right one is
further off once in 1.7 million draws, and draws are keyed, so that one which passes always does."""
TOP1_MARGIN = 10.0
"""The likeliest token must agree wherever it leads by more than this many times the error."""
ROUNDING: dict[Precision, float] = {"strict": 2.0**-23, "tf32": 2.0**-10, "bf16": 2.0**-8}
"""Errors below the rounding of one number are luck: no ratio is taken over less."""

MEASURED = {("strict", "cpu"), ("strict", "mlx-cpu"), ("strict", "cuda"), ("bf16", "cpu"), ("bf16", "mlx-cpu")}
"""Classes and backends on which the gates have been tried; a report on any other says so."""
