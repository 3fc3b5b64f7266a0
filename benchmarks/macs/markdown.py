"""A self-test as twenty lines of Markdown to paste, and many of them as the table in docs/macs.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.macs.parts import nearest
from benchmarks.macs.record import Row, SelfTest, read_record
from gpt_common.errors import UserError
from gpt_common.words import duration, in_memory, one_line, rate

LINES = 20
MOST_BACKENDS, MOST_FAILURES = 6, 4
"""So many are shown, and the rest is counted."""
FAILURE_WIDTH = 160

EMPTY = """\
Nobody has sent a result yet: **nothing in this project has been measured on a Mac.** Yours would be the first."""
PAGE = """\
# What was measured on Macs

<!-- Made by `python benchmarks/selftest.py --table` from docs/results/macs/*.json; do not edit. -->

{table}

## Yours

    pip install -c constraints.txt -e '.[benchmarks]'
    python benchmarks/selftest.py --share my-mac.json

aims at ten minutes, needs no network and no administrator, and goes on when a part fails: what fails is what we want to
know. It says what the machine is, climbs the parity ladder on each backend, tries the known faults of the frameworks,
trains for 40 steps, changes from PyTorch to MLX in mid-run, and times training in float32 and bfloat16, with energy
where `zeus-apple-silicon` or `macmon` is installed. Names of user and machine, paths and serial numbers are taken out,
and nothing is written if one of the first three is found in it all the same. Look at the file before you send it, with
the issue form "My Mac's numbers".

## Checking a file

`commit`, `changed` and `source_sha256` say with which source it was made: in a checkout of that commit,
`python -m benchmarks.macs.machine` prints the same `source_sha256`. `wheels` holds the tags of the installed wheels,
and `packages_sha256` is of the sorted list of all installed packages, equal in equal environments. This shows what was
changed by mistake; whoever wants to deceive can write any file. `benchmarks/macs/record.py` says what each property is.
"""


def markdown(record: SelfTest, sha256: str | None = None) -> str:
    """At most twenty lines.

    Args:
        record: already clean.
        sha256: of the file that was written.
    """
    passed = sum(part.status == "passed" for part in record.parts)
    lines = [
        f"### {_title(record)}",
        "",
        f"{passed} of {len(record.parts)} parts passed in {duration(record.seconds)}, {record.created[:10]}"
        + (", interrupted" if record.interrupted else ""),
        _provenance(record, sha256),
        "",
        "| backend | parity, nearest to its gate | canaries | float32 tok/s | bfloat16 tok/s | J/ktok |",
        "|---|---|---|--:|--:|--:|",
        *(f"| {' | '.join(_backend(record, name))} |" for name in _names(record)[:MOST_BACKENDS]),
        "",
        _change(record),
        _energy(record),
    ]
    failures = [part for part in record.parts if part.status != "passed"]
    lines += [
        _cell(f"{part.name} {part.status}: {part.words or ''}", FAILURE_WIDTH) for part in failures[:MOST_FAILURES]
    ]
    if len(failures) > MOST_FAILURES:
        lines[-1] += f"; and {len(failures) - MOST_FAILURES} more"
    assert len(lines) <= LINES
    return "\n".join(lines)


def _title(record: SelfTest) -> str:
    if record.machine is None:
        return "A machine that could not be described"
    hardware = record.machine.hardware
    parts = [hardware.chip]
    parts += [f"{hardware.gpu_cores} GPU cores"] if hardware.gpu_cores else []
    parts += [in_memory(hardware.memory_bytes)] if hardware.memory_bytes else []
    return _cell(", ".join([*parts, hardware.os]))


def _provenance(record: SelfTest, sha256: str | None) -> str:
    """Versions, checkout, digests."""
    machine, checkout = record.machine, record.checkout
    parts = []
    if machine is not None:
        names = [f"{name} {machine.versions[name]}" for name in ("mlx", "torch", "python") if name in machine.versions]
        parts += [*names, f"wheel for {built}"] if (built := machine.versions.get("mlx built for")) else names
        if machine.matrix_units is not None:
            parts.append(f"matrix units {'used' if machine.matrix_units else 'not used'}")
    if checkout is not None:
        state = {True: "changed", False: "unchanged", None: "state unknown"}[checkout.changed]
        parts.append(f"commit `{(checkout.commit or 'none')[:12]}` {state}")
        parts += [f"source `{checkout.source_sha256[:12]}`", f"packages `{checkout.packages_sha256[:12]}`"]
    parts += [f"file `{sha256[:12]}`"] if sha256 else []
    return ", ".join(_cell(part) if "`" not in part else part for part in parts) or "made by an unknown checkout"


def _names(record: SelfTest) -> list[str]:
    """The backends; those that have figures, where nobody could say who is here."""
    if record.backends:
        return [row.backend for row in record.backends]
    rows = record.benchmark.rows if record.benchmark else []
    tried = [*(climb.backend for climb in record.climbs), *(canary.backend for canary in record.canaries)]
    return list(dict.fromkeys([*tried, *(row.backend.removesuffix("-bf16") for row in rows)]))


def _backend(record: SelfTest, name: str) -> list[str]:
    here = next((row for row in record.backends if row.backend == name), None)
    if here is not None and here.device is None:
        return [_cell(name), "not here", "-", "-", "-", "-"]
    climb = next((climb for climb in record.climbs if climb.backend == name), None)
    parity = "reference" if climb is None and name == "cpu" and record.climbs else "-"
    if climb is not None:
        parity = ("holds, " if climb.passed else "FAILS, ") + nearest(climb.rungs)
    tried = [canary for canary in record.canaries if canary.backend == name and canary.verdict != "not tried"]
    right = sum(canary.verdict == "right" for canary in tried)
    rows = [_row(record, name, suffix) for suffix in ("", "-bf16")]
    energy = next((row.joules_per_token for row in rows if row and row.joules_per_token is not None), None)
    return [
        _cell(name if here is None or name == here.device else f"{name} on {here.device}"),
        _cell(parity, 60),
        f"{right} of {len(tried)} right" if tried else "-",
        *(_speed(row) for row in rows),
        "-" if energy is None else f"{1000 * energy:.3g}",
    ]


def _row(record: SelfTest, name: str, suffix: str) -> Row | None:
    rows = record.benchmark.rows if record.benchmark else []
    return next((row for row in rows if row.backend == name + suffix), None)


def _speed(row: Row | None) -> str:
    """Tokens a second; with (?) where parity was not shown first."""
    if row is None or row.tokens_per_second is None:
        return "-"
    return rate(row.tokens_per_second) + ("" if row.verified == "parity" else " (?)")


def _change(record: SelfTest) -> str:
    change = record.change
    if change is None or change.after_difference is None or change.before_difference is None:
        return "PyTorch to MLX in mid-run: not shown"
    apart = max(change.before_difference, change.after_difference)
    return f"PyTorch to MLX after {change.after} steps: losses at most {apart:.1e} nats apart (gate {change.gate:.0e})"


def _energy(record: SelfTest) -> str:
    benchmark = record.benchmark
    if benchmark is None:
        return "Speed: not measured"
    source = f"energy by {benchmark.energy_source}" if benchmark.energy_source else "no source of energy figures"
    doubts = "".join(f"; {line}" for line in benchmark.doubts)
    what = f"{benchmark.name}, {benchmark.parameters:,} parameters, {benchmark.rounds} rounds"
    return _cell(f"Speed: {what}; {source}{doubts}", 300)


def _cell(text: str, width: int = 120) -> str:
    """A text out of a file as it may stand in a table: nothing in it is Markdown, HTML or a mention of anybody."""
    text = one_line(text)
    text = text if len(text) <= width else text[: width - 3] + "..."
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "&#64;")
    return re.sub(r"([\\`*_|\[\]!#~])", r"\\\1", text)


# --- the page


def page(folder: Path) -> str:
    """docs/macs.md, from every file in `folder`.

    Raises:
        UserError: one of them is no self-test, or not of a Mac.
    """
    results = [(path, read_record(path)) for path in sorted(folder.glob("*.json"))]
    for path, record in results:
        if record.machine is None or record.machine.hardware.kind != "apple":
            raise UserError(f"{path} was not made on Apple silicon: it has no place in this table")
    return PAGE.format(table=_table(results) if results else EMPTY)


def _table(results: Sequence[tuple[Path, SelfTest]]) -> str:
    header = ["Mac", "macOS", "parts passed", "parity", "MLX tok/s float32", "bfloat16", "MPS tok/s float32", "commit"]
    lines = [f"| {' | '.join(header)} |", "|---|---|---|---|--:|--:|--:|---|"]
    for path, record in sorted(results, key=lambda each: (_title(each[1]), each[1].created)):
        assert record.machine is not None
        hardware, climbs = record.machine.hardware, record.climbs
        held = sum(climb.passed for climb in climbs)
        # GitHub's Macs compute on a paravirtual GPU, whose speed is no Mac's.
        virtual = "virtual" in hardware.chip.lower()
        rows = (("mlx", ""), ("mlx", "-bf16"), ("mps", ""))
        speeds = ["virtual" if virtual else _speed(_row(record, *row)) for row in rows]
        commit, changed = (record.checkout.commit, record.checkout.changed) if record.checkout else (None, None)
        cells = [
            f"[{_title(record).rpartition(', ')[0]}](results/macs/{path.name})",
            _cell(hardware.os.removeprefix("macOS ")),
            f"{sum(part.status == 'passed' for part in record.parts)} of {len(record.parts)}",
            f"{held} of {len(climbs)} backends",
            *speeds,
            f"`{(commit or 'none')[:12]}`" + ("" if changed is False else ", changed or unknown"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
