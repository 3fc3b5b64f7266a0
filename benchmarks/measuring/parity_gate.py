"""Correct first: a backend is timed only after it has passed rungs L0 to L5 of the parity ladder, here and now."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.results import Climb

ROOT = Path(__file__).parents[2]
RUNGS = ("L0", "L1", "L2", "L3", "L4", "L5")
QUANTISED = "Q"
"""What quantised rows climb besides: words to the bit, logits from them, and adapters trained beside them."""


@dataclass
class Verdict:
    """What the ladder said."""

    passed: dict[str, str] = field(default_factory=dict)
    """Backend -> SHA-256 of the report in which it passed."""
    failed: dict[str, str] = field(default_factory=dict)
    """Backend -> why it is not timed."""
    reports: dict[str, str] = field(default_factory=dict)
    """SHA-256 -> the report, as it was written."""

    def summary(self) -> dict[str, Climb]:
        """Of each report, class and rungs with what came nearest to its gate."""
        kept = ("name", "title", "passed", "worst")
        reports = {digest: json.loads(text) for digest, text in self.reports.items()}
        return {
            digest: Climb(**{"class": report["class"]}, rungs=[{k: rung[k] for k in kept} for rung in report["rungs"]])
            for digest, report in reports.items()
        }


Ladder = Callable[[Sequence[str]], tuple[int, str, str]]
"""Backends -> exit code, report as JSON text ("" if there is none), what was said."""


def verify(names: Sequence[str], climb: Ladder, rungs: Sequence[str] = ()) -> Verdict:
    """Climb with all backends at once; if that fails, with each beside the reference, to find whose fault it is.

    Args:
        names: what is to be timed. Peers are not on the ladder.
        rungs: what must have been measured: a rung that the ladder left out has proven nothing.
    """
    verdict = Verdict()
    if not names:
        return verdict
    group = [*names]
    if len(group) == 1:
        # The ladder compares; the CPU of the other twin is everywhere.
        group.append("cpu" if names[0].startswith("mlx") else "mlx-cpu")
    outcomes = [(group, *climb(group))]
    if outcomes[0][1] == 1 and len(group) > 2:
        outcomes = [(pair, *climb(pair)) for pair in ([group[0], name] for name in group[1:])]
    for climbed, code, report, said in outcomes:
        if left_out := _left_out(report, rungs) if code == 0 else None:
            verdict.failed |= {name: f"parity: {left_out}" for name in climbed if name in names}
        elif code == 0:
            digest = hashlib.sha256(report.encode()).hexdigest()
            verdict.reports[digest] = report
            verdict.passed |= {name: digest for name in climbed if name in names}
        else:
            reason = f"parity: {said}" if said else f"parity ended with exit code {code}"
            verdict.failed |= {name: reason for name in climbed if name in names}
    # The reference is in every pair: one that passed is enough.
    verdict.failed = {name: reason for name, reason in verdict.failed.items() if name not in verdict.passed}
    return verdict


def _left_out(report: str, rungs: Sequence[str]) -> str | None:
    """The first rung on which a climb measured nothing, and why; None if there is none."""
    climbed = {rung["name"]: rung for rung in json.loads(report)["rungs"]} if rungs else {}
    for name in rungs:
        rung = climbed.get(name, {})
        if rung.get("worst") is None:
            return f"{name} {rung.get('note') or 'was not climbed'}"
    return None


def ladder(extra: Sequence[str], environment: Mapping[str, str], rungs: Sequence[str] = RUNGS) -> Ladder:
    """The real one, in a process of its own: `python -m convert parity --mode quick`."""

    def climb(names: Sequence[str]) -> tuple[int, str, str]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "parity.json"
            command = [sys.executable, "-m", "convert", "parity", "--mode", "quick", "--rung", ",".join(rungs)]
            command += ["--backends", ",".join(names), "--json", str(path), *extra]
            done = subprocess.run(
                command, cwd=ROOT, env=dict(environment), capture_output=True, text=True, errors="replace"
            )
            report = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        return done.returncode, report, lines[-1].removeprefix("error: ")[:300] if lines else ""

    return climb
