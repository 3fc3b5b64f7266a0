"""AdamW in float64 numpy, with the constants that a float32 optimiser has: the oracle of L6a."""

from __future__ import annotations

import math

import numpy as np

from convert.parity.compare import Array, Arrays
from gpt_common.config import OptimConfig


class ExactAdamW:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2), decay on matrices only, after clipping by the global norm.

    beta2 = 0.99 is off by 1e-8 in float32, and 100 steps remember it: a float64 optimiser with exact constants would
    lie 1e-6 away from every float32 one, correct or not. So the constants are rounded to float32 and nothing else is.
    """

    def __init__(self, config: OptimConfig) -> None:
        self.config = config

    def set_weights(self, weights: Arrays) -> None:
        """Begin with these weights and zero moments."""
        self._weights = {name: value.astype(np.float64) for name, value in weights.items()}
        self._first = {name: np.zeros(value.shape) for name, value in weights.items()}
        self._second = {name: np.zeros(value.shape) for name, value in weights.items()}

    def update(self, gradients: Arrays, step: int, rate: float) -> float:
        """Clip and update number `step` (from 0); returns the gradient norm before clipping."""
        config, n = self.config, step + 1
        norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values()))
        # Both frameworks add 1e-6 to the norm that they divide by.
        scale = min(1.0, config.grad_clip / (norm + 1e-6)) if config.grad_clip else 1.0
        for name, gradient in gradients.items():
            if gradient.ndim >= 2:
                self._weights[name] *= as_float32(1 - rate * config.weight_decay)
            self._weights[name] -= rate * self.direction(name, gradient.astype(np.float64) * scale, n)
        return norm

    def direction(self, name: str, g: Array, n: int) -> Array:
        """Where update number `n` (from 1) takes a tensor whose clipped gradient is `g`."""
        config = self.config
        keep2 = as_float32(config.beta2)
        take1, take2 = as_float32(1 - config.beta1), as_float32(1 - config.beta2)
        # PyTorch and MLX move the first moment towards the gradient, which makes its constants add up to one.
        self._first[name] += take1 * (g - self._first[name])
        self._second[name] = keep2 * self._second[name] + take2 * g * g
        root = np.sqrt(self._second[name] / (1 - config.beta2**n)) + config.adam_eps
        return np.asarray(self._first[name] / (1 - config.beta1**n) / root)

    def weights(self) -> Arrays:
        """Weights by name."""
        return dict(self._weights)

    def moments(self) -> Arrays:
        """exp_avg.<name> and exp_avg_sq.<name>."""
        first = {f"exp_avg.{name}": value for name, value in self._first.items()}
        return first | {f"exp_avg_sq.{name}": value for name, value in self._second.items()}


def as_float32(value: float) -> float:
    """A constant as a float32 optimiser has it."""
    return float(np.float32(value))
