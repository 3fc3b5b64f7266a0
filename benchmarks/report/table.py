"""The result as a table of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.measuring.samples import median_of
from benchmarks.report.result import restless
from gpt_common.network.flops import parameters_in_words
from gpt_common.training.console import milliseconds, rate, share

Result = dict[str, Any]


def print_result(result: Result) -> None:
    """Table and findings of every case."""
    from rich.console import Console

    # A pipe has no width of its own; rich would take 80 then, and so do wider terminals, for one look everywhere.
    console = Console(width=80, highlight=False, soft_wrap=False)
    for case in result["cases"]:
        print_case(console, case)
    for line in machine_doubts(result["environment"]):
        console.print(f"warning: {line}", style="yellow", markup=False)


def parameters(work: dict[str, Any]) -> str:
    """Parameters of a result, and the active ones; results from before there were experts do not name these."""
    return parameters_in_words(work["parameters"], work.get("active_parameters", work["parameters"]))


def print_case(console: Any, case: dict[str, Any]) -> None:
    """One table, and below it what it means."""
    from rich.table import Table

    work = case["work"]
    title = f"{parameters(work)}, {work['tokens_per_step']:,} tokens per step, {work['dtype']}"
    if case["changes"]:
        title = f"{case['name']}: {title}"
    table = Table(title=title, title_style="bold", title_justify="left", box=None, padding=(0, 1), pad_edge=False)
    table.add_column("backend", no_wrap=True, max_width=18)
    for name in ("ms/step", "p95", "tokens/s", "MFU", "memory", "J/ktok", "x fastest"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = sorted(case["rows"], key=lambda row: row["summary"]["seconds_per_step"] if row["summary"] else 1e99)
    for row in rows:
        if row["summary"] and not row["control"]:
            table.add_row(*_cells(row, case))
    console.print()
    console.print(table)
    for line in [*findings(case), *extras(case)]:
        console.print(line, markup=False)


def _cells(row: dict[str, Any], case: dict[str, Any]) -> list[str]:
    figures = row["summary"]
    latency, energy = figures["latency"], figures["energy"]
    return [
        row["label"] + ("" if row["verified"] != "unverified" else " (?)"),
        milliseconds(figures["seconds_per_step"]),
        milliseconds(latency["p95"]) if latency else "-",
        rate(figures["tokens_per_second"]),
        share(figures["mfu"]["measured"]),
        size(figures["memory"][memory_key([case])]),
        f"{1000 * energy['joules_per_token']:.3g}" if energy else "-",
        _times(row["backend"], case),
    ]


def _times(backend: str, case: dict[str, Any]) -> str:
    best = fastest(case)
    if best is None or backend == best["backend"]:
        return "1"
    found = comparison(case, backend, best["backend"])
    if found is None:
        return "-"
    ratio = found["ratio"] if found["slower"] == backend else 1 / found["ratio"]
    return f"{ratio:.2f}" if found["claimed"] else f"({ratio:.2f})"


def memory_key(cases: Sequence[dict[str, Any]]) -> str:
    """Which memory to show: the frameworks' own peaks if all keep count, else that of the processes, never a mix."""
    peaks = [row["summary"]["memory"]["peak"] for case in cases for row in case["rows"] if row["summary"]]
    return "resident_peak" if None in peaks else "peak"


def fastest(case: dict[str, Any]) -> dict[str, Any] | None:
    """The row with the least time per step."""
    rows = [row for row in case["rows"] if row["summary"] and not row["control"]]
    return min(rows, key=lambda row: row["summary"]["seconds_per_step"], default=None)


def comparison(case: dict[str, Any], a: str, b: str) -> dict[str, Any] | None:
    """The comparison of two backends, whichever is faster."""
    return next((c for c in case["comparisons"] if {c["slower"], c["faster"]} == {a, b}), None)


def findings(case: dict[str, Any]) -> list[str]:
    """What the table means, in sentences."""
    lines = [headline(case)]
    control = case["control"]
    noise = restless(control)
    if control is not None and noise is not None:
        lines.append(f"{control['backend']} against itself differed by up to {noise:.1%}: less is no difference here.")
    for row in case["rows"]:
        if row["control"] and row["status"] == "measured":
            continue
        if row["reason"]:
            lines.append(f"{row['label']}: {row['status']}: {row['reason']}")
        elif row["status"] == "stopped":
            lines.append(f"{row['label']}: stopped before it was measured")
        lines += [f"{row['label']}: {note}" for note in row["notes"] if not row["control"]]
        lines += [f"{row['label']}: {line}" for line in doubts(row)]
    if any(row["summary"] and row["verified"] == "unverified" for row in case["rows"]):
        lines.append("(?) unverified: whether it computes the right thing was not checked (--no-parity)")
    return lines


def headline(case: dict[str, Any]) -> str:
    """Which is fastest, by how much, and how sure that is."""
    best = fastest(case)
    if best is None:
        return "Nothing was measured."
    others: Sequence[dict[str, Any]] = sorted(
        (c for c in case["comparisons"] if best["backend"] in (c["slower"], c["faster"])),
        key=lambda c: c["ratio"] if c["faster"] == best["backend"] else 1 / c["ratio"],
    )
    if not others:
        return f"{best['backend']}: {milliseconds(best['summary']['seconds_per_step'])} ms per step."
    second = others[0]
    other = second["slower"] if second["faster"] == best["backend"] else second["faster"]
    if second["low"] is None:
        return f"{best['backend']} is ahead of {other}; too few rounds ({second['rounds']}) to tell whether by chance."
    interval = f"95 % interval {second['low']:.2f} to {second['high']:.2f}"
    if not second["claimed"]:
        return f"{best['backend']} and {other} are too close to call: ratio {second['ratio']:.2f}, {interval}."
    return f"{best['backend']} is fastest: {other} takes {second['ratio']:.2f} times as long ({interval})."


def doubts(row: dict[str, Any]) -> list[str]:
    """What a reader should know before believing a row."""
    figures = row["summary"]
    if not figures or row["control"]:
        return []
    lines = []
    for mark, words in (("asleep", "the machine slept"), ("throttled", "the machine was throttled")):
        if figures["marked"][mark]:
            lines.append(f"{figures['marked'][mark]} of {figures['samples']} samples left out: {words}")
    if not figures["settled"]:
        lines.append("was not warm when the series began: its times still drifted")
    if (figures["memory"]["swapped"] or 0) > 64 * 2**20:
        lines.append(f"the machine swapped {size(figures['memory']['swapped'])} while it ran")
    return lines


def machine_doubts(environment: dict[str, Any]) -> list[str]:
    """Why this machine may not have been at its best."""
    hardware, before = environment["hardware"], environment["before"]
    lines = []
    if hardware["power_source"] == "battery":
        lines.append("on battery: plug it in, and measure again")
    if hardware["low_power_mode"]:
        lines.append("in low-power mode: turn it off, and measure again")
    if before["thermal_pressure"] not in (None, "nominal"):
        lines.append(f"the machine was hot when this began: thermal pressure {before['thermal_pressure']}")
    if before["load"] is not None and hardware["cores"] and before["load"] > max(0.5, 0.25 * hardware["cores"]):
        lines.append(
            f"other programs were at work when this began: load {before['load']:.1f} on {hardware['cores']} cores"
        )
    return lines


def extras(case: dict[str, Any]) -> list[str]:
    """What was measured beyond the rounds, a line for each."""
    lines = []
    for row in case["rows"]:
        if (run := row["sustained"]) and run["kept"] is not None:
            minutes = sum(run["process"]["throughput"]["seconds"]) / 60
            lines.append(f"{row['label']} kept {run['kept']:.0%} of its first speed over {minutes:.1f} minutes")
        if generation := row["generation"]:
            longest = generation["lengths"][-1]
            token = median_of([seconds for seconds in longest["token_seconds"] if seconds is not None])
            prompt = longest["prompt"] / (median_of(longest["prompt_seconds"]) or math.nan)
            written = "" if token is None else f", writes {rate(1 / token)} tokens/s"
            lines.append(f"{row['label']} reads a prompt of {longest['prompt']} at {rate(prompt)} tokens/s{written}")
        if cost := row["overhead"]:
            interval = "" if cost["low"] is None else f" ({cost['low'] - 1:+.1%} to {cost['high'] - 1:+.1%})"
            lines.append(f"{row['label']}: the trainer's loop takes {cost['ratio'] - 1:+.1%} over bare steps{interval}")
    return lines


def size(count: int | None) -> str:
    """`512M`, `1.2G`; `-` where unknown."""
    if count is None:
        return "-"
    return f"{count / 2**30:.1f}G" if count >= 2**30 else f"{count / 2**20:.0f}M"
