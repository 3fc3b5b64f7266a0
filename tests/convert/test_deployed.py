"""What docs/deploy.md shows: servers of other projects on a folder that was exported, asked over HTTP."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.convert.conftest import done
from tests.convert.formats.continuation import greedy
from tests.convert.gguf.models import TOKENIZERS, model_of, write_run
from tests.twins import ROOT

pytestmark = [pytest.mark.parity, pytest.mark.timeout(240)]
PROMPT = "The cat sat on"
STEPS = 24


@contextmanager
def served(folder: Path, *command: str) -> Iterator[str]:
    """A server in a process of its own, once it answers; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    words = [sys.executable, "-m", *command, "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(f"{address}/v1/models", timeout=10).close()
                break
            except urllib.error.HTTPError:  # it answers
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                time.sleep(0.2)
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def completion(address: str, model: str) -> str:
    """The likeliest text behind PROMPT."""
    body: dict[str, Any] = {"model": model, "prompt": PROMPT, "max_tokens": STEPS, "temperature": 0}
    request = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=200) as answer:
        text: str = json.load(answer)["choices"][0]["text"]
    return text


SERVERS = {
    "mlx-lm": (("mlx_lm", "server", "--model", "exported"), "default_model", ("mlx_lm",)),
    "transformers": (
        ("transformers.cli.transformers", "serve", "exported"), "exported", ("fastapi", "uvicorn", "openai")
    ),
}  # fmt: skip
"""Command, the name of the model there, and what must be here."""


@pytest.mark.parametrize("target", list(SERVERS))
def test_the_text_is_the_twins(tmp_path: Path, target: str) -> None:
    command, name, needed = SERVERS[target]
    if missing := [package for package in needed if importlib.util.find_spec(package) is None]:
        pytest.skip(f"{target}'s server needs {', '.join(missing)}")
    tokenizer = TOKENIZERS["bpe"]()
    run = write_run(tmp_path / "run", tokenizer, model_of("llama", tokenizer), 6)
    done("export", run, "--to", target, "-o", tmp_path / "exported")
    expected = tokenizer.decode(greedy("torch", run, tokenizer.encode(PROMPT), STEPS))
    with served(tmp_path, *command) as address:
        assert completion(address, name) == expected
