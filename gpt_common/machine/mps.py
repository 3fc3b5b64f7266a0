"""What released versions of PyTorch compute wrongly on MPS, in silence, and how this project keeps clear of it."""

from __future__ import annotations

from gpt_common.config import RunConfig
from gpt_common.errors import UserError
from gpt_common.machine.hardware import detect

LONG_SUM = 32767
"""Terms from which on a sum takes in what lies beyond its operands."""


def mask_leaks(device: str, itemsize: int) -> bool:
    """Whether PyTorch's own causal mask lets later positions through: numbers of two bytes on MPS (pytorch#195910)."""
    return device == "mps" and itemsize == 2


def check_sums(config: RunConfig, device: str, release: str) -> None:
    """Refuse a model whose long sums PyTorch before 2.14 gets wrong on M1 and M2 (pytorch#195163, pytorch#177116).

    Args:
        device: "cpu", "mps" or "cuda".
        release: PyTorch's version.

    Raises:
        UserError: it is such a model on such a machine.
    """
    if device != "mps" or tuple(int(part) for part in release.split(".")[:2]) >= (2, 14):
        return
    chip = detect().chip
    terms = max(config.model.vocab_size, config.train.batch_size * config.model.block_size)
    if chip.startswith(("Apple M1", "Apple M2")) and terms >= LONG_SUM:
        raise UserError(
            f"PyTorch {release} gets sums of {LONG_SUM} terms and more wrong on an {chip}, and this run has some of "
            f"{terms}: pip install 'torch>=2.14.1', or take --device cpu, or the MLX twin"
        )
