"""What is taken out of texts before they leave, and what is not."""

from __future__ import annotations

import getpass
import os
import platform
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.macs.markdown import markdown
from benchmarks.macs.personal import Personal, holds_path, texts, this_person
from benchmarks.macs.record import Here, SelfTest, look_through, to_json
from tests.benchmarks.macs.recipes import JANE, failed, record

CLEANED = {
    "the checkout": ("/Users/jane/our gpt/convert/__main__.py failed", "./convert/__main__.py failed"),
    "the scratch folder": ("--out /private/var/folders/xy/T/selftest-1/run", "--out SCRATCH/run"),
    "a folder that begins alike": ("/Users/jane/our gpts/x", "<path> gpts/x"),
    "home": ("no such file: /Users/jane/secret/plan.py", "no such file: <path>"),
    "home alone": ("HOME=/Users/jane", "HOME=<path>"),
    "home, short": ("see ~/secret/plan.py", "see <path>"),
    "a path with spaces in quotes": ('File "/Users/jane/My Documents/x.py", line 3', "File <path>, line 3"),
    "somebody else's path": ("cannot open /Volumes/Disk/a.txt: busy", "cannot open <path>: busy"),
    "behind a colon": ("error:/opt/x/y", "error:<path>"),
    "an address of a file": ("torch @ file:///no-such-disk/torch.whl", "torch @ <path>"),
    "the user": ("run by jane (Jane Doe) or JANE_1", "run by <user> (<user>) or <user>_1"),
    "the host": ("lost Janes-MacBook-Pro.local, janes-macbook-pro", "lost <host>, <host>"),
    "a mail address": ("ask jd@example.org", "ask <address>"),
    "a password in an address": ("https://jd:pass@example.org/x", "<address>"),
    "a serial number": ("serial C02ZK0XXMD6R", "serial <number>"),
    "a hardware identifier": ("id 3F2504E0-4F89-11D3-9A0C-0305E82C3301", "id <number>"),
    "a network interface": ("en0 a4:83:e7:01:02:03", "en0 <number>"),
}
KEPT = (
    "Apple M3 Max, 40 GPU cores, 64.00 GiB, macOS 26.2",
    "12 tokens/s and 1/8 of its gate, CPU/GPU, Debian GNU/Linux 12",
    "see https://github.com/pytorch/pytorch/issues/195163 or pytorch#195163",
    "h.0.attn.c_attn.weight (mlx - float64)",
    "janet and trajanes are other people",
    "cp312-cp312-macosx_26_0_arm64",
    "python -m convert parity --json SCRATCH/parity.json",
    "0123456789abcdef" * 4,
)


@pytest.mark.parametrize(("text", "clean"), CLEANED.values(), ids=CLEANED)
def test_it_is_taken_out(text: str, clean: str) -> None:
    assert JANE.clean(text) == clean
    assert JANE.clean(clean) == clean, "once is enough"
    assert JANE.found_in(clean) is None


@pytest.mark.parametrize("text", KEPT)
def test_it_is_kept(text: str) -> None:
    assert JANE.clean(text) == text
    assert JANE.found_in(text) is None


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("by Jane", "the user's name"),
        ("on janes-macbook-pro", "the machine's name"),
        ("x/Users/jane", "the home folder"),
        ("in /opt/x", "an absolute path"),
    ],
)
def test_the_last_look_finds_what_cleaning_would_have_taken_out(text: str, what: str) -> None:
    assert JANE.found_in(text) == what


def test_everything_nested_is_cleaned_and_no_property_is_renamed() -> None:
    document = {"jane": [{"x": "jane"}, 1, None, True, 0.5]}
    assert JANE.clean_all(document) == {"jane": [{"x": "<user>"}, 1, None, True, 0.5]}
    assert list(texts(document)) == ["jane"]


def test_this_person_is_known_by_name_host_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "janet.doe")
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "janet.doe"))
    monkeypatch.setattr(platform, "node", lambda: "Janets-Air.fritz.box")
    person = this_person({tmp_path / "checkout": "."})
    told = f"janet.doe, Janets-Air, Janets-Air.fritz.box, {tmp_path}/home/janet.doe/x, {tmp_path}/checkout/y"
    assert person.clean(told) == "<user>, <host>, <host>, <path>, ./y"


def test_a_name_that_tells_nothing_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Max has an M3 Max, and a container is run by root."""
    monkeypatch.setattr(getpass, "getuser", lambda: "max")
    monkeypatch.setenv("USER", "Max")
    monkeypatch.setenv("LOGNAME", "root")
    person = Personal(users=frozenset(name for name in this_person({}).users if name.lower() in ("max", "root")))
    assert person.clean("Apple M3 Max, root mean square") == "Apple M3 Max, root mean square"


def test_whatever_somebody_is_called_the_lines_and_the_file_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every word that stands in the lines as a login, some of them initials; ten minutes of measuring hang on it."""
    parts = [*record().parts, failed("parity mlx", "no"), failed("a", "b").model_copy(update={"status": "timed out"})]
    nothing: dict[str, Any] = {**dict.fromkeys(("machine", "checkout", "change", "benchmark")), "climbs": []}
    canary = record().canaries[0].model_copy(update={"verdict": "wrong"})
    absent = Here(backend="mlx", device=None, reason="gone")
    known = record()
    assert known.machine is not None
    m5 = known.machine.model_copy(update={"matrix_units": True})
    variants = [
        known,
        record(parts=parts, passed=False, interrupted=True, machine=m5, canaries=[canary], backends=[absent]),
        record(**nothing, parts=[failed("machine", "not run")], passed=False),
        record(backends=[], climbs=[climb.model_copy(update={"passed": False}) for climb in known.climbs]),
    ]
    lines = "\n".join(markdown(found, "1" * 64) for found in variants)
    words = set(re.findall(r"(?<![A-Za-z0-9])[A-Za-z][A-Za-z0-9]+", lines))
    assert len(words) > 60
    monkeypatch.setattr(getpass, "getuser", lambda: "root")
    for name in ("LOGNAME", "SUDO_USER"):
        monkeypatch.delenv(name, raising=False)
    for word in words:
        monkeypatch.setenv("USER", word)
        for found in variants:
            clean = SelfTest.model_validate_json(to_json(found, this_person({})))
            look_through(markdown(clean, "1" * 64).splitlines(), this_person({}))


def test_a_user_without_an_account_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 987654321)
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME", "SUDO_USER"):
        monkeypatch.delenv(name, raising=False)
    assert isinstance(this_person({}), Personal)


def test_a_path_is_told_from_a_fraction_and_an_address_of_the_web() -> None:
    assert holds_path("in /a/b")
    assert holds_path("~/x")
    assert not holds_path("1/2, a/b, https://example.org/a/b")
