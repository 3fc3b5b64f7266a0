"""What the health gates of gpt_common/training/health/gates.py ask of a model."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import torch

from gpt_common.data.batches import NumpyBatch, Tokens
from torch_gpt.device import tensor, to_device
from torch_gpt.model import GPT, loss


class TrainingProbe:
    """A model seen from outside: losses, logits and gradients as numpy, without dropout."""

    def __init__(self, model: GPT) -> None:
        self.model = model
        self.vocab_size = model.config.vocab_size

    @torch.no_grad()
    def loss(self, batch: NumpyBatch) -> float:
        """Mean cross entropy in nats per token."""
        return float(loss(self.model, to_device(batch, self.model.device)))

    @torch.no_grad()
    def logits(self, tokens: Tokens) -> np.ndarray:
        """(B, T) ids -> (B, T, V) float32."""
        return np.asarray(self.model(tensor(tokens, self.model.device)).float().cpu().numpy())

    def gradient_norms(self, batch: NumpyBatch) -> dict[str, float]:
        """Norm of each parameter's gradient by name."""
        loss(self.model, to_device(batch, self.model.device)).backward()
        norms = {name: float(p.grad.norm()) for name, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad(set_to_none=True)
        return norms

    def parameter_names(self) -> list[str]:
        """Names of all parameters that training should move."""
        return [name for name, _ in self.model.named_parameters()]

    def checksums(self) -> dict[str, int]:
        """CRC-32 of every parameter's bytes by name: tells whether an update moved it."""
        return {name: zlib.crc32(value.tobytes()) for name, value in self._parameters()}

    def find_non_finite(self) -> str | None:
        """Name of the first parameter with NaN or infinity, if any."""
        return next((name for name, value in self._parameters() if not np.isfinite(value).all()), None)

    def _parameters(self) -> Iterator[tuple[str, np.ndarray]]:
        for name, parameter in self.model.named_parameters():
            yield name, parameter.detach().cpu().numpy()
