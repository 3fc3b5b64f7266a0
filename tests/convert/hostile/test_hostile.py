"""Hostile and broken inputs: refused in a sentence that names what is wrong, with nothing run and nothing left."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.convert.conftest import Outcome, run_convert
from tests.convert.hostile.corpus import CANARY, SOUND, Case, nanogpt_file, native_run
from tests.convert.hostile.corpus_archives import ARCHIVES, TRAPS
from tests.convert.hostile.corpus_families import FAMILIES, SOUND_FAMILIES
from tests.convert.hostile.corpus_gguf import GGUF, GREEDY_GGUF, SOUND_GGUF
from tests.convert.hostile.corpus_models import ARGUMENTS, BARE, OPTIMIZER
from tests.convert.hostile.corpus_models import TENSORS as MODEL_TENSORS
from tests.convert.hostile.corpus_native import NATIVE, PATHS
from tests.convert.hostile.corpus_pickles import ATTACKS, BROKEN
from tests.convert.hostile.corpus_safetensors import CONFIGS, FOLDERS, LIES, SHARDS, TENSORS

CASES = [
    *ATTACKS,
    *BROKEN,
    *ARCHIVES,
    *ARGUMENTS,
    *MODEL_TENSORS,
    *OPTIMIZER,
    *BARE,
    *LIES,
    *TENSORS,
    *CONFIGS,
    *SHARDS,
    *FOLDERS,
    *NATIVE,
    *PATHS,
    *FAMILIES,
    *GGUF,
]

# What a person can do: copy or download the file again, save it in another way, give a flag, use another command.
REMEDY = re.compile(
    r"\b(copy|download|save|export|convert|give|pass|add|use|set|choose|did you mean|check|remove|rename|make|take|"
    r"update|upgrade|point|name|repeat|try|allow|needs?|must|expected|start|write|train)\b|--\w|chmod",
    re.IGNORECASE,
)
MEMORY = 128 << 20
"""Bytes that a refused command may hold at its peak: three times what Python with numpy takes, and no bomb."""

GREEDY = [
    "a compressed tensor",
    "a compressed pickle",
    "a storage of 2^50 elements claimed",
    "a shape larger than the storage",
    "bytearray of 2^40",
    "2^50 entries as an argument",
    "n_layer of 10^9",
    "safetensors: a header of 2^63 bytes",
    "config: n_layer of 10^9",
    "weights that are endless",
    "/dev/zero",
    "native: n_layer of 10^9",
    *GREEDY_GGUF,
]
REPOSITORY = Path(__file__).parents[3]

pytestmark = pytest.mark.timeout(60)


def entries(folder: Path) -> set[str]:
    """Every path under a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def judge(case: Case, outcome: Outcome, source: Path) -> None:
    """The refusal that a case must get: exit 2, one or two lines, the file, what is wrong with it, what to do."""
    message = outcome.stderr.strip()
    assert outcome.code == 2, f"exit {outcome.code}: {message or outcome.stdout}"
    assert message.startswith("error: "), message
    assert len(message.splitlines()) <= 2, message
    assert len(message) < 1000, "a wall of text"
    assert "Traceback" not in message
    named = case.file or (source.name if not case.flags else "")
    assert named in message, f"does not name {named}: {message}"
    # The path itself may not stand in for what has to be said.
    spoken = message.replace(str(source), "").replace(str(source.parent), "")
    for pattern in case.says:
        assert re.search(pattern, spoken, re.IGNORECASE | re.DOTALL), f"does not say {pattern}: {message}"
    assert REMEDY.search(spoken), f"does not say what to do: {message}"


@dataclass(frozen=True)
class Attempt:
    """A command that was tried on what a case wrote."""

    outcome: Outcome
    source: Path
    outputs: set[str]


def attempt(case: Case, place: Path, *, command: str | None = None, output: bool = True) -> Attempt:
    """Run a command on what `case` writes: whatever comes of it, nothing may run and the source stays as it is."""
    inputs, outputs, temporary = place / "inputs", place / "outputs", place / "temporary"
    for folder in (inputs, outputs, temporary):
        folder.mkdir()
    source = case.make(inputs)
    before = entries(inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        patch.chdir(inputs)
        target = ("-o", outputs / "converted") if output else ()
        outcome = run_convert(command or case.command, source, *target, *case.flags)
    assert CANARY not in entries(inputs), "the input's code was run"
    assert entries(inputs) == before, "the source's folder was written to"
    assert not entries(temporary), "temporary files were left behind"
    return Attempt(outcome, source, entries(outputs))


def refuse(case: Case, place: Path) -> None:
    """Try a case, which must be refused as `judge` wants it with nothing left behind."""
    tried = attempt(case, place)
    assert not tried.outputs, "something was left at the destination"
    judge(case, tried.outcome, tried.source)


def label(case: Case) -> str:
    return case.name.replace(" ", "-")


@pytest.mark.parametrize("name", SOUND | SOUND_FAMILIES | SOUND_GGUF)
def test_what_the_corpus_is_made_from_converts(name: str, tmp_path: Path) -> None:
    command, make = (SOUND | SOUND_FAMILIES | SOUND_GGUF)[name]
    tried = attempt(Case(name, make, (), command=command), tmp_path)
    assert tried.outcome.code == 0, tried.outcome.stderr
    assert tried.outputs


@pytest.mark.parametrize("case", CASES, ids=label)
def test_refused_by_name_with_nothing_left_behind(case: Case, tmp_path: Path) -> None:
    refuse(case, tmp_path)


@pytest.mark.parametrize("case", [*ATTACKS, *BROKEN], ids=label)
def test_inspect_runs_nothing_either(case: Case, tmp_path: Path) -> None:
    outcome = attempt(case, tmp_path, command="inspect", output=False).outcome
    assert outcome.code in (0, 2)
    assert len(outcome.stderr.strip().splitlines()) <= 2, outcome.stderr


@pytest.mark.parametrize("case", TRAPS, ids=label)
def test_traps_are_not_stepped_on(case: Case, tmp_path: Path) -> None:
    outcome = attempt(case, tmp_path).outcome
    assert outcome.code in (0, 2)


def test_corpus_is_large_and_its_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(names) >= 60
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)


def unchecked(file: Any, record: str, begin: int, length: int, _: int) -> Iterator[bytes]:
    """`TorchFile._read` without the checksum."""
    with file.path.open("rb") as raw:
        raw.seek(file._records[record][0] + begin)
        yield raw.read(length)


def said_nothing(*_: object) -> float:
    """`rope_theta` or `check_fixed` that looks at nothing."""
    return 10_000.0


class TestOfTheTest:
    """The judge rejects what must not pass, and the bait is live."""

    CASE = Case("a bit in the weights", nanogpt_file(), ("ln_f.weight",))
    GOOD = "error: x/ckpt.pt: tensor transformer.ln_f.weight is damaged: copy it again"

    def test_a_good_refusal_passes(self) -> None:
        judge(self.CASE, Outcome(2, "", self.GOOD), Path("x/ckpt.pt"))

    @pytest.mark.parametrize(
        "outcome",
        [
            Outcome(0, "done", ""),
            Outcome(1, "", GOOD),
            Outcome(2, "", "error: x/ckpt.pt cannot be read: copy it again"),
            Outcome(2, "", "error: transformer.ln_f.weight is damaged: copy it again"),
            Outcome(2, "", "error: x/ckpt.pt: transformer.ln_f.weight has gone bad"),
            Outcome(2, "", "Traceback (most recent call last):\n" + GOOD),
            Outcome(2, "", GOOD + "\nmore\nand more"),
        ],
        ids=["accepted", "wrong code", "no tensor", "no file", "no remedy", "traceback", "too long"],
    )
    def test_a_bad_one_fails(self, outcome: Outcome) -> None:
        with pytest.raises(AssertionError):
            judge(self.CASE, outcome, Path("x/ckpt.pt"))

    @pytest.mark.parametrize("reader", ["pickle", "torch"])
    def test_the_bait_bites_a_careless_reader(self, reader: str, tmp_path: Path) -> None:
        bare, zipped = ATTACKS[0].make(tmp_path), tmp_path / "zipped"
        zipped.mkdir()
        if reader == "pickle":
            pickle.loads(bare.read_bytes())
            assert CANARY in entries(tmp_path)
        else:
            attack = next(case for case in ATTACKS if case.name == "in the model arguments")
            torch.load(attack.make(zipped), weights_only=False)
            assert CANARY in entries(zipped)

    @pytest.mark.parametrize(
        ("target", "careless", "name", "complaint"),
        [
            ("convert.storage.torch_file.read_pickle", pickle.loads, "a pickle that reads a pickle", "code was run"),
            ("gpt_common.files.discard_on_error", contextlib.nullcontext, "a bit in a tensor", "left at the dest"),
            ("gpt_common.training.manifest.unique_keys", dict, "safetensors: one name twice", "does not"),
            ("convert.storage.torch_file.TorchFile._read", unchecked, "a bit in a tensor", "left at the dest"),
            (
                "convert.formats.model_folder.rope_theta",
                said_nothing,
                "llama: scaled wavelengths",
                "left at the dest",
            ),
            (
                "convert.formats.model_folder.check_fixed",
                said_nothing,
                "llama: a sliding window",
                "left at the dest",
            ),
            (
                "convert.formats.model_folder.check_fixed",
                said_nothing,
                "deepseek: softmax gates",
                "left at the dest",
            ),
        ],
    )
    def test_a_careless_converter_is_caught(
        self, target: str, careless: object, name: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import convert.conversion  # noqa: F401 (so that there is something to make careless)

        monkeypatch.setattr(target, careless)
        with pytest.raises(AssertionError, match=complaint):
            refuse(next(case for case in CASES if case.name == name), tmp_path)

    def test_what_is_left_behind_is_seen(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def careless(*_: object) -> Outcome:
            Path(tempfile.gettempdir(), "half-written").touch()
            return Outcome(2, "", self.GOOD)

        monkeypatch.setattr(sys.modules[__name__], "run_convert", careless)
        with pytest.raises(AssertionError, match="temporary files"):
            attempt(self.CASE, tmp_path)


# A child begins with its parent's peak on its account, so the parent that is asked has to be a small one.
MEASURE = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def measured(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command; its peak memory in bytes takes the place of its output."""
    arguments = [sys.executable, "-c", MEASURE, *command]
    return subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs the peak memory of one child")
def test_a_large_peak_is_seen() -> None:
    assert int(measured(sys.executable, "-c", "b'x' * (1 << 28)").stdout) > 1 << 28


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs the peak memory of one child")
@pytest.mark.parametrize("name", GREEDY)
def test_refusal_takes_little_memory(name: str, tmp_path: Path) -> None:
    """As a process of its own, whose peak the system counts."""
    case = next(case for case in CASES if case.name == name)
    source = case.make(tmp_path)
    command = [sys.executable, "-m", "convert", case.command, str(source), "-o", str(tmp_path / "converted")]
    process = measured(*command)
    judge(case, Outcome(process.returncode, "", process.stderr), source)
    peak = int(process.stdout)
    print(f"{name}: {peak >> 20} MiB at the peak")
    assert peak < MEMORY
    assert not (tmp_path / "converted").exists()


def test_a_file_nobody_may_read() -> None:
    """Root may read everything, so a root test gives up its rights for the moment."""
    place = Path(tempfile.mkdtemp())
    try:
        place.chmod(0o777)
        source = nanogpt_file()(place)
        source.chmod(0)
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        if root:
            import convert.__main__  # noqa: F401 (while its files can be read)

            os.seteuid(65534)
        try:
            outcome = run_convert("torch2mlx", source, "-o", place / "converted")
        finally:
            if root:
                os.seteuid(0)
        judge(Case("unreadable", nanogpt_file(), ("permission|readable|may not",)), outcome, source)
        assert entries(place) == {"ckpt.pt"}
    finally:
        shutil.rmtree(place)


@pytest.mark.parametrize("command", ["torch2mlx", "mlx2torch"])
def test_what_is_at_the_destination_already_stays(command: str, tmp_path: Path) -> None:
    source = (nanogpt_file() if command == "torch2mlx" else native_run())(tmp_path)
    target = tmp_path / "converted"
    target.mkdir()
    (target / "dear.txt").write_text("mine")
    outcome = run_convert(command, source, "-o", target)
    judge(Case("taken", nanogpt_file(), ("exist|already|empty",), file="converted"), outcome, source)
    assert entries(target) == {"dear.txt"}
    assert (target / "dear.txt").read_text() == "mine"


@pytest.mark.parametrize("command", ["torch2mlx", "mlx2torch"])
def test_a_source_is_not_overwritten_by_its_own_conversion(command: str, tmp_path: Path) -> None:
    source = (nanogpt_file() if command == "torch2mlx" else native_run())(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    outcome = run_convert(command, source, "-o", source)
    judge(Case("itself", nanogpt_file(), ()), outcome, source)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
