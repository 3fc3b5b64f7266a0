"""What `convert quantise` asks of a model: what its matrices are given, how far a quantised one is from it, and scales
and biases that bring that one nearer. The same text in MLX is mlx_gpt/calibrate.py.

Shape suffixes: B batch, T time, V vocabulary, X any leading dimensions, N all of them in one, I inputs, M rows with one
expert each, E experts.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpt_common.adapting.closeness import Closeness
from gpt_common.adapting.quantisation import NOT_QUANTISED, Grids
from gpt_common.commands import SampleSettings
from gpt_common.config import ModelConfig
from gpt_common.data.batches import NumpyBatch
from gpt_common.network.parameters import parameter_shapes
from torch_gpt.adapters import part
from torch_gpt.device import select_device, to_device
from torch_gpt.model import GPT
from torch_gpt.sample import generate

Arrays = Mapping[str, npt.NDArray[Any]]
Moments = dict[str, npt.NDArray[np.float64]]
FIRST_DECAY, SECOND_DECAY, EPS = 0.9, 0.99, 1e-12
"""Of Adam (Kingma & Ba 2015); gradients of a mean over tokens are small, and so is what is added to their size."""


def quantised(config: ModelConfig, arrays: Arrays, grids: Grids = NOT_QUANTISED) -> GPT:
    """A model of these tensors, words among them."""
    model = GPT(config, grids=grids).to(select_device("auto"))
    places = model.state_dict()
    with torch.no_grad():
        for name, value in arrays.items():
            found = torch.from_numpy(value)
            places[name].copy_(found.view(torch.int32) if found.dtype == torch.uint32 else found)
    return model


class Watched:
    """A layer that adds up the products of its inputs with themselves."""

    def product(self: Any, x: Tensor, *rest: Tensor | None) -> Tensor:
        """As the layer, whatever its kind."""
        if self.moments.ndim == 3:
            for expert, moments_II in enumerate(self.moments):
                _add(moments_II, x[rest[0] == expert])
        else:
            _add(self.moments, x)
        y: Tensor = super().product(x, *rest)  # type: ignore[misc]
        return y


def _add(moments_II: npt.NDArray[np.float64], x_XI: Tensor) -> None:
    x_NI = x_XI.flatten(0, -2).cpu().numpy().astype(np.float64)
    moments_II += x_NI.T @ x_NI


@lru_cache
def watched_kind(kind: type[Any]) -> type[Any]:
    """What a kind of layer is when it is watched."""
    return type(f"Watched{kind.__name__}", (Watched, kind), {})


@torch.no_grad()
def input_moments(model: GPT, layers: Iterable[str], batches: Iterable[NumpyBatch]) -> Moments:
    """Sums of `x x^T` over the inputs x of each layer, (I, I), of experts (E, I, I), in float64."""
    found: Moments = {}
    shapes = parameter_shapes(model.config)
    for name in layers:
        layer = part(model, name)
        *experts, _, width = shapes[f"{name}.weight"]
        layer.moments = found[name] = np.zeros((*experts, width, width))
        kind: Any = type(layer)
        layer.__class__ = watched_kind(kind)
    for batch in batches:
        inputs = to_device(batch, model.device)
        model(inputs.tokens, starts_BT=inputs.starts)
    for name in found:
        layer = part(model, name)
        layer.__class__ = type(layer).__bases__[1]
        del layer.moments
    return found


@torch.no_grad()
def compare(teacher: GPT, student: GPT, batches: Iterable[NumpyBatch]) -> Closeness:
    """How far a student's distributions are from its teacher's, over the positions that count."""
    total = Closeness()
    for batch in batches:
        inputs = to_device(batch, teacher.device)
        known_BTV, found_BTV = (_log_probabilities(model, inputs) for model in (teacher, student))
        weights_BT = torch.ones(inputs.labels.shape) if inputs.weights is None else inputs.weights
        apart_BT = (known_BTV.exp() * (known_BTV - found_BTV)).sum(dim=-1)
        known_BT, found_BT = (
            -logs_BTV.gather(-1, inputs.labels[..., None].long())[..., 0] for logs_BTV in (known_BTV, found_BTV)
        )
        agree_BT = known_BTV.argmax(dim=-1) == found_BTV.argmax(dim=-1)
        parts = (torch.ones_like(apart_BT), apart_BT, known_BT, found_BT, agree_BT)
        total += Closeness(*(float((each.double() * weights_BT.double()).sum()) for each in parts))
    return total


def _log_probabilities(model: GPT, inputs: Any) -> Tensor:
    return torch.log_softmax(model(inputs.tokens, starts_BT=inputs.starts).float(), dim=-1)


def tune(
    teacher: GPT, student: GPT, batches: Iterable[NumpyBatch], rate: Callable[[int], float]
) -> tuple[dict[str, npt.NDArray[np.float32]], list[float]]:
    """Scales and biases of the student by which its distributions come nearer to the teacher's, by Adam, one batch a
    step; and the divergence before each step, nats per token.

    Args:
        rate: of a step, from 0: by how much of a tensor's mean size it may move.
    """
    names = [f"{layer}.{name}" for layer in student.quantised.grids for name in ("scales", "biases")]
    tuned = {name: part(student, name) for name in names}
    sizes = {name: float(value.abs().mean()) for name, value in tuned.items()}
    first, second = ({name: torch.zeros_like(value) for name, value in tuned.items()} for _ in range(2))
    losses = []
    for step, batch in enumerate(batches):
        for value in tuned.values():
            value.requires_grad_(True)
        loss = _divergence(teacher, student, batch)
        gradients = torch.autograd.grad(loss, list(tuned.values()))
        with torch.no_grad():
            for (name, value), slope in zip(tuned.items(), gradients, strict=True):
                value.requires_grad_(False)
                first[name] += (1 - FIRST_DECAY) * (slope - first[name])
                second[name] += (1 - SECOND_DECAY) * (slope.square() - second[name])
                mean = first[name] / (1 - FIRST_DECAY ** (step + 1))
                size = (second[name] / (1 - SECOND_DECAY ** (step + 1))).sqrt() + EPS
                value -= rate(step) * sizes[name] * mean / size
        losses.append(float(loss.detach()))
    return {name: value.cpu().numpy() for name, value in tuned.items()}, losses


def _divergence(teacher: GPT, student: GPT, batch: NumpyBatch) -> Tensor:
    """Mean of the divergence over the positions that count, nats per token."""
    inputs = to_device(batch, student.device)
    with torch.no_grad():
        known_BTV = _log_probabilities(teacher, inputs)
    apart_BT = (known_BTV.exp() * (known_BTV - _log_probabilities(student, inputs))).sum(dim=-1)
    if inputs.weights is None:
        return apart_BT.mean()
    return (apart_BT * inputs.weights).sum() / inputs.weights.sum()


def speed(model: GPT, prompt: Sequence[int], tokens: int) -> float:
    """Tokens per second of one text, as `sample` makes it: the best of three, for a table is no benchmark."""
    settings = SampleSettings(max_new_tokens=tokens, temperature=0.0)
    list(generate(model, prompt, dataclasses.replace(settings, max_new_tokens=2), repeat(0.5)))
    took = []
    for _ in range(3):
        start = time.perf_counter()
        list(generate(model, prompt, settings, repeat(0.5)))
        took.append(time.perf_counter() - start)
    return tokens / min(took)
