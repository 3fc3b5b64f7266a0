"""Hostile checkpoints and runs: refused in a line that names what is wrong, soon, in little memory, and harmlessly."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpt_common.words import printable
from tests.gpt_common.training.hostile import cases_files, cases_logs, cases_manifest, cases_tensors, cases_tokenizers
from tests.gpt_common.training.hostile.case import Case
from tests.gpt_common.training.hostile.sound import make_corpus, make_sound
from tests.gpt_common.training.hostile.trying import MEMORY, SECONDS, Attempt, Outcome, try_all
from tests.twins import ROOT, TWINS

ONE_STEP = ["--stop-at", "4"]
BEGIN = ["--max-steps", "1"]


@dataclass(frozen=True)
class Group:
    """Cases of one kind, and the commands that meet them."""

    cases: Sequence[Case]
    always: frozenset[str] = frozenset()
    """Commands that meet every case, besides those that must refuse it."""
    harmless: frozenset[str] = frozenset()
    """Commands that meet the cases which nothing has to refuse."""

    def commands(self, case: Case) -> set[str]:
        """Those that meet a case."""
        return {*case.refused_by, *case.tried_by, *self.always, *(() if case.refused_by else self.harmless)}


GROUPS = {
    "files": Group(cases_files.CASES, frozenset({"inspect", "show"}), frozenset({"sample"})),
    "manifest": Group(cases_manifest.CASES, frozenset({"inspect"}), frozenset({"sample"})),
    "tensors": Group(cases_tensors.CASES, frozenset({"inspect"}), frozenset({"sample"})),
    "logs": Group(cases_logs.CASES, frozenset({"show"})),
    "tokenizers": Group(cases_tokenizers.CASES, frozenset({"inspect"}), frozenset({"sample", "export"})),
}
COMMANDS = ["resume", "init-from", "sample", "inspect", "export", "show", "report", "compare"]
ALIKE = {"resume", "init-from", "sample"}
"""What each twin has of its own."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sound run and its corpus."""
    folder = tmp_path_factory.mktemp("sound")
    make_sound(folder / "run", make_corpus(folder / "data"))
    return folder / "run"


def attempts(command: str, program: str, run: Path, other: Path) -> Attempt:
    """One command on a run. What it writes goes beside the run."""
    label, out = f"{run.parent.name}: {command}", str(run.parent / command)
    words = {
        "resume": ["--resume", str(run), *ONE_STEP],
        "init-from": ["--init-from", str(run), *BEGIN, "--out", out],
        "sample": [str(run), "--max-new-tokens", "4", "--device", "cpu"],
        "inspect": ["inspect", str(run), "--hashes"],
        "export": ["export", str(run), "--to", "native", "-o", out],
        "show": ["show", str(run)],
        "report": ["report", str(run), "--out", f"{out}.html"],
        "compare": ["compare", str(run), str(other), "--png", f"{out}.png"],
    }
    if command in ALIKE:
        return label, f"{program}.{'sample' if command == 'sample' else 'train'}", words[command]
    return label, "convert.__main__" if command in ("inspect", "export") else "gpt_common.runs", words[command]


def judged(case: Case, command: str, outcome: Outcome, run: Path) -> Iterator[str]:
    """What is wrong with how a command met a case."""
    said = outcome.stderr.strip()
    # Notes may stand before it: which run was taken, how a flag was read.
    error = said[said.find("error: ") :]
    if outcome.code is None:
        yield f"broke: {said[-700:]}"
        return
    if outcome.code not in (0, 2) or (outcome.code == 0 and command in case.refused_by):
        yield f"exit code {outcome.code}: {said[-300:]}"
    if outcome.code == 2:
        if not error.startswith("error: ") or len(error.splitlines()) > 3 or len(error) > 2100:
            yield f"not a short error: {said[:500]}"
        # The path to the case must not stand in for what has to be said.
        spoken = error.replace(str(run), "RUN")
        if command in case.refused_by and not re.search(case.says, spoken, re.IGNORECASE | re.DOTALL):
            yield f"does not say {case.says}: {spoken[:500]}"
    if outcome.seconds > SECONDS / 2:
        yield f"took {outcome.seconds:.1f} s"
    if outcome.peak > MEMORY:
        yield f"the process held {outcome.peak >> 20} MiB"
    for stream in (outcome.stdout, outcome.stderr):
        if printable(stream) != stream:
            yield f"printed {next(a for a, b in zip(stream, printable(stream), strict=False) if a != b)!r}"


def snapshot(run: Path) -> dict[str, object]:
    """What lies in a run, as far as it can be read without harm."""
    return {
        str(path.relative_to(run)): (path.lstat().st_mode, path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in run.rglob("*")
    }


def tried(program: str, among: Set[str], sound: Path, folder: Path) -> dict[str, list[str]]:
    """Every case under those of its commands that are `among` these; what is wrong, by case and command.

    All in one process: what a framework takes to begin is more than all of the cases take.
    """
    meetings = [
        (case, folder / f"{number:03}" / "run", sorted(group.commands(case) & among))
        for number, (group, case) in enumerate((group, case) for group in GROUPS.values() for case in group.cases)
    ]
    plan, before = [], {}
    for case, run, commands in meetings:
        if commands:
            shutil.copytree(sound, run)
            case.damage(run)
            before[run] = snapshot(run)
            plan += [attempts(command, program, run, sound) for command in commands]
    outcomes = try_all(plan, folder, ROOT)
    wrong: dict[str, list[str]] = {}
    for case, run, commands in meetings:
        met = {command: outcomes.get(f"{run.parent.name}: {command}") for command in commands}
        for command, outcome in met.items():
            found = ["not tried"] if outcome is None else list(judged(case, command, outcome, run))
            if found:
                wrong[f"{case.name}: {command}"] = found
        if commands and all(outcome and outcome.code == 2 for outcome in met.values()) and snapshot(run) != before[run]:
            wrong[case.name] = ["the run was changed"]
    return wrong


def told(wrong: dict[str, list[str]]) -> str:
    return "\n".join(f"- {name}: {'; '.join(found)}" for name, found in wrong.items())


@pytest.mark.parametrize("program", TWINS)
def test_the_twins_refuse_in_a_line(program: str, sound: Path, tmp_path: Path) -> None:
    wrong = tried(program, ALIKE, sound, tmp_path)
    assert not wrong, told(wrong)


def test_convert_and_runs_refuse_in_a_line(sound: Path, tmp_path: Path) -> None:
    wrong = tried("", {*COMMANDS} - ALIKE, sound, tmp_path)
    assert not wrong, told(wrong)


@pytest.mark.parametrize("program", TWINS)
def test_the_sound_run_is_taken_by_every_command(program: str, sound: Path, tmp_path: Path) -> None:
    """Or a refusal would prove nothing."""
    run = tmp_path / "sound" / "run"
    shutil.copytree(sound, run)
    plan = [attempts(command, program, run, sound) for command in [*COMMANDS[1:], COMMANDS[0]]]
    outcomes = try_all(plan, tmp_path, ROOT)
    assert {label: outcome.code for label, outcome in outcomes.items()} == dict.fromkeys(outcomes, 0), outcomes
    assert len(outcomes) == len(plan)


def test_the_cases_are_many_and_each_has_a_name_of_its_own() -> None:
    names = [case.name for group in GROUPS.values() for case in group.cases]
    assert len(names) >= 80
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)
