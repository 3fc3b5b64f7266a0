"""From a float model to one on a grid: rounded as it is, or by GPTQ, and then tuned."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from convert.quantising.material import Material
from gpt_common.adapting.gptq import gptq
from gpt_common.adapting.quantisation import Grids, Quantised, quantised, rounded_to
from gpt_common.config import ModelConfig
from gpt_common.data.batches import NumpyBatch
from gpt_common.machine.blas import load_fast_blas

F32 = npt.NDArray[np.float32]
Arrays = Mapping[str, F32]
Matrices = Mapping[str, Quantised]
Moments = Mapping[str, npt.NDArray[np.float64]]
"""Of the inputs of each layer, as gptq takes them."""
CALIBRATION_TOKENS, JUDGE_TOKENS, FAR_TOKENS = 16384, 8192, 2048
SEED = 1337
"""Of the batches that are calibrated on."""
PARTS_OF_RATE = (1.0, 1 / 4, 1 / 16, 1 / 64)
"""Of the largest rate of tuning, that are tried."""
TRIED = 1 << 19
"""Number of the first batch that says how far they got."""
BEHIND = 1 << 20
"""Their number where tuning begins: not those that GPTQ saw."""


class Twin(Protocol):
    """A twin's calibrate.py."""

    quantised: Callable[..., Any]
    input_moments: Callable[..., dict[str, npt.NDArray[np.float64]]]
    compare: Callable[..., Any]
    tune: Callable[..., Any]
    speed: Callable[..., float]


def twin_of(name: str) -> Twin:
    """The calibrate.py of a twin; auto: MLX's where it has a GPU, else PyTorch's, whose CPU is the faster one."""
    load_fast_blas()  # before MLX is imported
    if name == "auto":
        from mlx_gpt.device import has_gpu

        name = "mlx" if has_gpu() else "torch"
    if name == "mlx":
        from mlx_gpt import calibrate as mlx

        return mlx
    from torch_gpt import calibrate as torch

    return torch


def rounded(tensors: Arrays, grids: Grids, dtype: str) -> dict[str, Quantised]:
    """Every matrix rounded to the nearest codes, as `mx.quantize` does it."""
    return {layer: quantised(tensors[f"{layer}.weight"], grid, dtype) for layer, grid in grids.items()}


def by_gptq(tensors: Arrays, grids: Grids, moments: Moments, dtype: str) -> Iterator[tuple[str, Quantised]]:
    """Every matrix by GPTQ; the token embedding rounded.

    Its rows are looked up, and what makes up for a rounding in a product is an error there: of a head that is tied to
    it, GPTQ cost stories-cpu's model more than rounding does.
    """
    for layer, grid in grids.items():
        matrix = tensors[f"{layer}.weight"]
        plain = layer == "token_embedding"
        yield layer, quantised(matrix, grid, dtype) if plain else gptq(matrix, moments[layer], grid, dtype)


def tuned(
    twin: Twin,
    teacher: Any,
    new_student: Callable[[], Any],
    matrices: Matrices,
    text: Material,
    tuning: Any,
    done: Callable[[], None],
) -> dict[str, Quantised]:
    """The same codes with scales and biases by which the distributions come nearer to the float model's.

    A rate that suits a small model throws a deep one: several are tried for some steps, from the same beginning, and
    the one goes on that got nearest. Where none gets nearer, scales and biases stay as they are.

    Args:
        new_student: makes the quantised model.
        tuning: steps; rate, the largest that is tried: by how much of a tensor's mean size it may move at first, where
            the divergence is one nat, else times its root; it falls to 0 as a cosine; and dtype.
        done: called after each step, `tuning_steps` times in all.
    """
    fixed = text.enough(SEED, FAR_TOKENS, TRIED)
    before = twin.compare(teacher, new_student(), fixed).divergence
    # How far scales are off goes by the root of what they cost: a fixed rate spoils a model in 8 bits.
    largest = tuning.rate * math.sqrt(before)

    def course(rate: float, steps: int) -> tuple[dict[str, F32], float]:
        """Values after so many steps, and how far the model is then."""

        def batches() -> Iterator[NumpyBatch]:
            for step in range(steps):
                yield text.calibration(SEED, BEHIND + step)
                done()

        student = new_student()
        values, _ = twin.tune(
            teacher, student, batches(), lambda step: rate * (1 + math.cos(math.pi * step / steps)) / 2
        )
        reached = twin.compare(teacher, student, fixed).divergence
        return values, reached if math.isfinite(reached) else math.inf

    tried = {largest * part: course(largest * part, trial_steps(tuning.steps))[1] for part in PARTS_OF_RATE}
    values, reached = course(min(tried, key=lambda rate: tried[rate]), tuning.steps)
    if reached >= before:
        return dict(matrices)
    return {
        layer: dataclasses.replace(
            matrix,
            scales_XG=rounded_to(tuning.dtype, values[f"{layer}.scales"]),
            biases_XG=rounded_to(tuning.dtype, values[f"{layer}.biases"]),
        )
        for layer, matrix in matrices.items()
    }


def trial_steps(steps: int) -> int:
    """How many steps each rate is tried for."""
    return max(4, steps // 10)


def tuning_steps(steps: int) -> int:
    """Steps in all, trials among them."""
    return steps + len(PARTS_OF_RATE) * trial_steps(steps)


def moments_of(model: ModelConfig, tensors: Arrays, layers: Iterable[str], text: Material) -> Moments:
    """What a text gives the layers of a float model, by the twin that is the faster one here."""
    twin = twin_of("auto")
    return twin.input_moments(twin.quantised(model, tensors), layers, text.enough(SEED, CALIBRATION_TOKENS))


def divergence_of(model: ModelConfig, known: Arrays, found: Arrays, text: Material) -> float:
    """Of a float model from another, nats per token on a text."""
    twin = twin_of("auto")
    teacher, student = (twin.quantised(model, tensors) for tensors in (known, found))
    divergence: float = twin.compare(teacher, student, text.judging(JUDGE_TOKENS)).divergence
    return divergence
