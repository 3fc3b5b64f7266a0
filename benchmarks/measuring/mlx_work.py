"""MLX at work: our twin, and mlx-lm's GPT-2 as its peer. The worker has opened the BLAS that MLX binds."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map

from benchmarks.measuring.backends import Backend
from benchmarks.measuring.work import Absent, Batches, gpt2_weights, weight_bytes
from benchmarks.readings import Compilation
from gpt_common.adapting.quantisation import NOT_QUANTISED, Grids
from gpt_common.commands import SampleSettings
from gpt_common.config import RunConfig
from gpt_common.errors import UserError
from mlx_gpt.device import compiles, compute_dtype, describe, name_of, select_device
from mlx_gpt.model import GPT
from mlx_gpt.optim import build_optimizer, clip_gradients, set_step
from mlx_gpt.sample import generate
from mlx_gpt.train import TrainStep


class CountedGPT(GPT):
    """Our model, counting how often Python runs it: in a compiled step that is once per trace."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.runs = 0

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
        """See GPT."""
        self.runs += 1
        return super().__call__(*args, **kwargs)


class MlxWork:
    """Our twin; see `work.Work`."""

    def __init__(self, backend: Backend, config: RunConfig, grids: Grids = NOT_QUANTISED) -> None:
        try:
            self._device = select_device(backend.device)
        except UserError as error:
            raise Absent(str(error)) from None
        self._config, self._grids = config, grids
        self._dtype = compute_dtype(config.train, self._device)
        self.compiled = compiles(config.train, self._device) or backend.compiled
        self.device: str = name_of(self._device)
        self.description = describe(self._device) + (", mx.compile" if self.compiled else "")
        self.dtype = str(self._dtype).removeprefix("mlx.core.")
        self.notes: list[str] = []
        if backend.device == "auto" and self.device == "cpu":
            self.notes.append("MLX finds no GPU here: this is its CPU backend")
        if self.device == "gpu" and self.dtype == "float32" and os.environ.get("MLX_ENABLE_TF32") != "0":
            self.notes.append("MLX_ENABLE_TF32 is on: on M5 and CUDA, products of float32 are rounded to TF32")
        self._loss = mx.zeros(())
        self.build()

    def build(self) -> None:
        """Model and optimiser."""
        config = self._config
        checkpointing = config.train.gradient_checkpointing
        self.model: Any = CountedGPT(config.model, self._dtype, checkpointing, config.adapter, self._grids)
        self.model.initialise(config.train.seed)
        self.model.adapters.initialise(self.model, config.train.seed)  # often there are none
        self._optimizer = build_optimizer(self.model, config.optim)
        self._train_step = TrainStep(self.model, self._optimizer, config, self.compiled)

    def step(self, batches: Batches, step: int, rate: float) -> None:
        self._loss, _ = self._train_step(batches, step, rate)

    def wait(self) -> None:
        mx.eval(self._loss, self.model.parameters(), self._optimizer.state)
        mx.synchronize()

    def force(self) -> float:
        parameters: Any = tree_flatten(self.model.trainable_parameters())
        return float(self._loss) + float(parameters[0][1].flatten()[-1].item())

    def loss(self) -> float:
        return float(self._loss)

    def product(self, n: int) -> Callable[[], None]:
        a, b = (mx.random.normal((n, n)).astype(self._dtype) for _ in range(2))
        mx.eval(a, b)

        def queue() -> None:
            mx.async_eval(a @ b)

        return queue

    def weight_bytes(self) -> int:
        held: Any = tree_flatten(self.model.parameters())
        return weight_bytes({name: array.nbytes for name, array in held}, self._config)

    def memory(self) -> dict[str, int | None]:
        return {"peak": mx.get_peak_memory(), "cache": mx.get_cache_memory()}

    def compilation(self) -> Compilation | None:
        if not self.compiled:
            return None
        # MLX compiles without saying how long, and cannot break a graph: it raises an error instead.
        return Compilation(seconds=None, graphs=1, graph_breaks=0, recompiles=max(0, self.model.runs - 1))

    def generate(self, prompt: Sequence[int], tokens: int) -> Iterator[int]:
        return generate(self.model, prompt, SampleSettings(max_new_tokens=tokens, temperature=0), repeat(0.0))


class MlxLmWork(MlxWork):
    """mlx-lm's GPT-2, with the same weights, batches, loss and optimiser."""

    def build(self) -> None:
        try:
            from mlx_lm.models import gpt2
        except ImportError as error:
            raise Absent(f"mlx-lm cannot be imported ({error}): pip install mlx-lm") from None
        model, config = self._config.model, self._config
        if model.head_bias or not model.tied_head or model.dropout:
            raise Absent("mlx-lm's GPT-2 has no untied head, head bias or dropout: try --dropout 0")
        if self.dtype != "float32" or config.train.gradient_checkpointing:
            raise Absent("mlx-lm's GPT-2 has no float32 master weights or checkpointing: try --dtype float32")
        self.description = f"mlx-lm {importlib.metadata.version('mlx-lm')}, {self.description}"
        if not model.bias:
            self.notes.append("has biases, which start at zero and are trained")
        if model.feed_forward != "gelu_tanh":
            self.notes.append("computes the tanh form of GELU, which is cheaper than the exact one")
        self.model = gpt2.Model(
            gpt2.ModelArgs(
                model_type="gpt2",
                n_ctx=model.block_size,
                n_positions=model.block_size,
                n_embd=model.n_embd,
                n_head=model.n_head,
                n_layer=model.n_layer,
                layer_norm_epsilon=model.norm_eps,
                vocab_size=model.vocab_size,
            )
        )
        weights = {}
        for name, array in gpt2_weights(config):
            weights["model." + name.removeprefix("transformer.")] = mx.array(array)
        present: Any = tree_flatten(self.model.parameters())
        for name, value in present:
            if name.endswith(".bias") and name not in weights:
                weights[name] = mx.zeros_like(value)
        self.model.load_weights(list(weights.items()), strict=True)
        self._optimizer = build_optimizer(self.model, config.optim)
        self._compute = nn.value_and_grad(self.model, self._cross_entropy)
        self._update = self._clip_and_update
        if self.compiled:
            state = [self.model.state, self._optimizer.state]
            self._compute = mx.compile(self._compute, inputs=state, outputs=state)
            self._update = mx.compile(self._clip_and_update, inputs=state, outputs=state)

    def compilation(self) -> Compilation | None:
        unknown = Compilation(seconds=None, graphs=None, graph_breaks=None, recompiles=None)
        return unknown if self.compiled else None

    def _cross_entropy(self, tokens: mx.array, labels: mx.array) -> mx.array:
        return nn.losses.cross_entropy(self.model(tokens).astype(mx.float32), labels, reduction="mean")

    def _clip_and_update(self, gradients: Any) -> mx.array:
        gradients, norm = clip_gradients(gradients, self._config.optim.grad_clip)
        self._optimizer.update(self.model, gradients)
        return norm

    def step(self, batches: Batches, step: int, rate: float) -> None:
        previous, total, gradients = self._loss, mx.zeros(()), None
        for batch in batches:
            loss, new = self._compute(mx.array(batch.tokens), mx.array(batch.labels))
            total = total + loss / len(batches)
            new = tree_map(lambda gradient: gradient / len(batches), new)
            gradients = new if gradients is None else tree_map(mx.add, gradients, new)
            if len(batches) > 1:
                mx.eval(total, gradients)
        set_step(self._optimizer, step + 1, rate)
        self._update(gradients)
        mx.async_eval(total, self.model.parameters(), self._optimizer.state)
        mx.eval(previous)
        self._loss = total

    def generate(self, prompt: Sequence[int], tokens: int) -> Iterator[int]:
        from mlx_lm.models.cache import make_prompt_cache

        cache, fresh = make_prompt_cache(self.model), mx.array([list(prompt)])
        for _ in range(tokens):
            token = int(np.argmax(np.array(self.model(fresh, cache=cache)[0, -1].astype(mx.float32))))
            fresh = mx.array([[token]])
            yield token
