"""PyTorch's commands from a process that has loaded PyTorch already: of 8 seconds of a small run 5 are imports."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path


def load() -> None:
    """Load what a small run of PyTorch needs, and nothing of this project: that is what is planted into.

    With one thread: what a pool of threads does after a fork nobody knows.
    """
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    import safetensors.torch  # noqa: F401
    import torch
    import torch._dynamo

    torch.set_num_threads(1)


def run_module(root: Path, name: str, arguments: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """`python -m NAME ARGUMENTS` in `root`, in a child of this process; ended after so many seconds."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if child == 0:
            os._exit(_as_command(root, name, arguments, out.fileno(), err.fileno()))
        ends = time.monotonic() + seconds
        while (status := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if time.monotonic() > ends:
                os.kill(child, signal.SIGKILL)
                status = os.waitpid(child, 0)
                break
            time.sleep(0.02)
        out.seek(0)
        err.seek(0)
        code = os.waitstatus_to_exitcode(status[1])
        return subprocess.CompletedProcess([name, *arguments], code, out.read(), err.read())


def _as_command(root: Path, name: str, arguments: Sequence[str], out: int, err: int) -> int:
    """Be that command; returns its exit code."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.chdir(root)
    for loaded in [key for key in sys.modules if key.split(".")[0] in ("tests", "gpt_common", "torch_gpt")]:
        del sys.modules[loaded]
    sys.path[:] = [str(root), *(path for path in sys.path if (path and "site-packages" in path) or "python3" in path)]
    sys.argv = [name, *arguments]
    code = 0
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code
