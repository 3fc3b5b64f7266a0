"""The file to share, the lines to paste, and the page of all."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from benchmarks.macs.machine import describe_checkout, describe_machine, source_digest
from benchmarks.macs.markdown import EMPTY, LINES, markdown, page
from benchmarks.macs.personal import Personal, texts
from benchmarks.macs.record import (
    LARGEST,
    UNCLEANED,
    Here,
    Machine,
    SelfTest,
    check_share,
    read_record,
    to_json,
    write_record,
)
from gpt_common.errors import UserError, WorkFailed
from gpt_common.machine.hardware import Hardware
from tests.benchmarks.macs.recipes import JANE, failed, record, write

ROOT = Path(__file__).parents[3]


# --- the file


def test_a_record_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mac.json"
    digest = write_record(path, record(), JANE)
    assert read_record(path) == record()
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(tmp_path.iterdir()) == [path]


def test_what_processes_have_said_is_cleaned_wherever_it_stands(tmp_path: Path) -> None:
    said = "jane's /Users/jane/x.py on Janes-MacBook-Pro"
    found = record(
        parts=[failed("parity mlx", said)], backends=[Here(backend="mlx", device=None, reason=said)], passed=False
    )
    text = write(tmp_path, "mac.json", found).read_text()
    assert text.count("<user>'s <path> on <host>") == 2
    assert not re.search("jane", text, re.IGNORECASE)
    assert "jane" not in markdown(SelfTest.model_validate_json(text)).lower()


def test_a_short_name_that_stands_everywhere_breaks_no_limit(tmp_path: Path) -> None:
    """And one that is the name of a property renames none."""
    person = Personal(users=frozenset({"jo", "machine"}))
    found = record(backends=[Here(backend="mlx", device=None, reason=("jo," * 100)[:UNCLEANED])])
    write_record(tmp_path / "mac.json", found, person)
    assert read_record(tmp_path / "mac.json").backends[0].reason == ",".join(["<user>"] * 67)


def test_nothing_is_written_if_something_personal_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Personal, "clean", lambda _, text: text)
    path = tmp_path / "mac.json"
    path.write_text("an older one")
    for said, what in (("by jane", "user's name"), ("Janes-MacBook-Pro", "machine's name"), ("/opt/x", "path")):
        with pytest.raises(WorkFailed, match=f"nothing was written: .*{what}") as error:
            write_record(path, record(parts=[failed("x", said)]), JANE)
        assert said not in str(error.value)
    assert path.read_text() == "an older one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_record_that_is_not_as_its_types_say_is_not_written(tmp_path: Path) -> None:
    wrong = record().model_copy(update={"seconds": -1.0})
    with pytest.raises(ValidationError):
        write_record(tmp_path / "mac.json", wrong, JANE)
    assert not list(tmp_path.iterdir())


def test_the_schema_says_what_each_property_is_and_allows_no_other() -> None:
    schema = SelfTest.model_json_schema(by_alias=True)
    kinds = [schema, *schema["$defs"].values()]
    for kind in kinds:
        if kind.get("type") == "object" and kind["title"] not in ("Hardware",):
            assert kind["additionalProperties"] is False, kind["title"]
            nameless = [name for name, entry in kind["properties"].items() if not entry.get("description")]
            assert not set(nameless) - {"commit", "source_sha256", "hardware", "matrix_units", "schema"}, kind["title"]


def damaged(change: Any) -> str:
    document = json.loads(to_json(record(), JANE))
    change(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "is not a self-test"),
        ("[]", "is not a self-test"),
        ('{"version": 1, "version": 1}', "stands in it twice"),
        ("{" + " " * LARGEST + "}", "is larger than 1.0 MB"),
        (damaged(lambda d: d.update(version=2)), "has self-test version 2, this is for version 1"),
        (damaged(lambda d: d.update(more=1)), "is damaged at more"),
        (damaged(lambda d: d["parts"][0].update(words="x" * 601)), r"is damaged at parts.0.words"),
        (damaged(lambda d: d["benchmark"]["rows"][0].update(seconds_per_step="1")), "is damaged at benchmark.rows.0"),
        (damaged(lambda d: d["parts"][0].update(words="/Users/jane/x")), "holds an absolute path"),
    ],
)
def test_what_strangers_send_is_read_with_care(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "sent.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_record(path)


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    check_share(tmp_path / "new" / "mac.json")
    with pytest.raises(UserError, match="is a folder: name a file"):
        check_share(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        check_share(tmp_path / "file" / "mac.json")


# --- what it says of its checkout


def test_the_checkout_is_described_so_that_a_reader_can_check_it(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}

    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()

    (tmp_path / "convert").mkdir()
    source = tmp_path / "convert" / "a.py"
    source.write_text("a = 1\n")
    assert describe_checkout(tmp_path).commit is None, "not that of a checkout around it"
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    first = describe_checkout(tmp_path)
    assert (first.commit, first.changed) == (git("rev-parse", "HEAD"), False)
    source.write_text("a = 2\n")
    changed = describe_checkout(tmp_path)
    assert (changed.commit, changed.changed) == (first.commit, True)
    assert changed.source_sha256 != first.source_sha256
    source.rename(source.with_name("b.py"))
    assert source_digest(tmp_path) not in (first.source_sha256, changed.source_sha256), "names count"
    assert changed.packages_sha256 == first.packages_sha256


def test_the_list_of_packages_is_that_of_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    here = describe_checkout()
    assert here.packages > 10
    assert here.wheels["torch"].startswith("cp")
    module = importlib.import_module("benchmarks.macs.machine")
    found = list(module.distributions())
    monkeypatch.setattr(module, "distributions", lambda: found[::-1])
    assert describe_checkout().packages_sha256 == here.packages_sha256, "in whatever order"
    monkeypatch.setattr(module, "distributions", lambda: found[1:])
    assert describe_checkout().packages_sha256 != here.packages_sha256
    assert describe_machine().versions["torch"]


# --- the lines to paste


def test_the_lines_say_what_was_measured() -> None:
    lines = markdown(record(), "f" * 64).splitlines()
    assert len(lines) <= LINES
    text = "\n".join(lines)
    assert lines[0] == "### Apple M3 Max, 40 GPU cores, 64.00 GiB, macOS 15.6.1"
    assert "1 of 1 parts passed in 8:41, 2026-11-26" in text
    assert "commit `0123456789ab` unchanged" in text
    assert "file `ffffffffffff`" in text
    mlx = next(line for line in lines if line.startswith("| mlx on gpu |"))
    assert "holds, L5 at 50% of its gate | 1 of 1 right" in mlx
    assert re.search(r"\| \d+(\.\d+)?k \| - \| - \|$", mlx), "float32 was made up, bfloat16 and energy were not"
    assert "PyTorch to MLX after 20 steps: losses at most 2.0e-06 nats apart (gate 1e-04)" in text
    assert "no source of energy figures" in text


def test_they_are_never_more_than_twenty_and_failures_come_first_to_be_counted() -> None:
    parts = [failed(f"part {i}", "word " * 100) for i in range(9)]
    backends = [Here(backend=f"b{i}", device="cpu", reason=None) for i in range(9)]
    text = markdown(record(parts=parts, backends=backends, passed=False))
    assert len(text.splitlines()) <= LINES
    assert "0 of 9 parts passed" in text
    assert "part 3 failed: word" in text
    assert text.endswith("; and 5 more")


def test_a_record_of_which_everything_failed_has_its_lines_too() -> None:
    nothing: dict[str, Any] = dict.fromkeys(("machine", "checkout", "change", "benchmark"))
    nothing |= {name: [] for name in ("climbs", "canaries", "trainings", "backends")}
    text = markdown(record(**nothing, parts=[failed("machine", "no")], passed=False))
    assert "machine failed: no" in text
    assert "not shown" in text


def test_if_nobody_could_say_who_is_here_the_figures_have_their_rows_all_the_same() -> None:
    found = record(backends=[], parts=[failed("backends", "no")], passed=False)
    rows = [line for line in markdown(found).splitlines() if line.startswith("| ")]
    known = [line for line in markdown(record()).splitlines() if line.startswith("| ")]
    # The CPU, beside which each of the others climbs, has a speed.
    assert [row.split(" | ")[0] for row in rows[:4]] == ["| backend", "| mlx", "| mps", "| cpu"]
    assert [row.split(" | ")[1:] for row in rows[:4]] == [row.split(" | ")[1:] for row in known]
    only = record(backends=[], benchmark=None, climbs=[], parts=[failed("backends", "no")], passed=False)
    assert [line.split(" | ")[0] for line in markdown(only).splitlines() if line.startswith("| ")][1:] == ["| mlx"]


def test_texts_of_strangers_are_no_markdown() -> None:
    said = "a | b [x](https://example.org) <img src=x> `c` @maintainer #1\n## heading"
    text = markdown(record(parts=[failed("x", said)], passed=False))
    last = text.splitlines()[-1]
    assert last.startswith("x failed: a \\| b \\[x\\](https://example.org) &lt;img src=x&gt; \\`c\\` &")
    assert "@" not in last
    assert "\n##" not in text[1:]


# --- the page


def test_the_page_in_the_repository_is_the_one_that_its_files_make() -> None:
    results = ROOT / "docs" / "results" / "macs"
    assert (ROOT / "docs" / "macs.md").read_text(encoding="utf-8") == page(results)


def test_without_results_the_page_says_that_there_are_none(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert EMPTY in text
    assert "nothing in this project has been measured on a Mac" in text


def test_every_file_is_a_row(tmp_path: Path) -> None:
    write(tmp_path, "m3-max.json", record())
    virtual = record().machine
    assert virtual is not None
    hardware = Hardware(chip="Apple M1 (Virtual)", kind="apple", os="macOS 15.7")
    unclear = Machine(**{**virtual.model_dump(), "hardware": hardware})
    write(tmp_path, "runner.json", record(machine=unclear, checkout=None))
    rows = [line for line in page(tmp_path).splitlines() if line.startswith("| [")]
    assert len(rows) == 2
    assert "virtual | virtual | virtual" in rows[0], "the speed of a paravirtual GPU is no Mac's"
    assert "changed or unknown" in rows[0]
    assert rows[1].startswith("| [Apple M3 Max, 40 GPU cores, 64.00 GiB](results/macs/m3-max.json) | 15.6.1 | 1 of 1 |")
    assert "| 2 of 2 backends |" in rows[1]
    assert rows[1].endswith("| `0123456789ab` |")
    assert EMPTY not in page(tmp_path)


def test_what_is_no_mac_has_no_row(tmp_path: Path) -> None:
    write(tmp_path, "linux.json", record(machine=None))
    with pytest.raises(UserError, match="was not made on Apple silicon"):
        page(tmp_path)


def test_the_issue_form_asks_for_what_the_command_makes() -> None:
    form = importlib.import_module("yaml").safe_load(
        (ROOT / ".github" / "ISSUE_TEMPLATE" / "mac.yml").read_text(encoding="utf-8")
    )
    assert form["name"] == "My Mac's numbers"
    assert {"name", "description", "body"} <= form.keys()
    kinds = {entry["type"] for entry in form["body"]}
    assert kinds <= {"markdown", "textarea", "input", "dropdown", "checkboxes"}, "those that GitHub knows"
    asked = {entry["id"]: entry for entry in form["body"] if entry["type"] != "markdown"}
    assert {"summary", "file"} <= asked.keys()
    assert all(entry["attributes"]["label"] for entry in asked.values())
    assert any("benchmarks/selftest.py --share my-mac.json" in text for text in texts(form))
