"""Training steps under one handle for both twins, of models that take a few milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_common.config import ModelConfig, OptimConfig, RunConfig, TrainConfig
from gpt_common.data.batches import Batch, NumpyBatch
from gpt_common.keyed import keyed_generator
from gpt_common.network.parameters import parameter_shapes

Arrays = dict[str, npt.NDArray[np.float32]]

V, T = 30, 12
SIZE: dict[str, Any] = {"vocab_size": V, "block_size": T, "n_layer": 2, "n_head": 2, "n_embd": 16}
GPT2 = ModelConfig(**SIZE, bias=True)
LLAMA = ModelConfig(
    **SIZE,
    norm="rmsnorm",
    positions="rope",
    attention="grouped_query",
    n_kv_head=1,
    qk_norm=True,
    feed_forward="swiglu",
    feed_forward_width=24,
    tied_head=False,
)
DEEPSEEK = ModelConfig(
    **SIZE,
    norm="rmsnorm",
    positions="rope",
    rope_layout="interleaved",
    attention="latent",
    kv_latent=8,
    nope_size=6,
    rope_size=4,
    value_size=6,
    feed_forward="moe",
    n_dense_layer=1,
    n_expert=4,
    n_shared_expert=1,
    experts_per_token=2,
    expert_width=8,
    router="sigmoid",
    balancing="bias",
    tied_head=False,
)
FAMILIES = {"gpt2": GPT2, "llama": LLAMA, "deepseek": DEEPSEEK}


class Trained:
    """A model and its training step, at weights where every part of it matters.

    Args:
        weights: None: of standard deviation 0.2, norms around 1. At 0.02 attention is near uniform and hides mistakes.
    """

    def __init__(
        self,
        twin: str,
        model: ModelConfig,
        *,
        weights: Mapping[str, npt.NDArray[np.float32]] | None = None,
        optim: OptimConfig | None = None,
        seed: int = 0,
    ) -> None:
        import_module(f"{twin}.device").select_device("cpu")
        config = RunConfig(model=model, optim=optim or OptimConfig(), train=TrainConfig(device="cpu", seed=seed))
        self.model = import_module(f"{twin}.model").GPT(model)
        self.optimizer = import_module(f"{twin}.optim").build_optimizer(self.model, config.optim)
        self.step = import_module(f"{twin}.train").TrainStep(self.model, self.optimizer, config, compiled=False)
        self.probe = import_module(f"{twin}.probe").TrainingProbe(self.model, self.step)
        self.probe.set_weights(weights or drawn_weights(model))

    def gradients(self, *batches: NumpyBatch, step: int = 0) -> tuple[float, Arrays]:
        """Loss and gradient of a step that is not taken."""
        loss, gradients = self.probe.step_gradients(batches, step)
        return loss, dict(gradients)

    def take(self, batches: Sequence[NumpyBatch], step: int, rate: float = 1e-2) -> tuple[float, float]:
        """Take a step; its loss and gradient norm."""
        loss, norm = self.step(batches, step, rate)
        return float(loss), float(norm)

    def state(self) -> dict[str, bytes]:
        """Everything that a later step depends on: weights, buffers and moments."""
        tensors = {name: np.asarray(value) for name, value in self.model.state_dict().items()}
        return {name: value.tobytes() for name, value in (tensors | self.probe.moments()).items()}


def drawn_weights(model: ModelConfig) -> Arrays:
    """See Trained."""
    return {
        name: np.float32(0.2) * keyed_generator(3, name).standard_normal(shape, np.float32) + np.float32("norm" in name)
        for name, shape in parameter_shapes(model).items()
    }


def batch(seed: int = 0, rows: int = 3, weighted: bool = False) -> NumpyBatch:
    """Random ids (rows, T), with random weights or none."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(0, V, (rows, T + 1), dtype=np.int32)
    weights = draw.uniform(0, 1, (rows, T)).astype(np.float32) if weighted else None
    return Batch(ids[:, :-1].copy(), ids[:, 1:].copy(), weights)


def rows_of(whole: NumpyBatch, rows: Any) -> NumpyBatch:
    """Some sequences of a batch."""
    return Batch(whole.tokens[rows], whole.labels[rows], None if whole.weights is None else whole.weights[rows])


def apart(one: Mapping[str, npt.NDArray[Any]], other: Mapping[str, npt.NDArray[Any]]) -> float:
    """The tensor that differs most: norm of its difference, in units of the norm of all of `one`."""
    assert one.keys() == other.keys()
    whole = np.sqrt(sum(float(np.square(value, dtype=np.float64).sum()) for value in one.values()))
    return float(max(np.linalg.norm((one[name] - other[name]).astype(np.float64)) for name in one) / whole)
