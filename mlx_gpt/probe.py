"""What the health gates of gpt_common/training/health/gates.py ask of a model."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from gpt_common.data.batches import NumpyBatch, Tokens
from mlx_gpt.device import tensor, to_device
from mlx_gpt.model import GPT, loss


class TrainingProbe:
    """A model seen from outside: losses, logits and gradients as numpy, without dropout."""

    def __init__(self, model: GPT) -> None:
        self.model = model
        self.vocab_size = model.config.vocab_size

    def loss(self, batch: NumpyBatch) -> float:
        """Mean cross entropy in nats per token."""
        return float(loss(self.model, to_device(batch, self.model.device)))

    def logits(self, tokens: Tokens) -> np.ndarray:
        """(B, T) ids -> (B, T, V) float32."""
        return np.array(self.model(tensor(tokens, self.model.device)).astype(mx.float32))

    def gradient_norms(self, batch: NumpyBatch) -> dict[str, float]:
        """Norm of each parameter's gradient by name."""
        _, gradients = nn.value_and_grad(self.model, loss)(self.model, to_device(batch, self.model.device))
        norms = {name: mx.linalg.norm(gradient) for name, gradient in dict(tree_flatten(gradients)).items()}
        mx.eval(norms)
        return {name: float(norm) for name, norm in norms.items()}

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
            yield name, np.array(parameter)
