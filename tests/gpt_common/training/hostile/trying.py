"""Commands on hostile folders, in a process with little memory and little time, and what came of each.

    python -m tests.gpt_common.training.hostile.trying PLAN

PLAN is a JSON file: a list of [label, module, arguments]. One line of JSON comes out for each.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

MEMORY = 1 << 30
"""Bytes that a process may take, frameworks and all."""
SECONDS = 20
"""That a command may take, on a machine that does other things too."""
Attempt = tuple[str, str, list[str]]
"""(label, module with a `main`, arguments)."""


@dataclass(frozen=True)
class Outcome:
    """What came of a command. `code` is None where it hung, or broke with a traceback (then in `stderr`)."""

    code: int | None
    stdout: str
    stderr: str
    seconds: float
    peak: int
    """Bytes, of the process so far."""


def try_all(attempts: Sequence[Attempt], folder: Path, root: Path) -> dict[str, Outcome]:
    """Try commands one after the other in one process of its own; one that dies takes those after it with it.

    Args:
        folder: where the plan goes, and where the commands are run.
        root: of the repository.
    """
    plan = folder / f"plan-{os.getpid()}-{len(attempts)}.json"
    plan.write_text(json.dumps(attempts))
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(plan)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    outcomes = {label: Outcome(**values) for label, values in found}
    for label, _, _ in attempts[len(outcomes) : len(outcomes) + 1]:
        outcomes[label] = Outcome(None, "", f"the process died ({done.returncode}): {done.stderr}", 0.0, 0)
    return outcomes


def peak() -> int:
    """Most bytes that this process ever held.

    Linux hands its own peak on to a child, which getrusage then reports: of this program alone only /proc tells.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def limit_memory() -> None:
    """Let what asks for a gigabyte more than is mapped now fail, and not the machine."""
    mapped = Path("/proc/self/statm")
    if mapped.exists():
        most = int(mapped.read_text().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def hung(*_: object) -> None:
    """The alarm's handler."""
    raise TimeoutError(f"it hung for {SECONDS} s")


def attempt(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a command as its `__main__` does."""
    from gpt_common.errors import run_main

    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    code: int | None = None
    began = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr):
            run_main(import_module(module).main, arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        stderr.write(traceback.format_exc())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    said = [stream.buffer.getvalue().decode() for stream in (stdout, stderr)]
    return {"code": code, "stdout": said[0], "stderr": said[1], "seconds": time.monotonic() - began, "peak": peak()}


def main() -> None:
    """Try everything in the plan."""
    attempts = json.loads(Path(sys.argv[1]).read_text())
    signal.signal(signal.SIGALRM, hung)
    for module in sorted({module for _, module, _ in attempts}):
        import_module(module)
    limit_memory()
    out = os.fdopen(os.dup(1), "w")
    for label, module, arguments in attempts:
        print(json.dumps([label, attempt(module, arguments)]), file=out, flush=True)


if __name__ == "__main__":
    main()
