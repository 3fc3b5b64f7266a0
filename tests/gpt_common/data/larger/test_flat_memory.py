"""What preparing holds in memory does not grow with the corpus: a hundred times the text takes hardly more."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="extra hub")

# isort: split
import pyarrow
import pyarrow.parquet

from gpt_common.data.corpora import mixing
from gpt_common.data.corpora.mixing import prepare_mixture
from gpt_common.data.tokenizers import saved, train_bpe_on
from tests.gpt_common.data.corpora import silent
from tests.gpt_common.data.larger.hub import Texts
from tests.gpt_common.data.larger.test_mixing import corpus, documents
from tests.gpt_common.data.larger.test_shards import write_shard
from tests.hub_server import serving
from tests.twins import ROOT

SMALL = 2_000_000
"""Bytes of text: more than a piece that is encoded at once, and every word that there is."""
TIMES = 100
MORE = 1.2
"""Peak of the large corpus over that of the small one, at most."""
STORY = "Once there were {} foxes, and one of them said: I'LL go to the {} houses.\n"
MAIN = """
import sys, threading, time
from pathlib import Path
from gpt_common.data.__main__ import main

def held():
    # What is mapped from a file belongs to the system, which takes it back when it likes: only the rest counts.
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0])

peak = 0

def watch():
    global peak
    while True:
        peak = max(peak, held())
        time.sleep(0.005)

threading.Thread(target=watch, daemon=True).start()
main(sys.argv[1:])
print("peak", max(peak, held()) >> 10)
"""


def stories(size: int) -> Iterator[str]:
    """Documents of several kilobytes, `size` bytes or a little more together."""
    done, number = 0, 0
    while done < size:
        text = "".join(STORY.format((number + i) % 10_000, 7 * i) for i in range(40))
        yield text
        done, number = done + len(text), number + 40


def of_text(folder: Path, size: int) -> list[str]:
    with (folder / "text.txt").open("w") as file:
        for text in stories(size):
            file.write(text + "<|endoftext|>\n")
    return ["--text", "text.txt"]


def of_a_hub(folder: Path, size: int) -> list[str]:  # noqa: ARG001 (as the others)
    return ["--hub", "someone/texts"]


def of_shards(folder: Path, size: int) -> list[str]:
    for name in ("train", "val"):
        ids = np.arange(size * 6 // 10 if name == "train" else 1000, dtype=np.int32) % 250  # more than are read at once
        write_shard(folder / f"web_{name}_0.bin", ids.astype(np.uint16))
    return ["--shards", "web_*.bin"]


def peak(folder: Path, size: int, source: Callable[[Path, int], list[str]], environment: dict[str, str]) -> int:
    """MiB that a preparing process holds at most."""
    folder.mkdir()
    train_bpe_on(["Once there were 0 1 2 3 4 5 6 7 8 9 foxes"] * 9, 300).save(folder / "tokenizer.json")
    given = ["prepare", *source(folder, size), "--name", "large", "--tokenizer", "tokenizer.json"]
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *given, *([] if "--shards" in given else ["--workers", "1"])],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.rpartition("peak ")[2])


def parquet(size: int) -> bytes:
    buffer, schema, rows = io.BytesIO(), pyarrow.schema([("text", pyarrow.string())]), stories(size)
    with pyarrow.parquet.ParquetWriter(buffer, schema) as writer:
        while group := list(islice(rows, 1000)):
            writer.write_table(pyarrow.table({"text": group}))
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is held")
@pytest.mark.parametrize("source", [of_text, of_a_hub, of_shards], ids=lambda source: source.__name__)
def test_a_hundred_times_the_text_takes_hardly_more_memory(
    source: Callable[[Path, int], list[str]], tmp_path: Path
) -> None:
    peaks = []
    for name, size in (("small", SMALL), ("large", TIMES * SMALL)):
        with serving(Texts()) as hub:
            if source is of_a_hub:
                hub.files = {"train.parquet": parquet(size)}
            environment = {
                "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home" / name), "HF_HUB_OFFLINE": "0",
                "NO_PROXY": "127.0.0.1",
            }  # fmt: skip
            peaks.append(peak(tmp_path / name, size, source, environment))
    print(f"{source.__name__}: {peaks[0]} and {peaks[1]} MiB")
    assert peaks[1] <= MORE * peaks[0]


def test_a_mixture_of_a_hundred_times_as_much_takes_hardly_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what Python and numpy ask for: what is mapped from a file belongs to the system, which takes it back."""
    monkeypatch.setattr(mixing, "MOST_UNITS", 3000)
    monkeypatch.setattr(mixing, "CHUNK_TOKENS", 100_000)
    monkeypatch.setattr(saved, "LARGEST", 10_000)  # so much is asked for where a tokenizer is read
    peaks = []
    for number, times in enumerate((1, 1, TIMES)):  # the first time imports something
        for i, name in enumerate(("low", "high")):
            ids = np.tile(documents(i, 20_000, (13 * i, 13 * i + 13), longest=80), 10 * times)
            corpus(tmp_path / str(number), name, ids)
        tracemalloc.start()
        prepare_mixture(["low:0.7", "high:0.3"], "mixed", tmp_path / str(number), on_progress=silent)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    print(f"{peaks[1] >> 10} and {peaks[2] >> 10} KiB")
    assert peaks[2] <= 1.5 * peaks[1], "a run of documents is a little longer than what is written at once"
