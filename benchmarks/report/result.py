"""From raw samples to the result: what each row says, how rows compare, and how close they come to the chip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from benchmarks.measuring.checks import above_peak, product_peak
from benchmarks.measuring.samples import INVALID, marked, median_of, valid
from benchmarks.measuring.session import Case, Row
from benchmarks.report.pairs import Ratio, differs, paired_ratio, summary
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


def describe_case(case: Case, hardware: Hardware) -> dict[str, Any]:
    """A case with its rows, comparisons and control."""
    work = describe_work(case)
    reject_impossible(case, work)
    peaks = measured_peaks(case.rows)
    rows = [{**describe_row(row), "summary": summarise(row, work, peaks, hardware)} for row in case.rows]
    control = next((row for row in case.rows if row.backend.control), None)
    first = next((row for row in case.rows if control and row.backend == control.backend.first()), None)
    aa = compare(control, first) if control and first else None
    return {
        "name": case.name,
        "changes": case.changes,
        "config": to_dict(case.config),
        "work": work,
        "rows": rows,
        "control": None if aa is None or first is None else {"backend": first.backend.name, **describe_ratio(aa)},
        "comparisons": comparisons([row for row in case.rows if not row.backend.control], aa),
    }


def describe_work(case: Case) -> dict[str, Any]:
    """What one step is: tokens, parameters, floating-point operations."""
    model, train = case.config.model, case.config.train
    sequences = train.batch_size * train.grad_accum_steps
    tokens = sequences * model.block_size
    return {
        "parameters": parameter_count(model),
        "active_parameters": active_parameter_count(model),
        "tokens_per_step": tokens,
        "flops_per_step": flops_per_token_palm(model) * tokens,
        "flops_per_step_exact": flops_per_step_exact(model, sequences),
        "dtype": train.dtype,
    }


def describe_row(row: Row) -> dict[str, Any]:
    """Everything that a row knows."""
    backend = row.backend
    return {
        "backend": backend.name,
        "label": backend.label,
        "framework": backend.framework,
        "compiled": backend.compiled,
        "peer": backend.peer or None,
        "control": backend.control,
        "status": "stopped" if row.status == "waiting" else row.status,
        "reason": row.reason,
        "verified": row.verified,
        "description": row.about.get("description"),
        "device": row.about.get("device"),
        "dtype": row.about.get("dtype"),
        "notes": row.about.get("notes", []),
        "versions": row.about.get("versions", {}),
        "processes": row.processes,
        "sustained": describe_sustained(row.sustained),
        "generation": row.generation,
        "overhead": row.overhead,
    }


def complete(row: Row) -> list[dict[str, Any]]:
    """Processes that were not interrupted."""
    return [process for process in row.processes if process["complete"]]


def by_round(row: Row, series: str = "throughput") -> list[float | None]:
    """Seconds per step in each round: the median of the valid samples; None where there is none."""
    found = {process["round"]: median_of(valid(process[series])) for process in complete(row)}
    return [found.get(number) for number in range(max(found, default=-1) + 1)]


def reject_impossible(case: Case, work: dict[str, Any]) -> None:
    """Reject rows that were faster than the matrix products of the same session."""
    peaks = measured_peaks(case.rows)
    for row in case.rows:
        seconds = median_of([s for s in by_round(row) if s is not None])
        if row.status == "measured" and seconds:
            rate = work["flops_per_step_exact"] / seconds
            reason = above_peak("a step", rate, peaks.get(_arithmetic(row)), "peak of matrix products measured here")
            if reason:
                row.end("rejected", reason)


def measured_peaks(rows: Sequence[Row]) -> dict[tuple[str, str, str], float]:
    """FLOP/s of the fastest product of this session, by framework, device and dtype."""
    peaks: dict[tuple[str, str, str], float] = {}
    for row in rows:
        for process in row.processes:
            if (peak := product_peak(process["products"])) is not None:
                peaks[_arithmetic(row)] = max(peak, peaks.get(_arithmetic(row), 0.0))
    return peaks


def _arithmetic(row: Row) -> tuple[str, str, str]:
    return row.backend.framework, row.about.get("device", ""), row.about.get("dtype", "")


def summarise(
    row: Row, work: dict[str, Any], peaks: dict[tuple[str, str, str], float], hardware: Hardware
) -> dict[str, Any] | None:
    """The figures of a measured row; None if it has none."""
    processes = complete(row)
    rounds = by_round(row)
    seconds = median_of([s for s in rounds if s is not None])
    if row.status != "measured" or seconds is None:
        return None
    series = [process[name] for process in processes for name in ("latency", "throughput")]
    rate, exact = work["flops_per_step"] / seconds, work["flops_per_step_exact"] / seconds
    published = published_peak(hardware, row.about["device"], row.about["dtype"])
    peak = peaks.get(_arithmetic(row))
    return {
        "seconds_per_step": seconds,
        "tokens_per_second": work["tokens_per_step"] / seconds,
        "rounds": rounds,
        "latency": summary([s for p in processes for s in valid(p["latency"])]),
        "throughput": summary([s for p in processes for s in valid(p["throughput"])]),
        "data_seconds": median_of([s for p in processes for s in valid(p["throughput"], "data_seconds")]),
        "samples": sum(len(s["seconds"]) for s in series),
        "marked": {mark: sum(marked(s, mark) for s in series) for mark in (*INVALID, "outlier")},
        "settled": all(p["warm_up"]["settled"] for p in processes),
        "first_step_seconds": [p["first_step_seconds"] for p in processes],
        "compilation": processes[0]["compilation"],
        "mfu": {
            "published": mfu(rate, published.flops if published else None),
            "published_peak": asdict(published) if published else None,
            "measured": mfu(rate, peak),
            "measured_exact": mfu(exact, peak),
            "measured_peak_tflops": None if peak is None else peak / 1e12,
            "a100": mfu(rate, A100_BF16_PEAK),
        },
        "memory": {
            key: max((p["memory"][key] for p in processes if p["memory"][key] is not None), default=None)
            for key in ("peak", "cache", "resident_peak", "swapped")
        },
        "energy": energy_per_token(processes, seconds / work["tokens_per_step"]),
    }


def energy_per_token(processes: Sequence[dict[str, Any]], seconds_per_token: float) -> dict[str, Any] | None:
    """Joules per token from the mean power of the throughput series; None without a source."""
    found = [p["energy"] for p in processes if p["energy"] is not None]
    if not found:
        return None
    seconds = sum(e["seconds"] for e in found)
    nets = [e["net_joules"] for e in found if e["net_joules"] is not None]
    watts = sum(e["joules"] for e in found) / seconds
    return {
        "watts": watts,
        "joules_per_token": watts * seconds_per_token,
        "net_joules_per_token": sum(nets) / seconds * seconds_per_token if len(nets) == len(found) else None,
        "source": found[0]["source"],
        "scope": found[0]["scope"],
        "estimate": True,
    }


def describe_sustained(run: dict[str, Any] | None) -> dict[str, Any] | None:
    """A long run, with its speed at the beginning and at the end."""
    if run is None:
        return None
    series = run["throughput"]
    steps = valid(series)
    part = max(1, len(steps) // 10)
    first, last = median_of(steps[:part]), median_of(steps[-part:])
    return {
        "process": run,
        "first_tenth": first,
        "last_tenth": last,
        "kept": None if not first or not last else first / last,
    }


def compare(row: Row, other: Row) -> Ratio | None:
    """Ratio of the times of two measured rows."""
    if row.status != "measured" or other.status != "measured":
        return None
    return paired_ratio(by_round(row), by_round(other))


def describe_ratio(ratio: Ratio) -> dict[str, Any]:
    """For JSON."""
    return {"ratio": ratio.value, "low": ratio.low, "high": ratio.high, "rounds": ratio.rounds}


def comparisons(rows: Sequence[Row], control: Ratio | None) -> list[dict[str, Any]]:
    """Every pair of measured rows: how many times as long `slower` takes as `faster`, and whether that is claimed."""
    found = []
    for a, b in combinations([row for row in rows if row.status == "measured"], 2):
        ratio = compare(a, b)
        if ratio is None:
            continue
        if ratio.value < 1:
            a, b, ratio = b, a, inverse(ratio)
        # Medians rank the rows; where they and the mean ratio disagree, nothing is clear.
        claimed = differs(ratio, control) and _middle(a) > _middle(b)
        found.append({"slower": a.backend.name, "faster": b.backend.name, **describe_ratio(ratio), "claimed": claimed})
    return found


def _middle(row: Row) -> float:
    return median_of([seconds for seconds in by_round(row) if seconds is not None]) or math.nan


def inverse(ratio: Ratio) -> Ratio:
    """The same comparison from the other side."""
    low = None if ratio.high is None else 1 / ratio.high
    high = None if ratio.low is None else 1 / ratio.low
    return Ratio(1 / ratio.value, low, high, ratio.rounds)


def restless(control: dict[str, Any] | None) -> float | None:
    """The largest difference that the A/A control allows, as a share: 0.04 is 4 %; None without a control."""
    if control is None or control["low"] is None:
        return None
    return math.exp(max(abs(math.log(control["low"])), abs(math.log(control["high"])))) - 1
