"""A fast BLAS for MLX on Linux.

MLX's Linux CPU wheel links Netlib's reference BLAS (2 to 5 GFLOP/s). A library that is opened with RTLD_GLOBAL before
mlx is imported wins the symbol look-up, and matrix products run 10 to 40 times faster. macOS has Accelerate and needs
none of this.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_opened: str | None = None
VARIABLE = "MLX_GPT_BLAS"


def wait_passively() -> None:
    """Let threads that wait for one another sleep, unless OMP_WAIT_POLICY says otherwise; before a framework is loaded.

    They would spin, and with a busy neighbour on two cores a step of a small model then takes three times as long and
    more; docs/results.md has the figures.
    """
    if sys.platform == "linux":
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def load_fast_blas() -> str | None:
    """Open the first fast BLAS there is for all libraries that follow; returns its path, or None.

    The environment variable MLX_GPT_BLAS names a library to use, or turns this off with `off`. A library that is
    absent or cannot be opened is passed over. torch is never imported for it: only its file is opened.
    """
    global _opened
    if sys.platform != "linux":
        return None
    wish = os.environ.get(VARIABLE, "")
    if wish == "off":
        return None
    if "mlx.core" in sys.modules:
        # Too late: its symbols are bound.
        return None
    # Between two products MLX works on one thread, and the other ones of the BLAS would spin all the while.
    wait_passively()
    # The products of a small model are too small to share: waking a second thread for each took 145 ms a step instead
    # of 85 (width 64), and saves a sixth at width 768. docs/results.md has the figures.
    if "OMP_NUM_THREADS" not in os.environ:
        for variable in ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ.setdefault(variable, "1")
    for path in [wish] if wish else _candidates():
        try:
            library = ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
            # PyTorch's MKL has only this one; the reference BLAS inside MLX's wheel calls it from its cblas_sgemm.
            _ = library.sgemm_
        except (OSError, AttributeError):
            continue
        _opened = path
        return path
    return None


def opened_blas() -> str | None:
    """Path of the library that `load_fast_blas` opened in this process, if any."""
    return _opened


def mkl_holds_back(cpuinfo: str | None = None) -> bool:
    """Whether MKL leaves half of this processor's vector units idle: one with AVX-512 that Intel did not make.

    Args:
        cpuinfo: text of Linux's /proc/cpuinfo; read if None.
    """
    if cpuinfo is None:
        path = Path("/proc/cpuinfo")
        cpuinfo = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    vendor = re.search(r"^vendor_id\s*: *(\S+)", cpuinfo, re.MULTILINE)
    flags = re.search(r"^flags\s*: *(.*)", cpuinfo, re.MULTILINE)
    others = vendor is not None and vendor[1] != "GenuineIntel"
    return others and flags is not None and "avx512f" in flags[1].split()


def _candidates() -> Iterator[str]:
    """Libraries by preference: MKL from the package index, the MKL inside PyTorch, the system's OpenBLAS."""
    mkl = Path(sys.prefix) / "lib" / "libmkl_rt.so.2"
    if mkl.exists():
        yield str(mkl)
    torch = importlib.util.find_spec("torch")
    if torch is not None and torch.origin is not None:
        yield str(Path(torch.origin).parent / "lib" / "libtorch_cpu.so")
    openblas = ctypes.util.find_library("openblas")
    if openblas is not None:
        yield openblas
