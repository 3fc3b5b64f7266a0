"""llama.cpp as a judge that shares no line with us or with gguf-py: npm's node-llama-cpp, prebuilt, at one version.

    python -m tests.convert.gguf.llama_cpp      # installs it into a cache folder, once

Nothing of it is run by npm (`--ignore-scripts`), and of its binaries only this system's for a CPU is taken.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

VERSION = "3.21.1"
SYSTEMS = {("Linux", "x86_64"): "linux-x64", ("Linux", "aarch64"): "linux-arm64"}
"""Where it computes on a CPU as prebuilt."""
READER = Path(__file__).with_name("reader.mjs")


def folder() -> Path:
    """Where it is installed: LLAMA_CPP_FOLDER, or a folder of the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LLAMA_CPP_FOLDER") or Path(cache) / "mlx-torch-gpt" / f"node-llama-cpp-{VERSION}")


def missing() -> str | None:
    """Why it cannot be asked; None where it can."""
    system = (platform.system(), platform.machine())
    if system not in SYSTEMS:
        return f"no prebuilt llama.cpp for the CPU of {' '.join(system)}"
    if shutil.which("node") is None:
        return "no llama.cpp to ask: node is not here"
    if not (folder() / "node_modules" / "node-llama-cpp").is_dir():
        return "no llama.cpp to ask: python -m tests.convert.gguf.llama_cpp installs it, and needs npm and a network"
    return None


def install() -> None:
    """Fetch it by npm, if it is not here."""
    system = SYSTEMS.get((platform.system(), platform.machine()))
    if missing() is None or system is None or shutil.which("npm") is None:
        print(missing() or f"llama.cpp is here: {folder()}")
        return
    started, place = time.monotonic(), folder()
    place.mkdir(parents=True, exist_ok=True)
    (place / "package.json").write_text('{"name": "reader", "private": true}\n')
    packages = [f"node-llama-cpp@{VERSION}", f"@node-llama-cpp/{system}@{VERSION}"]
    flags = ["--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund", "--save-exact", "--fetch-retries=1"]
    done = subprocess.run(["npm", "install", *flags, *packages], cwd=place, stdout=subprocess.DEVNULL, check=False)
    took = f"{time.monotonic() - started:.0f} s"
    print(f"llama.cpp installed in {took}: {place}" if missing() is None else f"npm failed ({done.returncode})")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to ask of a model."""

    model: str
    texts: Sequence[str] = ()
    prompts: Sequence[Sequence[int]] = ()
    count: int = 64
    context: int = 128
    vocabulary: int = 0
    """Of so many tokens it is asked whether they end a text."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What llama.cpp said."""

    ids: list[list[int]]
    """Of every text, in which names of special tokens are text."""
    texts: list[str]
    """Of these ids."""
    ends: list[int]
    continuations: list[list[int]]
    """The likeliest tokens after each prompt, with a cache in float32."""


def ask(jobs: Sequence[Job]) -> list[Answer]:
    """One process for all."""
    with tempfile.TemporaryDirectory() as place:
        asked, told = Path(place) / "jobs.json", Path(place) / "answers.json"
        asked.write_text(json.dumps([asdict(job) for job in jobs]), encoding="utf-8")
        command = ["node", str(READER), str(folder()), str(asked), str(told)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0, done.stderr[-2000:]
        return [Answer(**answer) for answer in json.loads(told.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    install()
    sys.exit(0)
