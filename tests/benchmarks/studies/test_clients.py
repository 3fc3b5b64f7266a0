"""The study of many clients: it notes what is said otherwise than it should be, and what is not said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.studies.clients import text_of
from tests.gpt_common.serving.served import make_model
from tests.twins import ROOT


def test_what_an_answer_says() -> None:
    def choice(text: str) -> str:
        return json.dumps({"choices": [{"text": text}]})

    assert text_of(choice("abc").encode(), False) == "abc"
    stream = f"data: {choice('ab')}\n\ndata: {choice('c')}\n\ndata: [DONE]\n\n".encode()
    assert text_of(stream, True) == "abc"
    for stream_or_not in (True, False):
        assert text_of(b'{"error": {"message": "full"}}', stream_or_not) != "abc"
    assert text_of(b'data: {"error": {"message": "late"}}\n\n', True) is None


@pytest.mark.slow
@pytest.mark.parametrize("twin", ["torch", "mlx"])
def test_two_hundred_clients_for_a_minute(twin: str, tmp_path: Path) -> None:
    """No error, every answer what `generate` says alone, memory that stays (it is in the output; see -rP)."""
    run = make_model(tmp_path / "run")
    words = ["benchmarks/studies/clients.py", str(run), "--twin", twin]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wrong or refused      0" in done.stdout
