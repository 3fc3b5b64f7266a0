"""The command: whatever becomes of a part, the next goes on, and what was found is written and judged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.macs.parts import Findings, benchmark_job, difference, first_jobs, halves, jobs
from benchmarks.macs.personal import Personal
from benchmarks.macs.record import Here, Training, read_record
from benchmarks.macs.running import Job
from benchmarks.selftest import BACKENDS, SelfTestCommand, SelfTester, backend_names, finish, main, make_table
from gpt_common.errors import Stopped, UserError, WorkFailed
from tests.benchmarks.macs.recipes import JANE, job, record

ROOT = Path(__file__).parents[3]


class MadeUp(SelfTester):
    """With parts of our own."""

    made_up: list[Job]

    def jobs(self) -> Iterator[Job]:
        yield from self.made_up


def made_up(parts: list[Job], tmp_path: Path) -> MadeUp:
    found = MadeUp(SelfTestCommand(), ["cpu"], JANE, tmp_path)
    found.made_up = parts
    return found


def test_the_next_part_goes_on_whatever_becomes_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [
        job("print('fine')", "good", read=lambda: "found it"),
        job("raise ValueError('no /Users/jane/x for jane')", "fails"),
        job("import time; time.sleep(600)", "hangs", limit=1.5),
        job("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "crashes"),
        job("pass", "needs it", after=("crashes",)),
        job("pass", "does not", after=("good",)),
    ]
    found = made_up(parts, tmp_path).run()
    assert {part.name: part.status for part in found.parts} == {
        "good": "passed",
        "fails": "failed",
        "hangs": "timed out",
        "crashes": "failed",
        "needs it": "not run",
        "does not": "passed",
    }
    assert (found.passed, found.interrupted) == (False, False)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert [line.split()[1] for line in lines if not line.startswith("        ")] == [
        *("passed", "FAILED", "TIMED", "FAILED", "NOT", "passed")
    ]
    assert lines[0].endswith("good                found it")
    assert "        ValueError: no <path> for <user>" in lines
    share = tmp_path / "mac.json"
    with pytest.raises(WorkFailed, match="4 of 6 parts did not pass: fails, hangs, crashes, needs it"):
        finish(found, share, JANE)
    assert [part.status for part in read_record(share).parts] == [part.status for part in found.parts]
    assert "jane" not in share.read_text().lower()
    assert "jane" not in capsys.readouterr().out.lower()


def test_all_passed_is_no_failure(tmp_path: Path) -> None:
    found = made_up([job("pass")], tmp_path).run()
    assert found.passed
    finish(found, None, JANE)


def test_nothing_is_written_if_the_lines_to_paste_hold_something_personal(tmp_path: Path) -> None:
    """The file is clean, and in the lines stands a word of ours that is somebody's name."""
    share = tmp_path / "mac.json"
    with pytest.raises(WorkFailed, match="nothing was written: the user's name"):
        finish(record(), share, Personal(users=frozenset({"nearest"})))
    assert not list(tmp_path.iterdir())


def test_an_interruption_keeps_what_was_found_and_names_what_was_not_run(tmp_path: Path) -> None:
    class Interrupted(MadeUp):
        def do(self, job: Job) -> None:
            if job.name == "second":
                raise KeyboardInterrupt
            super().do(job)

    found = Interrupted(SelfTestCommand(), ["cpu"], JANE, tmp_path)
    found.made_up = [job("pass", "first"), job("pass", "second"), job("pass", "third")]
    result = found.run()
    assert (result.interrupted, result.passed) == (True, False)
    assert [(part.name, part.status) for part in result.parts] == [("first", "passed"), ("third", "not run")]
    share = tmp_path / "mac.json"
    with pytest.raises(Stopped) as stopped:
        finish(result, share, JANE)
    assert stopped.value.exit_code == 130
    assert read_record(share).interrupted
    last = Interrupted(SelfTestCommand(), ["cpu"], JANE, tmp_path)
    last.made_up = [job("pass", "first"), job("pass", "second")]
    assert not last.run().passed, "though all that is there has passed"


def test_ctrl_c_on_the_command_itself(tmp_path: Path) -> None:
    """The process that is running ends, the file is there, and the exit code says what happened."""
    share, alive = tmp_path / "mac.json", tmp_path / "alive"
    hang = f"import os, time; open({str(alive)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    code = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import benchmarks.selftest as selftest
from gpt_common.errors import run_main
from tests.benchmarks.macs.recipes import job
selftest.SelfTester.jobs = lambda self: iter([job("pass", "first"), job({hang!r}, "second"), job("pass", "third")])
run_main(selftest.main, ["--share", {str(share)!r}])
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (alive.exists() and alive.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    statuses = [(part.name, part.status) for part in read_record(share).parts]
    assert statuses == [("first", "passed"), ("second", "interrupted"), ("third", "not run")]
    assert "second interrupted: by Ctrl-C" in said
    with pytest.raises(ProcessLookupError):
        os.kill(int(alive.read_text()), 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backends", "mxl"], "no backend 'mxl': did you mean 'mlx'?"),
        (["--backends", "mlx-bf16"], "leave -bf16 out"),
        (["--minutes", "0"], "minutes is 0"),
        (["--limit", "-1"], "limit is -1"),
        (["--share", "docs"], "is a folder: name a file"),
        (["--shares", "x"], "did you mean '--share'?"),
    ],
)
def test_mistakes_are_said_before_anything_is_measured(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SelfTester, "run", lambda _: pytest.fail("it began"))
    with pytest.raises(UserError) as error:
        main(arguments)
    assert message in str(error.value)


def test_it_is_a_module_too() -> None:
    command = [sys.executable, "-m", "benchmarks.selftest", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "--share" in done.stdout


def test_the_table_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_table(tmp_path, tmp_path / "macs.md")
    assert "Nobody has sent a result yet" in (tmp_path / "macs.md").read_text()
    assert str(tmp_path / "macs.md") in capsys.readouterr().out


# --- which parts there are


def planned(here: dict[str, str | None], tmp_path: Path) -> dict[str, Job]:
    found = Findings(backends=[Here(backend=name, device=device, reason=None) for name, device in here.items()])
    return {part.name: part for part in jobs(found, tmp_path, list(here), 300.0)}


def test_on_a_mac_every_backend_climbs_beside_pytorch_on_the_cpu(tmp_path: Path) -> None:
    parts = planned({"mlx": "gpu", "mps": "mps", "cpu": "cpu"}, tmp_path)
    assert list(parts) == [
        *("parity mlx", "parity mps", "canaries mlx", "canaries mps", "canaries cpu"),
        *("train torch_gpt", "train mlx_gpt", "change framework"),
    ]
    assert "cpu,mps" in parts["parity mps"].commands[0]
    # The first of a framework that is here trains, on its device.
    for name, device in (("train mlx_gpt", "gpu"), ("train torch_gpt", "mps")):
        words = list(parts[name].commands[0])
        assert words[words.index("--device") + 1] == device
    assert parts["change framework"].after == ("train torch_gpt", "train mlx_gpt")


def test_what_is_absent_is_left_out(tmp_path: Path) -> None:
    parts = planned({"mlx": None, "mps": None, "cpu": "cpu"}, tmp_path)
    assert list(parts) == ["parity cpu", "canaries cpu", "train torch_gpt"]
    assert "cpu,mlx-cpu" in parts["parity cpu"].commands[0]


def test_if_nobody_can_say_who_is_here_everything_is_tried(tmp_path: Path) -> None:
    names = backend_names(BACKENDS)
    parts = [part.name for part in jobs(Findings(), tmp_path, names, 300.0)]
    assert {"parity mlx", "parity mps", "canaries cpu", "change framework"} <= set(parts)


@pytest.mark.parametrize(("named", "fails"), [(False, False), (True, True)])
def test_a_backend_that_is_missing_is_a_failure_if_it_was_named(named: bool, fails: bool, tmp_path: Path) -> None:
    part = first_jobs(Findings(), tmp_path, ["cpu", "mps"], named, 300.0)[1]
    rows = [{"backend": "cpu", "device": "cpu", "reason": None}, {"backend": "mps", "device": None, "reason": "gone"}]
    (tmp_path / "present.json").write_text(json.dumps(rows))
    if fails:
        with pytest.raises(WorkFailed, match="mps: gone"):
            part.read()
    else:
        assert part.read() == "cpu, no mps"


def test_the_gpus_are_timed_in_bfloat16_too_or_all_where_there_is_none() -> None:
    assert halves(["mlx", "mps", "cpu"], {"mlx": "gpu", "mps": "mps", "cpu": "cpu"}) == ["mlx-bf16", "mps-bf16"]
    assert halves(["cpu", "mlx-cpu"], {"cpu": "cpu", "mlx-cpu": "cpu"}) == ["cpu-bf16", "mlx-cpu-bf16"]
    assert halves(["cpu-compiled"], {"cpu-compiled": "cpu"}) == []


@pytest.mark.parametrize(("seconds", "rounds"), [(-100, 2), (300, 3), (10_000, 6)])
def test_the_benchmark_gets_the_time_that_is_left(seconds: float, rounds: int, tmp_path: Path) -> None:
    found = Findings(backends=[Here(backend=name, device="gpu", reason=None) for name in ("mlx", "mps")])
    words = list(benchmark_job(found, tmp_path, ["mlx", "mps"], seconds).commands[0])
    assert words[words.index("--rounds") + 1] == str(rounds)


# --- what is read


def climbed(folder: Path, **changed: Any) -> Path:
    worst = {"tensor": "wte.weight", "error": 4e-6, "gate": 1e-5}
    rungs = [
        {"name": "L0", "passed": True, "worst": None},
        {"name": "L5", "passed": True, "worst": worst},
    ]
    path = folder / "parity-mlx.json"
    path.write_text(json.dumps({"passed": True, "rungs": rungs, **changed}))
    return path


def test_the_ladder_is_read_also_where_it_broke(tmp_path: Path) -> None:
    found = Findings(backends=[Here(backend="mlx", device="gpu", reason=None)])
    part = next(iter(jobs(found, tmp_path, ["mlx"], 300.0)))
    climbed(tmp_path)
    assert part.read() == "L5 at 40% of its gate"
    broken = {"name": "L3", "passed": False, "worst": {"tensor": "logits", "error": None, "gate": 5e-6}}
    climbed(tmp_path, passed=False, rungs=[broken])
    assert part.read() == "L3 fails at logits"
    assert [climb.passed for climb in found.climbs] == [True, False]


def changing(resumed: list[float], whole: list[float], first: list[float], tmp_path: Path) -> Job:
    found = Findings(backends=[Here(backend=name, device="cpu", reason=None) for name in ("cpu", "mlx-cpu")])
    *_, part = jobs(found, tmp_path, ["cpu", "mlx-cpu"], 300.0)
    found.trainings = [
        Training(twin="torch_gpt", device="cpu", losses=list(first)),
        Training(twin="mlx_gpt", device="cpu", losses=list(whole)),
    ]
    (tmp_path / "moved").mkdir()
    rows = [{"step": 20, "val_loss": 3.0}, *({"step": 21 + i, "loss": loss} for i, loss in enumerate(resumed))]
    (tmp_path / "moved" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return part


CURVE = [4.0 - i / 20 for i in range(40)]


def test_a_change_of_framework_that_keeps_the_curve_passes(tmp_path: Path) -> None:
    near = [loss + 2e-6 for loss in CURVE]
    assert changing(near[20:], CURVE, near[:20], tmp_path).read() == "losses at most 2.0e-06 apart"


@pytest.mark.parametrize(
    ("resumed", "first", "message"),
    [
        ([loss + 3e-4 for loss in CURVE[20:]], CURVE[:20], "after the change of framework are 3.0e-04 apart"),
        (CURVE[20:], [loss + 3e-4 for loss in CURVE[:20]], "before the change of framework are 3.0e-04 apart"),
        (CURVE[20:39], CURVE[:20], "after the change of framework are not comparable"),
        ([*CURVE[20:39], float("nan")], CURVE[:20], "after the change of framework are not comparable"),
    ],
)
def test_one_that_does_not_is_a_failure(resumed: list[float], first: list[float], message: str, tmp_path: Path) -> None:
    with pytest.raises(WorkFailed, match=message):
        changing(resumed, CURVE, first, tmp_path).read()


def test_differences() -> None:
    assert difference([1.0, 2.0], [1.0, 2.5]) == 0.5
    assert difference([], []) is None
    assert difference([1.0, None], [1.0, 2.0]) is None


def test_what_is_timed_is_shortened_without_samples_or_the_machines_name() -> None:
    found = record().benchmark
    assert found is not None
    assert {row.backend: row.status for row in found.rows}["transformers-cpu"] == "absent"
    assert next(row for row in found.rows if row.backend == "mlx").tokens_per_second
    assert len(found.model_dump_json()) < 10_000


# --- for real, by hand: minutes


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_self_test_here_with_a_backend_that_fails(tmp_path: Path) -> None:
    """`cpu-compiled` without a compiler fails; everything else passes, and goes on."""
    share = tmp_path / "mac.json"
    command = [sys.executable, "benchmarks/selftest.py", "--share", str(share), "--minutes", "1", "--limit", "1200"]
    environment = {**os.environ, "CXX": "no-such-compiler", "USER": "janedoe"}
    done = subprocess.run(
        [*command, "--backends", "cpu,mlx-cpu,cpu-compiled"], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1, done.stderr
    found = read_record(share)
    statuses = {part.name: part.status for part in found.parts}
    assert statuses.pop("parity cpu-compiled") == "failed"
    assert statuses.pop("benchmark") == "failed", "it names the row that is unproven, and times the others"
    assert set(statuses.values()) == {"passed"}
    assert {"parity mlx-cpu", "canaries cpu", "train mlx_gpt", "change framework"} <= statuses.keys()
    assert found.benchmark is not None
    timed = {row.backend: row.status for row in found.benchmark.rows}
    assert timed["cpu"] == timed["mlx-cpu"] == timed["cpu-bf16"] == "measured"
    assert timed["cpu-compiled"] != "measured"
    assert str(ROOT) not in share.read_text()
