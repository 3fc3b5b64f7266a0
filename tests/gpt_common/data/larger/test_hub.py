"""Data sets of a hub, from a server on this machine: what becomes of them, going on after a kill, what is refused."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="extra hub")

# isort: split
import pyarrow

from gpt_common.data import Dataset
from gpt_common.data.__main__ import main
from gpt_common.data.corpora import hub as preparing
from gpt_common.data.corpora.work import Work
from gpt_common.errors import UserError
from tests.gpt_common.data.corpora import fails
from tests.gpt_common.data.larger.hub import (
    FIRST,
    LETTERS,
    NAME,
    ONE,
    SECOND,
    THREE,
    TWO,
    Killed,
    Texts,
    json_lines,
    parquet,
    prepared,
    three_files,
)
from tests.twins import ROOT

END = len(LETTERS)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Texts]:
    """The server, asked by this process."""
    with three_files(tmp_path, monkeypatch) as hub:
        yield hub


def documents(found: Dataset) -> list[str]:
    """The texts of both splits."""
    ids = np.concatenate([found.train, found.val])
    assert ids[-1] == END
    parts = np.split(ids, np.flatnonzero(ids == END) + 1)[:-1]
    return [found.tokenizer.decode(part[:-1].tolist()) for part in parts]


def contents(name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (Path("data") / name).iterdir()}


def test_each_row_becomes_a_document(hub: Texts) -> None:
    found = prepared()
    assert documents(found) == ONE + TWO + THREE
    assert found.train[-1] == END
    assert len(found.val) / (len(found.train) + len(found.val)) == pytest.approx(0.1, abs=81 / 3000)
    meta = json.loads(Path("data/mine/meta.json").read_text())
    assert meta["recipe"]["commit"] == FIRST
    assert meta["recipe"]["repository"] == "someone/texts"
    assert len(meta["sources"]) > 4
    assert sum(shard["tokens"] for shard in meta["sources"]) == len(found.train) + len(found.val)
    rows = [row for shard in meta["sources"] for row in shard["rows"]]
    read = [(row["file"][11:16], number) for row in rows for number in range(row["first"], row["last"] + 1)]
    assert read == [(f"0000{i}", row) for i, part in enumerate((ONE, TWO, THREE)) for row in range(len(part))]
    assert all(row["hash"].startswith("sha256:") for row in rows)
    assert [path.name for path in Path("data").iterdir()] == ["mine"]
    assert not any("test" in name for name in hub.asked)


def test_the_sizes_of_shards_pieces_and_row_groups_change_no_token(hub: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    before = np.concatenate([(found := prepared("a")).train, found.val])
    monkeypatch.setattr(preparing, "PIECE_CHARACTERS", 50)
    hub.files["data/train-00000-of-00003.parquet"] = parquet(ONE, group=1000)
    hub.commit = SECOND
    found = prepared("b", shard_characters=10**6)
    np.testing.assert_array_equal(np.concatenate([found.train, found.val]), before)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "ndjson"])
def test_json_lines(hub: Texts, kind: str) -> None:
    data = json_lines([*ONE, None, "", *TWO])
    if kind == "jsonl.gz":
        data = gzip.compress(data)
    if kind == "jsonl.zst":
        data = pyarrow.compress(data, "zstd", asbytes=True)
    hub.files = {f"train.{kind}": data}
    assert documents(prepared()) == ONE + TWO


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("most", [300, 777, 1500])
def test_max_tokens_takes_the_documents_that_fit(most: int) -> None:
    found = prepared(max_tokens=most)
    taken = documents(found)
    assert taken == (ONE + TWO + THREE)[: len(taken)]
    size = len(found.train) + len(found.val)
    assert size <= most < size + len((ONE + TWO + THREE)[len(taken)]) + 1
    rows = json.loads(Path("data/mine/meta.json").read_text())["sources"][-1]["rows"]
    assert (ONE, TWO, THREE)[int(rows[-1]["file"][15])][rows[-1]["last"]] == taken[-1]


def test_stopped_after_every_shard_it_ends_in_the_same_bytes(hub: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared("whole")
    whole = contents("whole")
    asked = len(hub.asked)
    keep, stops = Work.keep, 0

    def stop(work: Any, record: Any) -> None:
        keep(work, record)
        raise Killed

    monkeypatch.setattr(Work, "keep", stop)
    for _ in range(50):
        # What was half written then is not taken for a shard.
        for folder in Path("data").glob("*.tmp-hub"):
            (folder / f"shard-{stops:05}.bin").write_bytes(b"ab" * 100)
        try:
            prepared("again")
            break
        except Killed:
            stops += 1
    assert stops == len(json.loads(whole["meta.json"])["sources"])
    assert contents("again") == whole
    assert len(hub.asked) == asked  # all is in the cache
    assert sorted(path.name for path in Path("data").iterdir()) == ["again", "whole"]


@pytest.mark.usefixtures("hub")
def test_a_damaged_shard_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared("whole")
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "_assemble", stopped)
        with pytest.raises(Killed):
            prepared("again")
    path = Path("data/again.tmp-hub/shard-00001.bin")
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    prepared("again")
    assert contents("again") == contents("whole")


def stopped(*_: Any, **__: Any) -> None:
    raise Killed


def test_a_changed_upstream_is_refused(hub: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared("whole")
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "_assemble", stopped)
        with pytest.raises(Killed):
            prepared()
    hub.commit = SECOND
    with fails(rf"is at commit {SECOND[:12]} now.*begun at another: --revision {FIRST} goes on.*--overwrite"):
        prepared()
    assert Path("data/mine.tmp-hub").is_dir()
    with fails("was begun with column text, not other"):
        prepared(revision=FIRST, column="other")
    prepared(revision=FIRST)
    assert contents("mine")["train.bin"] == contents("whole")["train.bin"]
    hub.files["data/train-00000-of-00003.parquet"] = parquet(TWO)
    assert documents(prepared(overwrite=True)) == TWO + TWO + THREE
    assert json.loads(contents("mine")["meta.json"])["recipe"]["commit"] == SECOND


SECOND_FILE = "data/train-00001-of-00003.parquet"
FAULTS: dict[str, tuple[Callable[[Texts], Any], dict[str, Any], str]] = {
    "unknown name": (lambda _: None, {"repository": "someone/nothing"}, "no data set someone/nothing on the hub"),
    "no name": (lambda _: None, {"repository": "texts"}, "write OWNER/NAME"),
    "a path": (lambda _: None, {"repository": "../texts"}, "write OWNER/NAME"),
    "a name that no hub has": (
        lambda _: None,
        {"repository": "someone/a--b"},
        "no data set someone/a--b on the hub: no hub has such a name",
    ),
    "unknown revision": (lambda _: None, {"revision": "v9"}, "someone/texts has no revision 'v9'"),
    "unknown split": (lambda _: None, {"split": "tset"}, "no split 'tset': did you mean 'test'"),
    "unknown configuration": (lambda _: None, {"config": "dat"}, "no configuration 'dat': did you mean 'data'"),
    "unknown column": (lambda _: None, {"column": "txet"}, "has no column 'txet': did you mean 'text'"),
    "not a text": (lambda _: None, {"column": "id"}, "column 'id' of .* holds int64, and no text"),
    "gated": (lambda hub: hub.gated.add(NAME), {}, "is gated: accept its terms"),
    "no commit": (lambda hub: setattr(hub, "commit", None), {}, "does not say which commit"),
    "no file": (lambda hub: hub.files.clear(), {}, "refs/convert/parquet"),
    "no parquet": (lambda hub: hub.files.update(dict.fromkeys(hub.files, b"PAR1" * 9)), {}, "cannot be read"),
    "no text": (lambda hub: hub.files.update({n: parquet([None]) for n in hub.files}), {}, "it has no text"),
    "too few": (lambda _: None, {"max_tokens": 3}, "its first document has more tokens than --max-tokens"),
    "share": (lambda _: None, {"val_fraction": 1.0}, "above 0 and below 1"),
    "processes": (lambda _: None, {"workers": -1}, "--workers is -1"),
    "reserved": (lambda _: None, {"name": "stories"}, "belongs to a built-in corpus"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_and_leaves_nothing(hub: Texts, fault: str) -> None:
    change, options, words = FAULTS[fault]
    change(hub)
    with fails(words) as caught:
        prepared(**options)
    assert "\n" not in str(caught.value)
    assert not Path("data").exists() or not list(Path("data").iterdir())


@pytest.mark.parametrize("fault", ["cut", "forged"])
def test_a_file_that_breaks_off_or_is_forged_is_fetched_again(hub: Texts, fault: str) -> None:
    faulty = hub.cut if fault == "cut" else hub.forged
    faulty.add(SECOND_FILE)
    with fails("(could not be fetched|is not what the hub says)") as caught:
        prepared()
    assert "what is finished is kept" in str(caught.value)
    faulty.clear()
    assert documents(prepared()) == ONE + TWO + THREE


def test_without_pyarrow_the_extra_is_named(hub: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with fails(r"--hub needs pyarrow: pip install -e '.\[hub\]'"):
        prepared()
    assert not hub.asked


def test_the_command(hub: Texts, capsys: pytest.CaptureFixture[str]) -> None:
    hub.files["data/test-00000-of-00001.parquet"] = parquet(ONE, column="story")
    given = "--hub someone/texts --name web --tokenizer tokenizer.json --split test --column story --workers 1"
    main(["prepare", *given.split(), "--revision", SECOND, "--max-tokens", "500"])
    assert "--dataset web" in capsys.readouterr().out
    assert json.loads(contents("web")["meta.json"])["recipe"]["commit"] == SECOND
    for words, message in (
        ("--hub someone/texts", "--hub needs --name NAME as well"),
        ("--text a --name x --tokenizer char --column y", "--column is for --hub: leave it out"),
        ("--hub someone/texts --name x --seed 2", "--seed is for --mix: leave it out"),
    ):
        with pytest.raises(UserError, match=message):
            main(["prepare", *words.split()])


KILLS = 30
KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
import pyarrow.parquet, huggingface_hub, huggingface_hub.hf_api, huggingface_hub.file_download, httpx2
from gpt_common.data.corpora.hub import prepare_hub

FILES = {"hub.py", "work.py", "rows.py", "writer.py", "files.py", "repository.py", "hub_files.py", "ids.py"}
count, before, at = 0, 0, (False, -1)

def watch(frame, event, argument):
    global count, before
    if os.path.basename(frame.f_code.co_filename) in FILES:
        count += 1
        if frame.f_code.co_name == "_assemble" and event == "call":
            before = count - 1
        assembling, place = at
        if count - before == place and (before > 0) == assembling:
            os.kill(os.getpid(), signal.SIGKILL)

def run(name):
    sys.setprofile(watch)
    prepare_hub("someone/texts", name, Path("data"), "tokenizer.json", workers=1, shard_characters=100,
                on_progress=lambda *_: None)
    sys.setprofile(None)

run("whole")
# Most kills come soon, so that there are many before all is done; the last ones while the dataset is put together.
choose, late = np.random.default_rng(5), KILLS // 5
places = [(False, int(place)) for place in choose.integers(1, before // 4, KILLS - late)]
places += [(True, int(place)) for place in choose.integers(1, count - before, late)]
killed, finished = 0, []
while not Path("data/again").exists():
    child = os.fork()
    if child == 0:
        count, before, at = 0, 0, places[killed] if killed < KILLS else (False, -1)
        run("again")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        killed += 1
        finished.append(len(list(Path("data/again.tmp-hub").glob("*.json"))))
    elif status:
        sys.exit(status)
print("shards that were finished at each kill:", *finished)
print("killed", killed)
"""


@pytest.mark.usefixtures("hub")
def test_killed_at_any_call_it_ends_in_the_same_bytes(hub: Texts, tmp_path: Path) -> None:
    """By SIGKILL; whatever function of ours begins or ends then."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
    }
    script = f"KILLS = {KILLS}\n{KILLED}"
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    print(ended.stdout.strip())
    assert int(ended.stdout.split()[-1]) == KILLS
    assert contents("again") == contents("whole")
    assert sorted(path.name for path in Path("data").iterdir()) == ["again", "whole"]
