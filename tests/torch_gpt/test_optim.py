"""How torch's own optimiser is built."""

from __future__ import annotations

from unittest.mock import PropertyMock, patch

import pytest
import torch

from gpt_common.config import load_preset
from torch_gpt.model import GPT
from torch_gpt.optim import build_optimizer


@pytest.mark.parametrize(("device", "fused"), [("cpu", True), ("mps", True), ("cuda", False)])
def test_the_fused_kernel_of_cuda_is_not_taken(device: str, fused: bool) -> None:
    """It takes 1 - beta2 in float32, 1.3e-5 off for 0.999: the ladder's L6a told it on an H100."""
    config = load_preset("stories-cpu").with_vocabulary(8)
    with patch.object(GPT, "device", PropertyMock(return_value=torch.device(device))):
        optimizer = build_optimizer(GPT(config.model), config.optim)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["fused"] is fused
