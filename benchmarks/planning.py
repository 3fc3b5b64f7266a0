"""What a run will take, worked out before it: the figures behind `benchmarks/plan.py`."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from benchmarks.assumptions import assumed_memory, assumed_peak, assumed_power
from benchmarks.gpu_memory import usable_memory
from benchmarks.grids import grids_on
from benchmarks.shares import nearest_share
from gpt_common.adapting.quantisation import NOT_QUANTISED, Grid, Grids
from gpt_common.config import Device, RunConfig, TrainConfig, to_dict
from gpt_common.errors import UserError
from gpt_common.machine.hardware import Hardware, memory_for, published_peak
from gpt_common.machine.peaks import Peak, apple_bandwidth, estimated_peak, largest_power
from gpt_common.network.flops import (
    active_parameter_count,
    buffer_count,
    flops_per_step_exact,
    flops_per_token_palm,
    parameter_count,
    parameter_table,
)
from gpt_common.network.memory import (
    Twin,
    decode_bytes_per_token,
    full_kv_bytes_per_token,
    kv_cache_bytes_per_token,
    memory_plan,
    planned_device,
)

VERSION = 1
TOKENS_PER_PARAMETER = 20
"""Hoffmann et al. 2022 ("Chinchilla", arXiv:2203.15556), table 3: about 20 tokens for each parameter."""
CHINCHILLA = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
"""L = E + A / N^alpha + B / D^beta, their approach 3, with the constants of Besiroglu et al. 2024 (arXiv:2404.10102),
who corrected the fit; nats per token of their corpus and their tokenizer of 32 000 entries."""

MAX_BATCH = 1 << 16
"""No larger one is looked for."""


@dataclass(frozen=True)
class Measured:
    """A speed that a benchmark found."""

    flops_per_second: float
    """PaLM's count over the time of a step."""
    watts: float | None
    """Mean power during it, where a source was found."""
    source: str
    """Which row of which file."""
    peak: Peak | None = None
    """Rate of its fastest matrix product, where that was on the device and in the dtype planned for."""


def make_plan(
    name: str,
    config: RunConfig,
    hardware: Hardware,
    *,
    tokens: int | None = None,
    mfu: float | None = None,
    watts: float | None = None,
    measured: dict[Twin, Measured] | None = None,
    limit: tuple[int, str] | None = None,
    assume: bool = False,
    grid: Grid | None = None,
) -> dict[str, Any]:
    """All figures as plain values, for JSON and for the tables.

    Args:
        name: of the configuration.
        config: with the size of its vocabulary.
        hardware: the machine to plan for.
        tokens: how many to train on; the configuration's own steps if None.
        mfu: assumed share of the peak; that of the nearest published row if None.
        watts: power to reckon energy with; a measured or published one if None.
        measured: speeds that take the place of an assumption.
        limit: bytes that the GPU of this very Mac may hold, and who says so.
        assume: whether a memory, peak or power that is not known is assumed, and said to be; otherwise what follows
            from it is None.
        grid: on which the matrices of the base are quantised, beside an adapter.

    Raises:
        UserError: an MFU is given for a chip whose peak nobody has published.
    """
    model, train = config.model, config.train
    per_step = train.batch_size * train.grad_accum_steps * model.block_size
    count = tokens or per_step * train.max_steps
    assumption = None
    if assume and hardware.memory_bytes is None:
        size, assumption = assumed_memory(hardware)
        hardware = dataclasses.replace(hardware, memory_bytes=size)
    usable, basis = usable_memory(hardware, train.device, limit)
    per_token = flops_per_token_palm(model, adapter=config.adapter)
    twins = [
        _twin(twin, config, hardware, usable, count * per_token, mfu, watts, (measured or {}).get(twin), assume, grid)
        for twin in get_args(Twin)
    ]
    return {
        "version": VERSION,
        "name": name,
        "config": to_dict(config),
        "model": {
            "parameters": parameter_count(model),
            "active_parameters": active_parameter_count(model),
            "buffers": buffer_count(model),
            "parts": parameter_table(model),
        },
        "flops": {
            "per_token_palm": per_token,
            "per_token_exact": flops_per_step_exact(model, 1) / model.block_size,
            "per_step_palm": per_token * per_step,
        },
        "machine": {
            **asdict(hardware),
            "memory_assumed": assumption,
            "usable_bytes": usable,
            "usable_basis": basis,
        },
        "tokens": {
            "count": count,
            "per_step": per_step,
            "basis": "given" if tokens else f"{train.max_steps:,} steps of {per_step:,}",
        },
        "twins": twins,
        "compute_optimal": compute_optimal(parameter_count(model)),
    }


def _twin(
    twin: Twin,
    config: RunConfig,
    hardware: Hardware,
    usable: int | None,
    flops: float,
    mfu: float | None,
    watts: float | None,
    measured: Measured | None,
    assume: bool,
    grid: Grid | None,
) -> dict[str, Any]:
    """Memory, time and energy of one twin."""
    device, dtype = planned_device(twin, config.train, hardware.kind)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, dtype=dtype))
    grids = grids_on(config, grid)
    plan = memory_plan(config, twin, device, grids)
    peak = published_peak(hardware, device, dtype) or (measured.peak if measured else None)
    if assume and peak is None and device != "cpu":
        peak = estimated_peak(hardware.chip, hardware.gpu_cores, dtype)
    if mfu is not None and peak is None:
        raise UserError(f"--mfu is a share of a peak, and nobody has published one of {hardware.chip}: use --result")
    if assume and peak is None:
        peak = assumed_peak(hardware, device, dtype)
    rate, basis = None, "no published peak for this chip: measure one, and give the result with --result"
    if measured:
        rate, basis = measured.flops_per_second, f"measured: {measured.source}"
    elif peak:
        place: Device = "cuda" if hardware.kind == "cuda" and device != "cpu" else device
        nearest = nearest_share(twin, place, dtype, compiled=config.train.compile)
        share, basis = (nearest.mfu, nearest.basis(twin, place, dtype)) if mfu is None else (mfu, "given")
        rate = share * peak.flops
    power = _power(hardware, watts, measured) or (assumed_power(hardware) if assume else None)
    seconds = flops / rate if rate else None
    number = 2 if dtype == "bfloat16" else 4
    return {
        "twin": twin,
        "device": device,
        "dtype": dtype,
        "memory": {**asdict(plan), "total": plan.total},
        "fits": None if usable is None else plan.total <= usable,
        "kv_cache_bytes_per_token": kv_cache_bytes_per_token(config.model, number),
        "full_kv_bytes_per_token": full_kv_bytes_per_token(config.model, number),
        "largest_batch": largest_batch(config, twin, device, usable, checkpointing=False, grids=grids),
        "largest_batch_checkpointing": largest_batch(config, twin, device, usable, checkpointing=True, grids=grids),
        "decode": _decode(config, hardware, number, grid),
        "peak": asdict(peak) if peak else None,
        "speed": {
            "flops_per_second": rate,
            "mfu": rate / peak.flops if rate and peak else None,
            "tokens_per_second": rate / flops_per_token_palm(config.model, adapter=config.adapter) if rate else None,
            "basis": basis,
        },
        "seconds": seconds,
        "power": None if power is None else {"watts": power[0], "basis": power[1]},
        "joules": seconds * power[0] if seconds and power else None,
    }


def _decode(config: RunConfig, hardware: Hardware, number: int, grid: Grid | None) -> dict[str, Any] | None:
    """The most tokens per second that memory allows one sequence, whose cache is as long as a block; None if unknown.

    Every token needs all matrices, and nothing says that they are read only once: the true rate is lower.
    """
    if (bandwidth := apple_bandwidth(hardware.chip, hardware.gpu_cores)) is None:
        return None
    context = config.model.block_size
    read = decode_bytes_per_token(config.model, number, context, grid)
    return {
        "bytes_per_token": read,
        "context": context,
        "bandwidth": bandwidth[0],
        "source": bandwidth[1],
        "tokens_per_second_at_most": bandwidth[0] / read,
    }


def _power(hardware: Hardware, watts: float | None, measured: Measured | None) -> tuple[float, str] | None:
    """Watts and where they come from: given, measured, or what the maker says at most."""
    if watts is not None:
        return watts, "given"
    if measured and measured.watts:
        return measured.watts, f"measured: {measured.source}"
    return largest_power(hardware.chip)


def this_machine(hardware: Hardware) -> Hardware:
    """The machine with the memory that counts: an NVIDIA GPU's own."""
    return dataclasses.replace(hardware, memory_bytes=memory_for(hardware, "auto"))


def largest_batch(
    config: RunConfig,
    twin: Twin,
    device: Device,
    usable: int | None,
    *,
    checkpointing: bool,
    grids: Grids = NOT_QUANTISED,
) -> int | None:
    """Most sequences in a micro-step that fit; 0 if not even one does, None if the memory is unknown."""
    if usable is None:
        return None

    def fits(size: int) -> bool:
        train = dataclasses.replace(config.train, batch_size=size, gradient_checkpointing=checkpointing)
        return memory_plan(dataclasses.replace(config, train=train), twin, device, grids).total <= usable

    return largest(fits, MAX_BATCH)


def largest(holds: Callable[[int], bool], limit: int) -> int:
    """The largest number from 1 to `limit` for which something holds that holds for all smaller ones; or 0."""
    return bisect_left(range(1, limit + 1), True, key=lambda number: not holds(number))


def compute_optimal(parameters: int) -> dict[str, Any]:
    """For which number of tokens a model of this size is the best use of the computation."""
    E, A, B, alpha, beta = CHINCHILLA.values()
    # Where C = 6 N D is fixed, the loss is least when alpha A / N^alpha = beta B / D^beta.
    tokens = (beta * B / (alpha * A) * parameters**alpha) ** (1 / beta)
    return {
        "rule": {
            "tokens": TOKENS_PER_PARAMETER * parameters,
            "source": "20 tokens per parameter, Hoffmann et al. 2022 (arXiv:2203.15556)",
        },
        "fit": {
            "tokens": tokens,
            "loss": E + A / parameters**alpha + B / tokens**beta,
            "source": "parametric fit, Besiroglu et al. 2024 (arXiv:2404.10102)",
        },
    }


def measured_speeds(
    path: Path, hardware: Hardware, train: TrainConfig, *, adapts: bool = False, bits: int | None = None
) -> dict[Twin, Measured]:
    """The fastest row of each twin in a result of `benchmarks/run.py`, on its trainer's device and in its dtype first.

    Args:
        path: the result.
        hardware: what is planned for; a speed of another chip says nothing of it.
        train: decides device and dtype.
        adapts: whether adapters are to be trained; steps of theirs alone say nothing of a whole model's.
        bits: of the base's matrices; rows with others do other work.

    Raises:
        UserError: no such file, not a result, of another chip, or nothing was measured.
    """
    try:
        from benchmarks.results import read_result
    except ImportError:
        raise UserError("--result needs pydantic: pip install '.[benchmarks]'") from None
    result = read_result(path)
    if (chip := result.environment.hardware.chip) != hardware.chip:
        raise UserError(f"--result {path} was measured on {chip}, and the plan is for {hardware.chip}: --chip '{chip}'")
    best: dict[Twin, tuple[tuple[bool, bool, bool, float], Measured]] = {}
    for case in result.cases:
        for row in case.rows:
            if row.summary is None or row.peer or row.control or row.bits not in (None, bits):
                continue
            if case.work.adapter is not None and not adapts:
                continue
            device, dtype = planned_device(row.framework, train, hardware.kind)
            rate, energy = case.work.flops_per_step / row.summary.seconds_per_step, row.summary.energy
            taken = row.dtype or case.work.dtype
            there, here = f"{row.device}, {taken}", f"{device}, {dtype}"
            other = "" if there == here else f" ({there}; the trainer takes {here})"
            where = f"{row.label}, {case.name} in {path.name}"
            # A product elsewhere, or in another dtype, is no peak of what is planned.
            peak = None if other else measured_peak([process.products for process in row.processes], where)
            found = Measured(rate, energy.watts if energy else None, where + other, peak)
            rank = (row.device == device, taken == dtype, row.bits == bits, rate)
            if row.framework not in best or rank > best[row.framework][0]:
                best[row.framework] = rank, found
    if not best:
        raise UserError(f"--result {path}: nothing was measured in it that this plan could go by")
    return {twin: found for twin, (_, found) in best.items()}


def measured_peak(products: Iterable[Mapping[str, float]], where: str) -> Peak | None:
    """The rate of the fastest of some matrix products, called what it is; None of none.

    Args:
        products: of each process, seconds of a product of two square matrices by their width.
        where: they were measured.
    """
    rates = [(2 * int(n) ** 3 / seconds / 1e12, n) for each in products for n, seconds in each.items()]
    if not rates:
        return None
    tflops, n = max(rates)
    return Peak(tflops, f"measured {tflops:.3g} TFLOP/s in products of {n} x {n}, no specification: {where}")
