"""The backends of the ladder: which are present here, and a twin on one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from convert.parity.twins.mlx_twin import MlxTwin
from convert.parity.twins.torch_twin import TorchTwin
from convert.parity.twins.twin import ComputeDtype, Twin
from gpt_common.adapting.quantisation import NOT_QUANTISED, Grids
from gpt_common.config import RunConfig
from gpt_common.errors import UserError, nearest
from gpt_common.machine.backends import BACKENDS, Backend


def open_twin(backend: Backend, config: RunConfig, dtype: ComputeDtype, grids: Grids = NOT_QUANTISED) -> Twin:
    """A twin with zero weights on a backend that is present."""
    return (MlxTwin if backend.framework == "mlx" else TorchTwin)(config, backend, dtype, grids)


def absent() -> dict[str, str]:
    """The backends that cannot run here, and why."""
    reasons: dict[str, str] = {}
    try:
        import mlx_gpt.device  # noqa: F401
    except ImportError as error:
        reasons |= dict.fromkeys(_names("mlx"), f"MLX cannot be imported ({error})")
    try:
        import torch

        if not torch.backends.mps.is_available():
            reasons |= dict.fromkeys(_names("torch", "mps"), "PyTorch finds no MPS")
        if not torch.cuda.is_available():
            reasons |= dict.fromkeys(_names("torch", "cuda"), "PyTorch finds no CUDA")
    except ImportError as error:
        reasons |= dict.fromkeys(_names("torch"), f"PyTorch cannot be imported ({error})")
    return reasons


def _names(framework: str, device: str | None = None) -> list[str]:
    return [b.name for b in BACKENDS.values() if b.framework == framework and device in (None, b.device)]


def choose(names: Sequence[str], least: int = 2) -> tuple[list[Backend], dict[str, str]]:
    """The backends to compare, and those left out with the reason.

    No names: every eager one that is present; where MLX has no GPU, `mlx` is the same as `mlx-cpu` and left out.

    Args:
        least: fewer are refused; a comparison needs two.

    Raises:
        UserError: an unknown name, a backend that is not present, or none to compare.
    """
    missing = absent()
    for name in names:
        if name not in BACKENDS:
            raise UserError(f"no backend '{name}': {nearest(name, BACKENDS)}")
        if name in missing:
            raise UserError(f"backend {name} is not present here: {missing[name]}")
    present = [_on_its_device(backend) for backend in BACKENDS.values() if backend.name not in missing]
    chosen = [next(b for b in present if b.name == name) for name in names]
    if not names:
        chosen = [b for b in present if (b.device == "gpu" if b.name == "mlx" else not b.compiled)]
    if len(chosen) < least:
        raise UserError(f"parity needs two backends, found {', '.join(b.name for b in chosen) or 'none'}: see --help")
    return chosen, {} if names else missing


def _on_its_device(backend: Backend) -> Backend:
    """`mlx` on the best device that MLX has: its GPU, compiled as the trainer does there, or its CPU."""
    if backend.device != "auto":
        return backend
    from mlx_gpt.device import has_gpu

    device: Literal["gpu", "cpu"] = "gpu" if has_gpu() else "cpu"
    return replace(backend, device=device, compiled=device == "gpu")
