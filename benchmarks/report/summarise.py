"""From a session to its result: what each row says, how rows compare, and how close they come to the chip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from benchmarks.measuring.checks import above_peak, product_peak
from benchmarks.measuring.samples import INVALID, marked, median_of, valid
from benchmarks.measuring.session import Case, Row
from benchmarks.readings import Mark, Process
from benchmarks.report.pairs import Ratio, differs, paired_ratio
from benchmarks.results import (
    BackendRow,
    CaseResult,
    Comparison,
    Control,
    Mfu,
    Quantiles,
    RowEnergy,
    RowMemory,
    Summary,
    Sustained,
    Work,
)
from gpt_common.config import to_dict
from gpt_common.machine.hardware import Hardware, published_peak
from gpt_common.network.flops import (
    A100_BF16_PEAK,
    active_parameter_count,
    flops_per_step_exact,
    flops_per_token_palm,
    mfu,
    parameter_count,
)
from gpt_common.network.parameters import trained_shapes

Peaks = dict[tuple[str, str | None, str | None], float]
"""FLOP/s by framework, device and dtype."""


def summarise_case(case: Case, hardware: Hardware) -> CaseResult:
    """A case with its rows, comparisons and control; rejects rows that are impossibly fast."""
    work = work_of(case)
    peaks = measured_peaks(case.rows)
    reject_impossible(case, work, peaks)
    control = next((row for row in case.rows if row.backend.control), None)
    first = next((row for row in case.rows if control and row.backend == control.backend.original()), None)
    aa = compare(control, first) if control and first else None
    return CaseResult(
        name=case.name,
        changes=case.changes,
        config=to_dict(case.config),
        work=work,
        rows=[describe_row(row, work, peaks, hardware) for row in case.rows],
        control=None if aa is None or first is None else Control(backend=first.backend.name, **_fields(aa)),
        comparisons=comparisons([row for row in case.rows if not row.backend.control], aa),
    )


def work_of(case: Case) -> Work:
    """What one step is: tokens, parameters, floating-point operations."""
    model, train, adapter = case.config.model, case.config.train, case.config.adapter
    sequences = train.batch_size * train.grad_accum_steps
    tokens = sequences * model.block_size
    return Work(
        parameters=parameter_count(model),
        active_parameters=active_parameter_count(model),
        tokens_per_step=tokens,
        flops_per_step=flops_per_token_palm(model, adapter=adapter) * tokens,
        flops_per_step_exact=flops_per_step_exact(model, sequences, adapter=adapter),
        dtype=train.dtype,
        adapter=f"{adapter.adapter}, rank {adapter.adapter_rank}" if adapter.adapts else None,
        trained_parameters=sum(map(math.prod, trained_shapes(model, adapter).values())) if adapter.adapts else None,
    )


def describe_row(row: Row, work: Work, peaks: Peaks, hardware: Hardware) -> BackendRow:
    """Everything that a row knows, and what it comes to."""
    backend = row.backend
    return BackendRow(
        backend=backend.name,
        label=backend.label,
        framework=backend.framework,
        compiled=backend.compiled,
        peer=backend.peer or None,
        control=backend.control,
        bits=backend.bits or None,
        group_size=backend.group_size or None,
        status="stopped" if row.status == "waiting" else row.status,
        reason=row.reason,
        verified=row.verified,
        processes=row.processes,
        sustained=None if row.sustained is None else speed_kept(row.sustained),
        generation=row.generation,
        overhead=row.overhead,
        summary=summarise(row, work, peaks, hardware),
        **vars(row.about),
    )


def complete(row: Row) -> list[Process]:
    """Processes that were not interrupted."""
    return [process for process in row.processes if process.complete]


def by_round(row: Row) -> list[float | None]:
    """Seconds per step in each round: the median of the valid throughput samples; None where there is none."""
    found = {process.round: median_of(valid(process.throughput)) for process in complete(row)}
    return [found.get(number) for number in range(max(found, default=-1) + 1)]


def seconds_per_step(row: Row) -> float | None:
    """The median over the rounds."""
    return median_of([seconds for seconds in by_round(row) if seconds is not None])


def reject_impossible(case: Case, work: Work, peaks: Peaks) -> None:
    """Reject rows that were faster than the matrix products of the same session."""
    for row in case.rows:
        seconds = seconds_per_step(row)
        if row.status == "measured" and seconds:
            rate = work.flops_per_step_exact / seconds
            reason = above_peak("a step", rate, peaks.get(_arithmetic(row)), "peak of matrix products measured here")
            if reason:
                row.end("rejected", reason)


def measured_peaks(rows: Sequence[Row]) -> Peaks:
    """FLOP/s of the fastest product of this session."""
    peaks: Peaks = {}
    for row in rows:
        for process in row.processes:
            if (peak := product_peak(process.products)) is not None:
                peaks[_arithmetic(row)] = max(peak, peaks.get(_arithmetic(row), 0.0))
    return peaks


def _arithmetic(row: Row) -> tuple[str, str | None, str | None]:
    return row.backend.framework, row.about.device, row.about.dtype


def summarise(row: Row, work: Work, peaks: Peaks, hardware: Hardware) -> Summary | None:
    """The figures of a measured row; None if it has none."""
    processes = complete(row)
    seconds = seconds_per_step(row)
    if row.status != "measured" or seconds is None:
        return None
    series = [samples for process in processes for samples in (process.latency, process.throughput)]
    marks: tuple[Mark, ...] = (*INVALID, "outlier")
    rate, exact = work.flops_per_step / seconds, work.flops_per_step_exact / seconds
    published = published_peak(hardware, row.about.device or "", row.about.dtype or "")
    peak = peaks.get(_arithmetic(row))
    return Summary(
        seconds_per_step=seconds,
        tokens_per_second=work.tokens_per_step / seconds,
        rounds=by_round(row),
        latency=quantiles([s for p in processes for s in valid(p.latency)]),
        throughput=quantiles([s for p in processes for s in valid(p.throughput)]),
        data_seconds=median_of([s for p in processes for s in valid(p.throughput, "data_seconds")]),
        samples=sum(len(samples.seconds) for samples in series),
        marked={mark: sum(marked(samples, mark) for samples in series) for mark in marks},
        settled=all(p.warm_up.settled for p in processes),
        first_step_seconds=[p.first_step_seconds for p in processes],
        compilation=processes[0].compilation,
        mfu=Mfu(
            published=mfu(rate, published.flops if published else None),
            published_peak=published,
            measured=mfu(rate, peak),
            measured_exact=mfu(exact, peak),
            measured_peak_tflops=None if peak is None else peak / 1e12,
            a100=mfu(rate, A100_BF16_PEAK),
        ),
        memory=RowMemory(
            **{
                key: max((have for p in processes if (have := getattr(p.memory, key)) is not None), default=None)
                for key in RowMemory.model_fields
            }
        ),
        energy=energy_per_token(processes, seconds / work.tokens_per_step),
    )


def quantiles(values: Sequence[float]) -> Quantiles | None:
    """Median, quartiles, 95th percentile and minimum; None of nothing."""
    if not values:
        return None
    p25, median, p75, p95 = (float(x) for x in np.percentile(values, [25, 50, 75, 95]))
    return Quantiles(n=len(values), min=min(values), p25=p25, median=median, p75=p75, p95=p95)


def energy_per_token(processes: Sequence[Process], seconds_per_token: float) -> RowEnergy | None:
    """Joules per token from the mean power of the throughput series; None without a source."""
    found = [p.energy for p in processes if p.energy is not None]
    if not found:
        return None
    seconds = sum(e.seconds for e in found)
    nets = [e.net_joules for e in found if e.net_joules is not None]
    watts = sum(e.joules for e in found) / seconds
    return RowEnergy(
        watts=watts,
        joules_per_token=watts * seconds_per_token,
        net_joules_per_token=sum(nets) / seconds * seconds_per_token if len(nets) == len(found) else None,
        source=found[0].source,
        scope=found[0].scope,
    )


def speed_kept(run: Process) -> Sustained:
    """A long run, with its speed at the beginning and at the end."""
    steps = valid(run.throughput)
    part = max(1, len(steps) // 10)
    first, last = median_of(steps[:part]), median_of(steps[-part:])
    kept = None if not first or not last else first / last
    return Sustained(process=run, first_tenth=first, last_tenth=last, kept=kept)


def compare(row: Row, other: Row) -> Ratio | None:
    """Ratio of the times of two measured rows."""
    if row.status != "measured" or other.status != "measured":
        return None
    return paired_ratio(by_round(row), by_round(other))


def comparisons(rows: Sequence[Row], control: Ratio | None) -> list[Comparison]:
    """Every pair of measured rows: how many times as long `slower` takes as `faster`, and whether that is claimed."""
    found = []
    for a, b in combinations([row for row in rows if row.status == "measured"], 2):
        ratio = compare(a, b)
        if ratio is None:
            continue
        if ratio.value < 1:
            a, b, ratio = b, a, ratio.inverse()
        # Medians rank the rows; where they and the mean ratio disagree, nothing is clear.
        middle, other = (seconds_per_step(row) or math.nan for row in (a, b))
        claimed = differs(ratio, control) and middle > other
        found.append(Comparison(slower=a.backend.name, faster=b.backend.name, claimed=claimed, **_fields(ratio)))
    return found


def _fields(ratio: Ratio) -> dict[str, Any]:
    """A ratio's fields as the result calls them."""
    return {"ratio": ratio.value, "low": ratio.low, "high": ratio.high, "rounds": ratio.rounds}
