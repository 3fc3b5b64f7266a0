"""Muon in float64 numpy, with AdamW for the rest: the oracle of L6a where the optimiser is Muon."""

from __future__ import annotations

import math

import numpy as np

from convert.parity.compare import Array, Arrays
from convert.parity.rungs.exact_adamw import ExactAdamW, as_float32
from gpt_common.network.parameters import is_block_matrix

COEFFICIENTS = tuple(as_float32(value) for value in (3.4445, -4.7750, 2.0315))
"""Of the quintic iteration (Jordan et al. 2024, "Muon"), as both twins have them."""
STEPS = 5


class ExactMuon(ExactAdamW):
    """Muon (Jordan et al. 2024) for the matrices of the blocks, experts one by one; its constants are float32's too."""

    def set_weights(self, weights: Arrays) -> None:
        """Begin with these weights, zero moments and zero momenta."""
        super().set_weights(weights)
        self._momentum = {
            name: np.zeros(value.shape) for name, value in weights.items() if is_block_matrix(name, value.ndim)
        }

    def direction(self, name: str, g: Array, n: int) -> Array:
        """Nesterov's momentum made orthogonal, of the size that AdamW's update would have."""
        if name not in self._momentum:
            return super().direction(name, g, n)
        take = as_float32(1 - self.config.muon_momentum)
        m = self._momentum[name] = self._momentum[name] + take * (g - self._momentum[name])
        return 0.2 * math.sqrt(max(g.shape[-2:])) * orthogonal(m - take * (m - g))

    def moments(self) -> Arrays:
        """exp_avg.<name> and exp_avg_sq.<name>, or momentum.<name>."""
        adam = {name: value for name, value in super().moments().items() if name.split(".", 1)[1] not in self._momentum}
        return adam | {f"momentum.{name}": value for name, value in self._momentum.items()}


def orthogonal(x: Array) -> Array:
    """Newton-Schulz by what it does to singular values: U p(S) V^T with p applied five times, no matrix product.

    The textbook form, so that the oracle shares no formula with the twins.
    """
    a, b, c = COEFFICIENTS
    u, s, v = np.linalg.svd(x, full_matrices=False)
    s = s / (np.linalg.norm(s, axis=-1, keepdims=True) + 1e-7)
    for _ in range(STEPS):
        s = a * s + b * s**3 + c * s**5
    return np.asarray((u * s[..., None, :]) @ v)
