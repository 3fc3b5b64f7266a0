"""What every test shares: one thread, no network, and where borrowed data lie."""

from __future__ import annotations

import os
import signal
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

# Before any test imports mlx itself: it opens the BLAS that MLX binds, so that this process computes as a command does.
import mlx_gpt  # noqa: F401, E402

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
if SHARED_DATA.is_dir():
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(SHARED_DATA / "tiktoken"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with Tiny Shakespeare and GPT-2's vocabulary, which are not part of the project."""
    if not SHARED_DATA.is_dir():
        if os.environ.get("CI") == "true" and not os.environ.get("GITHUB_ACTIONS"):
            pytest.fail(f"CI must provide {SHARED_DATA}")
        pytest.skip(f"needs Tiny Shakespeare and GPT-2's vocabulary in {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def stories_dir(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A data folder that holds the built-in corpus, made once for all workers."""
    from gpt_common.data import open_dataset

    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "data"
    open_dataset("stories", folder)
    return folder


@pytest.fixture
def tiny_run(stories_dir: Path) -> list[str]:
    """Flags of a run that takes a second."""
    from tests.twins import tiny

    return tiny(stories_dir)
