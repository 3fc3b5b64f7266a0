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
from typing import Any

ROOT = Path(__file__).parents[2]
RUNGS = ("L0", "L1", "L2", "L3", "L4", "L5")


@dataclass
class Verdict:
    """What the ladder said."""

    passed: dict[str, str] = field(default_factory=dict)
    """Backend -> SHA-256 of the report in which it passed."""
    failed: dict[str, str] = field(default_factory=dict)
    """Backend -> why it is not timed."""
    reports: dict[str, str] = field(default_factory=dict)
    """SHA-256 -> the report, as it was written."""

    def summary(self) -> dict[str, Any]:
        """Of each report, class and rungs with what came nearest to its gate."""
        return {
            digest: {
                "class": report["class"],
                "rungs": [{key: rung[key] for key in ("name", "title", "passed", "worst")} for rung in report["rungs"]],
            }
            for digest, report in ((digest, json.loads(text)) for digest, text in self.reports.items())
        }


Ladder = Callable[[Sequence[str]], tuple[int, str, str]]
"""Backends -> exit code, report as JSON text ("" if there is none), what was said."""


def verify(backends: Mapping[str, str], climb: Ladder) -> Verdict:
    """Climb with all backends at once; if that fails, with each beside the reference, to find whose fault it is.

    Args:
        backends: what is to be timed, and the ladder's name for it. Peers are not on the ladder.
    """
    verdict = Verdict()
    names = list(dict.fromkeys(backends.values()))
    if not names:
        return verdict
    if len(names) == 1:
        # The ladder compares; the CPU of the other twin is everywhere.
        names.append("cpu" if names[0].startswith("mlx") else "mlx-cpu")
    groups = [names]
    code, report, said = climb(names)
    if code == 1 and len(names) > 2:
        groups = [[names[0], name] for name in names[1:]]
        outcomes = [(group, *climb(group)) for group in groups]
    else:
        outcomes = [(names, code, report, said)]
    good: dict[str, str] = {}
    bad: dict[str, str] = {}
    for group, code, report, said in outcomes:
        if code == 0:
            digest = hashlib.sha256(report.encode()).hexdigest()
            verdict.reports[digest] = report
            good |= dict.fromkeys(group, digest)
        else:
            bad |= dict.fromkeys(group, f"parity: {said}" if said else f"parity ended with exit code {code}")
    for ours, theirs in backends.items():
        if theirs in good:
            verdict.passed[ours] = good[theirs]
        else:
            verdict.failed[ours] = bad[theirs]
    return verdict


def ladder(extra: Sequence[str], environment: Mapping[str, str]) -> Ladder:
    """The real one, in a process of its own: `python -m convert parity --mode quick`."""

    def climb(names: Sequence[str]) -> tuple[int, str, str]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "parity.json"
            command = [sys.executable, "-m", "convert", "parity", "--mode", "quick", "--rung", ",".join(RUNGS)]
            command += ["--backends", ",".join(names), "--json", str(path), *extra]
            done = subprocess.run(
                command, cwd=ROOT, env=dict(environment), capture_output=True, text=True, errors="replace"
            )
            report = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        return done.returncode, report, lines[-1].removeprefix("error: ")[:300] if lines else ""

    return climb
