"""Running `python -m convert` inside the test's process, and seeing everything it did."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpt_common.errors import run_main


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a command."""

    code: int
    stdout: str
    stderr: str


def run_convert(*arguments: str | Path) -> Outcome:
    """Run a `convert` command as its `__main__` does; a traceback would be an exception here."""
    from convert.__main__ import main

    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr), pytest.raises(SystemExit) as end:
        run_main(main, [str(argument) for argument in arguments])
    return Outcome(int(end.value.code or 0), stdout.getvalue(), stderr.getvalue())


def done(*arguments: str | Path) -> str:
    """Run a command that must succeed; returns what it said."""
    outcome = run_convert(*arguments)
    assert outcome.code == 0, outcome.stderr
    return outcome.stdout


def refused(*arguments: str | Path) -> str:
    """Run a command that must be refused; returns its error."""
    outcome = run_convert(*arguments)
    assert outcome.code == 2, (outcome.stdout, outcome.stderr)
    assert outcome.stderr.startswith("error: ")
    return outcome.stderr


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """nanoGPT's ckpt.pt of `sources.MODEL`, with numbers that can be compared, and its characters beside it."""
    import torch

    from tests.convert.sources import CHARACTERS, MODEL, nanogpt_entries

    entries, generator = nanogpt_entries(MODEL), torch.Generator().manual_seed(5)
    weights = {n: torch.randn(t.shape, generator=generator) * 0.2 for n, t in entries["model"].items()}
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    source = tmp_path / "out" / "ckpt.pt"
    source.parent.mkdir()
    torch.save({**entries, "model": weights}, source)
    meta = {"itos": dict(enumerate(CHARACTERS)), "stoi": {c: i for i, c in enumerate(CHARACTERS)}}
    (source.parent / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(CHARACTERS), **meta}))
    return source


@pytest.fixture
def converted(tmp_path: Path) -> Callable[..., Path]:
    """`converted("torch2mlx", source, *flags)` converts into a new place and returns it; it must succeed in silence."""
    made = 0

    def convert(command: str, source: Path, *flags: str) -> Path:
        nonlocal made
        made += 1
        target = tmp_path / f"converted-{made}"
        outcome = run_convert(command, source, "-o", target, *flags)
        assert outcome.code == 0, outcome.stderr
        return target

    return convert
