"""`python benchmarks/selftest.py --share my-mac.json`: everything that this project claims, tried on this machine.

Knows no framework: every part is done by processes of its own, and when one fails, hangs or crashes, the next goes on.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from gpt_common.cli import parse
from gpt_common.errors import Stopped, UserError, WorkFailed, run_main
from gpt_common.words import WIDTH, duration, printable

if TYPE_CHECKING:
    from benchmarks.macs.personal import Personal
    from benchmarks.macs.record import Part, SelfTest
    from benchmarks.macs.running import Job

PROG = "python benchmarks/selftest.py"
ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "docs" / "results" / "macs", ROOT / "docs" / "macs.md"
BACKENDS = "mlx,mps,cpu"


@dataclass(frozen=True, kw_only=True)
class SelfTestCommand:
    """Try on this machine what the project claims: parity, known faults, training, a change of framework, speed.

    Takes about ten minutes on a Mac. What fails is recorded, and the next part goes on. Exit code 1 if anything failed;
    Ctrl-C keeps what was found.
    """

    backends: str = ""
    """Which to test, with commas, as for run.py; those named must be here. Otherwise mlx, mps and cpu, as far as they
    are."""
    share: Path | None = None
    """Write one JSON file to send, without names and paths."""
    minutes: float = 10.0
    """Time to aim at: the benchmark gets what the other parts leave, at least two rounds."""
    limit: float = 300.0
    """Seconds after which a part other than the benchmark is ended."""
    table: bool = False
    """Test nothing: make docs/macs.md from docs/results/macs/*.json."""

    def __post_init__(self) -> None:
        for name in ("minutes", "limit"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}: it must be above 0")


def main(argv: Sequence[str]) -> None:
    """The command.

    Raises:
        UserError: flags that mean nothing, a file that cannot be written.
        WorkFailed: a part failed.
        Stopped: by Ctrl-C, after what was found has been written.
    """
    command = parse(SelfTestCommand, argv, prog=PROG)
    _check_packages()
    from benchmarks.macs.personal import this_person
    from benchmarks.macs.record import check_share

    if command.table:
        make_table(RESULTS, PAGE)
        return
    names = backend_names(command.backends or BACKENDS)
    if command.share is not None:
        check_share(command.share)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="selftest-") as folder:
        scratch = Path(folder)
        person = this_person({ROOT: ".", scratch: "SCRATCH"})
        record = SelfTester(command, names, person, scratch).run()
    finish(record, command.share, person)


def backend_names(text: str) -> list[str]:
    """The backends asked for.

    Raises:
        UserError: an unknown name, one in bfloat16, or none.
    """
    from benchmarks.measuring.backends import choose_backends

    backends = choose_backends(text)
    if halves := [backend.name for backend in backends if backend.half]:
        raise UserError(f"--backends {','.join(halves)}: leave -bf16 out, it is timed beside its float32")
    return [backend.name for backend in backends]


def make_table(results: Path, page_path: Path) -> None:
    """Write docs/macs.md.

    Raises:
        UserError: a result is not one, or the page cannot be written.
    """
    from benchmarks.macs.markdown import page
    from benchmarks.macs.record import write_text

    write_text(page_path, page(results))
    print(page_path)


class SelfTester:
    """The parts in their order.

    Args:
        person: whose machine this is.
        scratch: folder for what the parts write; removed afterwards.
    """

    def __init__(self, command: SelfTestCommand, names: Sequence[str], person: Personal, scratch: Path) -> None:
        from benchmarks.macs.parts import Findings

        self.command, self.names, self.person, self.scratch = command, names, person, scratch
        self.found = Findings()
        self.parts: list[Part] = []
        self.interrupted = False
        self._began = time.monotonic()

    def run(self) -> SelfTest:
        """Do them all, whatever becomes of each."""
        from benchmarks.macs.running import Ended

        created = datetime.now(UTC)
        jobs = self.jobs()
        try:
            for job in jobs:
                self.do(job)
        except Ended as ended:
            self.interrupted = True
            self._say(ended.part, "")
        except KeyboardInterrupt:  # between two parts
            self.interrupted = True
        for job in jobs if self.interrupted else ():
            self.parts.append(_not_run(job, "interrupted before"))
        return self.record(created)

    def jobs(self) -> Iterator[Job]:
        """Each is asked for when those before it are done: what they found decides what follows."""
        from benchmarks.macs.parts import benchmark_job, first_jobs, jobs

        limit = self.command.limit
        yield from first_jobs(self.found, self.scratch, self.names, bool(self.command.backends), limit)
        yield from jobs(self.found, self.scratch, self.names, limit)
        left = 60 * self.command.minutes - (time.monotonic() - self._began)
        yield benchmark_job(self.found, self.scratch, self.names, left)

    def do(self, job: Job) -> None:
        """One part."""
        from benchmarks.macs.running import run
        from gpt_common.progress import Progress

        failed = [part.name for part in self.parts if part.name in job.after and part.status != "passed"]
        if failed:
            self._say(_not_run(job, f"needs {', '.join(failed)}"), "")
            return
        with Progress(plain_lines=False, tells_left=False) as bar:
            part, note = run(
                job,
                self.person.clean,
                self.scratch,
                lambda spent: bar(f"{job.name}, {duration(spent)}", min(100, round(100 * spent / job.limit)), 100),
            )
        self._say(part, note)

    def _say(self, part: Part, note: str) -> None:
        """A line for a part that has ended; what went wrong below it."""
        self.parts.append(part)
        status = part.status if part.status == "passed" else part.status.upper()
        spent = duration(time.monotonic() - self._began)
        line = f"{spent:>6}  {status:<11}  {duration(part.seconds):>5}  {part.name:<18}  "
        note = textwrap.shorten(self.person.clean(note), max(20, WIDTH - len(line)), placeholder=" ...")
        print(printable(line + note).rstrip(), flush=True)
        if part.words:
            print(textwrap.fill(printable(part.words), WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8))
            sys.stdout.flush()

    def record(self, created: datetime) -> SelfTest:
        """What was found."""
        from benchmarks.macs.record import SelfTest

        return SelfTest(
            created=created.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - self._began, 1),
            passed=not self.interrupted and all(part.status == "passed" for part in self.parts),
            interrupted=self.interrupted,
            parts=self.parts,
            **vars(self.found),
        )


def _not_run(job: Job, why: str) -> Part:
    from benchmarks.macs.record import Part

    return Part(name=job.name, status="not run", seconds=0.0, commands=[], words=why)


def finish(record: SelfTest, share: Path | None, person: Personal) -> None:
    """Write the file, print the lines to paste, and say how it went.

    Raises:
        UserError, WorkFailed, Stopped: as `main`.
    """
    from benchmarks.macs.markdown import markdown
    from benchmarks.macs.record import SelfTest, look_through, sha256, to_json, write_text

    document = to_json(record, person)
    text = markdown(SelfTest.model_validate_json(document), sha256(document) if share else None)
    look_through(text.splitlines(), person)
    if share is not None:
        write_text(share, document)
    print(f"\n{text}\n")
    if share is not None:
        print(f'{share} and these lines are what the issue form "My Mac\'s numbers" asks for.')
    if record.interrupted:
        raise Stopped(signal.SIGINT)
    if failed := [part.name for part in record.parts if part.status != "passed"]:
        raise WorkFailed(f"{len(failed)} of {len(record.parts)} parts did not pass: {', '.join(failed)}")


def _check_packages() -> None:
    """Before minutes of measuring, whether they can be done."""
    from importlib.util import find_spec

    if missing := [name for name in ("psutil", "pydantic") if find_spec(name) is None]:
        raise UserError(f"the self-test needs {', '.join(missing)}: pip install '.[benchmarks]'")


if __name__ == "__main__":
    run_main(main)
