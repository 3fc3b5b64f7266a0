"""In a notebook: importing changes nothing in the process, and four names do what the commands do."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from gpt_common.errors import UserError
from gpt_common.training.notebook import flags
from tests.twins import ROOT, TWINS

both = pytest.mark.parametrize("twin", TWINS)

STATE = """
import json, os, sys
def libraries():
    try:
        return sorted({line.split()[-1] for line in open("/proc/self/maps") if ".so" in line})
    except OSError:
        return []
def state():
    found = {"environ": dict(os.environ), "modules": sorted({"torch", "mlx", "mlx.core"} & set(sys.modules))}
    if "torch" in sys.modules:
        found |= {"threads": [sys.modules["torch"].get_num_threads(), sys.modules["torch"].get_num_interop_threads()]}
    return found
"""


def in_a_new_process(code: str, **environment: str) -> Any:
    """What a program prints as JSON."""
    inherited = {"PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
    done = subprocess.run(
        [sys.executable, "-c", STATE + code],
        cwd=ROOT,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@both
def test_an_import_changes_nothing_and_loads_no_framework(twin: str) -> None:
    before, after, opened = in_a_new_process(
        f"before, had = state(), libraries()\nimport {twin}\n"
        "print(json.dumps([before, state(), [path for path in libraries() if path not in had]]))"
    )
    assert before == after
    assert after["modules"] == []
    assert not [path for path in opened if any(name in path for name in ("torch", "mlx", "mkl", "blas", "gomp"))]


def test_both_twins_in_one_notebook_leave_the_threads_alone() -> None:
    """Also when they compute: 3 threads were asked for, and 3 there are."""
    before, after, grown = in_a_new_process(
        "import numpy as np, torch\ntorch.set_num_threads(3)\nbefore = state()\n"
        "from mlx_gpt import GPT as Mlx\nfrom torch_gpt import GPT as Torch\n"
        "from gpt_common.config import ModelConfig\nimport mlx.core as mx\n"
        "shape = ModelConfig(vocab_size=9, block_size=4, n_layer=1, n_head=1, n_embd=8)\n"
        "models = [Mlx(shape), Torch(shape)]\nfor model in models: model.initialise(0)\n"
        "grown = [list(models[0](mx.array([[1, 2]])).shape), list(models[1](torch.tensor([[1, 2]])).shape)]\n"
        "print(json.dumps([before, state(), grown]))"
    )
    after["environ"].pop("TORCHINDUCTOR_CACHE_DIR", None)  # PyTorch's own, where torch.compile is mentioned first
    assert before["environ"] == after["environ"]
    assert before["threads"] == after["threads"]
    assert after["threads"][0] == 3
    assert grown == [[1, 2, 9], [1, 2, 9]]


@both
def test_a_name_that_is_none_of_the_four_is_refused(twin: str) -> None:
    module = import_module(twin)
    assert set(module.__all__) == {"GPT", "generate", "load", "train"}
    with pytest.raises(AttributeError, match="has no attribute 'generat'"):
        module.generat  # noqa: B018


@both
def test_the_five_lines(twin: str, stories_dir: Path, tmp_path: Path) -> None:
    """Train with fields for flags, load what came of it, and have it go on with a text or with token ids."""
    handful = import_module(twin)
    fields: dict[str, Any] = {
        "n_layer": 1,
        "n_embd": 16,
        "n_head": 2,
        "block_size": 16,
        "batch_size": 2,
        "eval_batches": 1,
    }
    fields |= {"max_steps": 3, "sample_tokens": 0, "device": "cpu", "bias": True, "prompts": ["Once", "One day"]}
    folder = handful.train(preset="stories-cpu", data_dir=stories_dir, out=tmp_path / "run", **fields)
    assert folder == tmp_path / "run"

    model = handful.load(folder, device="cpu")
    assert isinstance(model, handful.GPT)
    assert (model.config.n_layer, model.config.bias) == (1, True)
    text = handful.generate(model, "Once", max_new_tokens=20, temperature=0)
    assert text.startswith("Once")
    ids = model.tokenizer.encode("Once")
    new = handful.generate(model, ids, max_new_tokens=20, temperature=0)
    assert new[: len(ids)] == ids
    assert model.tokenizer.decode(new).startswith(text)
    assert handful.generate(model, "Once", seed=1) == handful.generate(model, "Once", seed=1)
    model.tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer"):
        handful.generate(model, "Once")


@both
def test_what_a_command_would_refuse_is_an_error_of_one_line(twin: str, tmp_path: Path) -> None:
    handful = import_module(twin)
    with pytest.raises(UserError, match="no preset 'storys'"):
        handful.train(preset="storys")
    with pytest.raises(UserError, match="unknown argument '--max-step'"):
        handful.train(preset="stories-cpu", max_step=3)
    with pytest.raises(UserError):
        handful.load(tmp_path)


@both
def test_the_command_and_the_function_are_one(twin: str, stories_dir: Path, tmp_path: Path) -> None:
    """The same flags, the same weights."""
    fields: dict[str, Any] = {"n_layer": 1, "n_embd": 16, "n_head": 2, "block_size": 16, "device": "cpu"}
    fields |= {"data_dir": stories_dir, "max_steps": 2, "eval_batches": 1, "sample_tokens": 0, "bias": True}
    words = ["--preset", "stories-cpu", *flags(**fields)]
    assert words[-1] == "--bias"
    import_module(f"{twin}.train").main([*words, "--out", str(tmp_path / "command")])
    import_module(twin).train(preset="stories-cpu", out=tmp_path / "function", **fields)
    one, other = (tmp_path / name / "checkpoints/step-000002/model.safetensors" for name in ("command", "function"))
    assert one.read_bytes() == other.read_bytes()
