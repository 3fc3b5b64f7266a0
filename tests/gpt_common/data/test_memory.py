"""Memory of `prepare` on a text much larger than what it may hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpt_common.data.test_cutting import made
from tests.twins import ROOT

MEGABYTES, MOST = 200, 1000
MAIN = """
import resource, sys
from gpt_common.data.__main__ import main
main(sys.argv[1:])
peaks = [resource.getrusage(who).ru_maxrss >> (20 if sys.platform == "darwin" else 10)
         for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print("peaks", *peaks)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_megabytes_take_less_than_one_gigabyte(tmp_path: Path) -> None:
    """With the splitting of SmolLM: digits one by one, then GPT-2's rule."""
    made("smollm").save(tmp_path / "tokenizer.json")
    words = "".join(f"Once there were {number} foxes, and one of them said: I'LL go.\n" for number in range(10_000))
    with (tmp_path / "text.txt").open("w") as file:
        for _ in range(-(-MEGABYTES * 10**6 // len(words))):
            file.write(words)
    given = ["prepare", "--text", "text.txt", "--name", "large", "--tokenizer", "tokenizer.json"]
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *given],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    peaks = [int(peak) for peak in done.stdout.rpartition("peaks ")[2].split()]
    print("MiB held by the process, and by a worker at most:", peaks)
    assert max(peaks) < MOST
