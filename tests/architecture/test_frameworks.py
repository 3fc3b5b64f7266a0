"""Each twin works without the other's framework, and asking for help needs neither."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.twins import ROOT, TWINS, command

both = pytest.mark.parametrize("twin", TWINS)


@both
def test_importing_one_twin_never_loads_the_other_framework(twin: str) -> None:
    other = {"mlx_gpt": "torch", "torch_gpt": "mlx"}[twin]
    code = f"""
import sys
sys.modules["{other}"] = None
import {twin}.train, {twin}.sample
assert not any(name.partition(".")[0] == "{other}" and module for name, module in sys.modules.items())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@both
def test_training_works_with_the_other_framework_blocked(twin: str, tiny_run: list[str], tmp_path: Path) -> None:
    other = {"mlx_gpt": "torch", "torch_gpt": "mlx"}[twin]
    flags = [*tiny_run, "--max-steps", "2", "--out", str(tmp_path / "run")]
    # Not sys.modules[...] = None: tyro takes any entry there for a module that is loaded.
    block = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "{other}":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
"""
    # After the package itself: it looks for PyTorch's file, to take its BLAS, and does not import it.
    code = f"import {twin}\n{block}\nfrom {twin}.train import main\nmain({flags!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # And the block bites: the other twin cannot be imported under it.
    blocked = f"{block}\nimport {TWINS[1 - TWINS.index(twin)]}.model"
    bitten = subprocess.run([sys.executable, "-c", blocked], cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"ModuleNotFoundError: {other}" in bitten.stderr


@both
@pytest.mark.parametrize("program", ["train", "sample", "serve"])
def test_help_loads_no_framework(twin: str, program: str) -> None:
    done = command(twin, "--help", program=program, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    assert "--" in done.stdout
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "mlx", "tokenizers", "tiktoken", "matplotlib", "safetensors"}
    assert "gpt_common" in loaded  # the listing works
    # Nor what only a server needs: until the command line is read, Ctrl-C ends with a traceback.
    assert program != "serve" or not loaded & {"numpy", "asyncio", "starlette", "uvicorn"}
