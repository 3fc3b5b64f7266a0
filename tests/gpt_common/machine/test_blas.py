"""A fast BLAS is found without importing PyTorch, named, turned off by a variable, and harmless where absent."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.twins import ROOT

LOAD = "from gpt_common.machine.blas import load_fast_blas"
linux = pytest.mark.skipif(sys.platform != "linux", reason="macOS has Accelerate")


def loaded(code: str = "", **environment: str) -> str:
    """What a new process prints after `load_fast_blas`."""
    program = f"import os, sys\n{code}\n{LOAD}\nprint(load_fast_blas(), os.environ.get('OMP_WAIT_POLICY'))"
    program += "\nassert 'torch' not in sys.modules\nimport mlx.core as mx\nmx.eval(mx.ones((8, 8)) @ mx.ones((8, 8)))"
    inherited = {name: value for name, value in os.environ.items() if name not in ("MLX_GPT_BLAS", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@linux
def test_one_is_found_and_its_threads_do_not_spin() -> None:
    path, policy = loaded().split()
    assert path.endswith(".so") or ".so." in path
    assert policy == "PASSIVE"


@linux
def test_the_variable_turns_it_off() -> None:
    assert loaded(MLX_GPT_BLAS="off").split() == ["None", "None"]


@linux
def test_what_the_user_set_stays() -> None:
    assert loaded(OMP_WAIT_POLICY="ACTIVE").split()[1] == "ACTIVE"


@linux
@pytest.mark.parametrize("path", ["/no/such/library.so", __file__])
def test_a_library_that_cannot_be_opened_is_passed_over(path: str) -> None:
    assert loaded(MLX_GPT_BLAS=path).split()[0] == "None"


def test_too_late_after_mlx_itself() -> None:
    assert loaded("import mlx.core").split()[0] == "None"


@pytest.mark.parametrize(("given", "found"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_of_the_torch_trainer_sleep_while_they_wait_unless_told_otherwise(
    given: dict[str, str], found: str
) -> None:
    """A command sets it before PyTorch is loaded, and a person's own setting counts."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
    program = (
        "import os, sys, runpy\nsys.argv = ['train', '--dataset', 'no-such']\n"
        "try:\n    runpy.run_module('torch_gpt.train', run_name='__main__', alter_sys=True)\n"
        "except SystemExit:\n    print(os.environ['OMP_WAIT_POLICY'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    if sys.platform == "linux":
        assert done.stdout.split()[-1] == found
