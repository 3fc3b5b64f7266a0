"""A logged step: what one row of metrics.jsonl says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One logged step. NaN in a timing means that no step of the window was timed (compilation, a machine asleep)."""

    step: int
    """Steps done."""
    loss: float
    """Training loss of this step's batches, nats per token."""
    lr: float
    """Learning rate of this step."""
    grad_norm: float
    """Global gradient norm before clipping."""
    dt: float
    """Seconds per step: mean over the log window, without evaluation, checkpoints or compilation."""
    dt_data: float
    """Seconds of dt that went into making the batch."""
    sps: float
    """Sequences per second."""
    tps: float
    """Tokens per second."""
    mfu: float | None
    """Model FLOPs utilisation, a share of the chip's published peak; None where the peak is unknown."""
    memory: int | None
    """Peak memory in bytes; None where the backend does not tell."""
    power_watts: float | None = None
    """Mean power since the last record, as the source of `--power` counts it; None without one."""
    gpu_usage: float | None = None
    """Share of that time in which the GPU was busy, 0 to 1; None where the source does not tell."""
    tps_per_rank: float | None = None
    """Tokens per second of each of several ranks; None of one."""
    dt_ranks: float | None = None
    """Seconds of dt in which rank 0 waited for the sum over ranks; None of one."""
    slowest_rank: int | None = None
    """The rank that waited least in sums since the last record; None of one, or where it is not known."""
    dt_behind: float | None = None
    """Seconds of a step that some rank waited longer than that one."""
    efficiency: float | None = None
    """Steps per second and rank, as a share of those of one rank alone; None where those were not measured."""
    expert_load: list[list[float]] | None = None
    """Mixture of experts: tokens of each expert since the last record, per router, as multiples of its fair share."""


def fair_shares(loads: Sequence[Sequence[int]]) -> list[list[float]] | None:
    """Loads by router and expert as multiples of the fair share, 1 where all experts of a router are equally busy.

    None without experts.
    """
    return [[round(len(row) * load / sum(row), 4) for load in row] for row in loads] or None
