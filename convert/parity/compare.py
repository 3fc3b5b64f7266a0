"""One comparison for everything: relative L2 distance per tensor, and what is zero in theory asserted small."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_common.config import ModelConfig

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
Tokens = npt.NDArray[np.int32]

QKV_BIAS = "qkv_proj.bias"
KEY_BIAS = "k_proj.bias"
KEY_SIZE = ": size of the key's third"
NEVER_NOISE = 0.5
"""A distance that noise excuses in no class: what shares so little with what is right is wrong."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One figure and its gate."""

    tensor: str
    """What was compared, by its canonical name where it has one."""
    error: float
    gate: float
    between: str
    """The two sides: "mlx-cpu ~ float64"."""
    state: str = ""
    """Which weights: fresh, widened or trained."""
    times: bool = False
    """The error is a multiple of another error, and not a distance."""
    noise: float = 0.0
    """How far weights one unit in the last place off move this, where the gate is a multiple of it."""

    @property
    def passed(self) -> bool:
        """Whether the error is within the gate; NaN never is."""
        return self.error <= self.gate

    def allowing(self, noise: float, times: float) -> Measurement:
        """The same with a gate that is at least `times` the noise, but excuses no distance of a half."""
        gate = min(times * noise, NEVER_NOISE) if np.isfinite(noise) else 0.0
        return dataclasses.replace(self, gate=gate, noise=noise) if gate > self.gate else self

    @property
    def strain(self) -> float:
        """Error as a share of the gate: 1 is the limit, infinite where nothing may differ and something does."""
        if np.isnan(self.error):
            return np.inf
        if self.gate == 0:
            return 0.0 if self.error == 0 else np.inf
        return self.error / self.gate


def relative(a: Array, b: Array) -> float:
    """|a - b| / |b| in float64; 0 if both are zero, infinite if b alone is."""
    if a.shape != b.shape:
        return float("inf")
    difference = float(np.linalg.norm(a.astype(np.float64).ravel() - b.astype(np.float64).ravel()))
    size = float(np.linalg.norm(b.astype(np.float64).ravel()))
    if size == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / size


def distances(
    a: Mapping[str, Array], b: Mapping[str, Array], *, split_bias: bool = True
) -> Iterator[tuple[str, float]]:
    """Relative distance of every tensor in a from the one in b, by name.

    The bias of q, k and v is one tensor. Softmax ignores what all keys have in common, so the gradient of the key's
    third is zero in theory and rounding in practice: it must be small beside the whole, and is compared to nothing. A
    key bias of its own must be small beside its projection's weight. Where keys rotate they still have much of it in
    common, and what is left of its gradient is compared beside the whole as well.

    Args:
        split_bias: treat that bias so; False where it is a tensor like any other.
    """
    for name in b.keys() - a.keys() | a.keys() - b.keys():
        yield f"{name} (missing on one side)", float("inf")
    for name, exact in b.items():
        if name not in a:
            continue
        place = name.replace(": gradient of ", ".")
        if not (split_bias and place.endswith((QKV_BIAS, KEY_BIAS))) or a[name].shape != exact.shape:
            yield name, relative(a[name], exact) * (_share_of_biases(name, b) if place.endswith(KEY_BIAS) else 1)
            continue
        if not place.endswith(QKV_BIAS):
            key, size = (float(np.linalg.norm(x)) for x in (a[name], b[name.removesuffix("bias") + "weight"]))
            yield f"{name}{KEY_SIZE}", key / size if size else key
            continue
        width = exact.shape[0] // 3
        yield name, relative(_without_key(a[name]), _without_key(exact))
        key, size = float(np.linalg.norm(a[name][width : 2 * width])), float(np.linalg.norm(exact))
        yield f"{name}{KEY_SIZE}", key / size if size else key


def _share_of_biases(name: str, b: Mapping[str, Array]) -> float:
    """Size of a key bias beside that of queries, keys and values together, as if they were one tensor."""
    stem = name.removesuffix(KEY_BIAS)
    sizes = [
        float(np.linalg.norm(b[stem + part])) for part in ("q_proj.bias", KEY_BIAS, "v_proj.bias") if stem + part in b
    ]
    return float(np.linalg.norm(b[name])) / float(np.linalg.norm(sizes)) if any(sizes) else 1.0


def _without_key(bias: Array) -> Array:
    width = bias.shape[0] // 3
    return np.concatenate([bias[:width], np.zeros_like(bias[:width]), bias[2 * width :]])


def key_bias_is_idle(model: ModelConfig) -> bool:
    """Whether all keys have their bias in common: not where they rotate, or are normalised, after it is added."""
    return model.positions == "learned" and not model.qk_norm


def without_key_bias(arrays: Mapping[str, Array], model: ModelConfig) -> Arrays:
    """The same with an idle key bias set to zero: Adam turns its rounding into full updates that equal nothing."""
    if not key_bias_is_idle(model):
        return dict(arrays)
    return {
        name: _without_key(value)
        if name.endswith(QKV_BIAS)
        else np.zeros_like(value)
        if name.endswith(KEY_BIAS)
        else value
        for name, value in arrays.items()
    }
