"""What every test shares: one thread, no network, and data that are made once."""

from __future__ import annotations

import functools
import os
import signal
import sys
from pathlib import Path

import pytest

# Before any framework is imported: with a busy neighbour, multi-threaded BLAS spins, and compiled
# PyTorch on two threads was seen to differ from run to run.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ["MLX_ENABLE_TF32"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# A shell without job control starts what it puts in the background deaf to Ctrl-C, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before any test imports mlx: it binds the BLAS that is open then, and this process shall compute as a command does.
from gpt_common.machine.blas import load_fast_blas  # noqa: E402

load_fast_blas()

if sys.platform == "darwin":
    import torch

    # A virtual Mac may have MPS and no memory for it; then it is as good as absent, and nothing here is to try it.
    try:
        torch.ones(1, device="mps")
    except RuntimeError:
        torch.backends.mps.is_available = functools.cache(lambda: False)


@pytest.fixture(scope="session")
def gpt2_vocabulary() -> None:
    """tiktoken has an encoding named gpt2: OpenAI's if it is in the cache, else one of the same shape."""
    from tests.borrowed import provide_gpt2_vocabulary

    provide_gpt2_vocabulary()


@pytest.fixture(scope="session")
def stories_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that holds the built-in corpus, made once for all workers."""
    from gpt_common.data import open_dataset

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "data"
    open_dataset("stories", folder)
    return folder


@pytest.fixture
def tiny_run(stories_dir: Path) -> list[str]:
    """Flags of a run that takes a second."""
    from tests.twins import tiny

    return tiny(stories_dir)


@pytest.fixture
def without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own products, as on a processor without oneDNN's (torch_gpt/kernels.py): its counters see no others."""
    from torch_gpt import kernels

    monkeypatch.setattr(kernels, "ONEDNN", False)
