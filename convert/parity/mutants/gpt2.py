"""Wrong twins: each mutant breaks one thing in one twin, and the ladder must reject it at its rung, or below.

A gate that no mutant trips is no gate. Each is a context manager that replaces one function by a wrong one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx import optimizers
from mlx.utils import tree_map
from torch.nn import functional as F

import torch_gpt.checkpoint
from convert.parity.mutants.climb import FAR, PEAK, Change, Changes, Mutant, mutants, wrap
from convert.parity.rungs import trajectories
from convert.parity.twins.mlx_twin import MlxTwin
from convert.parity.twins.replaced import replaced
from gpt_common.data.batches import Batch
from mlx_gpt import attention, checkpoint, kernels, layers, model, optim, train


@contextmanager
def _dropout(wrong: Callable[[Any], Any]) -> Iterator[None]:
    """Dropout is known by three names."""
    with wrap(layers, "dropout", wrong), wrap(attention, "dropout", wrong), wrap(model, "dropout", wrong):
        yield


@contextmanager
def _tanh_gelu() -> Iterator[None]:
    """GELU is MLX's own or, on a CPU, ours."""
    with wrap(nn, "gelu", lambda _: nn.gelu_approx), wrap(kernels, "_gelu", lambda _: nn.gelu_approx):
        yield


def _weights(wrong: Callable[[mx.array], mx.array]) -> Change:
    """Change what counts where examples share rows."""

    def counted(batch: Any) -> Any:
        return batch if batch.starts is None else dataclasses.replace(batch, weights=wrong(batch.weights))

    return wrap(model, "loss", lambda right: lambda network, batch, key=None: right(network, counted(batch), key))


def _micro_gradients(wrong: Callable[[Any], Any]) -> Change:
    """Change the gradients of each micro-step before they are accumulated."""

    def make(init: Any) -> Any:
        def wrong_init(self: Any, *args: Any) -> None:
            init(self, *args)
            right = self.loss_and_gradients

            def wrong_gradients(*batch: Any) -> Any:
                losses, gradients = right(*batch)
                return losses, wrong(gradients)

            self.loss_and_gradients = wrong_gradients

        return wrong_init

    return wrap(train.TrainStep, "__init__", make)


def _interleaved(call: Any) -> Any:
    """q, k and v taken from every third row instead of from thirds."""

    def wrong(self: Any, x: Any) -> Any:
        y = call(self, x)
        is_qkv = y.shape[-1] == 3 * x.shape[-1]
        return y.reshape(*y.shape[:-1], -1, 3).swapaxes(-1, -2).reshape(y.shape) if is_qkv else y

    return wrong


def _positions(wrong: Callable[[Any, int, int], Any]) -> Callable[[Any], Any]:
    """The model counts positions from a start to an end, and experts from zero."""
    return lambda f: lambda *bounds: wrong(f, *bounds) if len(bounds) == 2 else f(*bounds)


def _set_step(**wrong: Callable[[Any, int, float], float]) -> Change:
    """Change what the optimiser is told from step to step."""
    return wrap(
        optim.AdamW,
        "set_step",
        lambda f: (
            lambda self, step, rate: (
                f(self, step, rate),
                self.state.update({name: mx.array(value(self, step, rate)) for name, value in wrong.items()}),
            )
        ),
    )


def _masked(q: Any, k: Any, v: Any, scale: float, mask_TS: Any) -> Any:
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask_TS)


def _next_seen(q_BHTK: Any, k_BGSK: Any) -> Any:
    """(T, S): everyone sees the next one too."""
    T, S = q_BHTK.shape[2], k_BGSK.shape[2]
    return None if T == 1 else mx.tri(T, S, S - T + 1, dtype=mx.bool_)


def _far(q_BHTK: Any) -> bool:
    return bool(q_BHTK.shape[2] > FAR)


def _late(positions: int) -> Any:
    """(T, T): causal up to position FAR; who stands there or behind sees the next one too."""
    rows_T1 = mx.array(list(range(positions)))[:, None]
    return rows_T1 + (rows_T1 >= FAR) >= rows_T1.T


@contextmanager
def _three_gradients() -> Iterator[None]:
    """Losses of all micro-steps count, gradients of the first three."""
    right, done = train.TrainStep.accumulate, 0

    def wrong(self: Any, *micro_batch: Any) -> Any:
        nonlocal done
        done = 1 if self.gradients is None else done + 1
        before = self.gradients
        loss = right(self, *micro_batch)
        if done > 3:
            self.gradients = before
        return loss

    with replaced(train.TrainStep, "accumulate", wrong):
        yield


def _square(x: Any) -> bool:
    return bool(x.ndim == 2 and x.shape[0] == x.shape[1])


RESIDUAL = ("out_proj.weight", "down_proj.weight")

GPT: Changes = {
    # ---- L0: bytes
    ("L0", "weights rounded to bfloat16 on their way out"): lambda: wrap(
        model.GPT,
        "named_parameters",
        lambda f: lambda self: [(n, p.astype(mx.bfloat16).astype(mx.float32)) for n, p in f(self)],
    ),
    ("L0", "residual projections not scaled at initialisation"): lambda: wrap(
        model,
        "initial_weights",
        lambda f: (
            lambda c, seed: ((n, w * math.sqrt(2 * c.n_layer) if n.endswith(RESIDUAL) else w) for n, w in f(c, seed))
        ),
    ),
    ("L0", "no optimiser state on resume"): lambda: wrap(
        checkpoint, "load_optimizer_tensors", lambda _: lambda *_: None
    ),
    # ---- L1: operations
    ("L1", "tanh GELU for the exact one"): _tanh_gelu,
    ("L1", "exact GELU for the tanh one"): lambda: wrap(nn, "gelu_approx", lambda _: nn.gelu),
    ("L1", "layer norm eps 1e-6"): lambda: wrap(
        mx.fast, "layer_norm", lambda f: lambda x, weight, bias, eps: f(x, weight, bias, eps / 10)
    ),
    ("L1", "attention scaled by the model's width"): lambda: wrap(
        attention, "causal_attention", lambda f: lambda q, k, v, scale: f(q, k, v, scale / math.sqrt(q.shape[1]))
    ),
    ("L1", "mask off by one"): lambda: wrap(
        attention, "causal_attention", lambda _: lambda q, k, v, scale: _masked(q, k, v, scale, _next_seen(q, k))
    ),
    ("L1", "mask of a group of queries off by one"): lambda: wrap(
        # Attention by rows says where its mask begins.
        mx,
        "tri",
        lambda f: lambda rows, columns, *at, dtype: f(rows, columns, *(begin + 1 for begin in at), dtype=dtype),
    ),
    ("L1", "dropout does not scale up"): lambda: _dropout(
        lambda f: lambda x, rate, key, *at: f(x, rate, key, *at) * (1 if key is None else 1 - rate)
    ),
    ("L1", "one dropout mask for all sites"): lambda: wrap(
        layers, "uniform", lambda f: lambda key, _, shape: f(key, 0, shape)
    ),
    ("L1", "exponentials added one by one"): lambda: wrap(kernels, "cross_entropy", lambda _: nn.losses.cross_entropy),
    # ---- L2: layers
    ("L2", "q, k, v interleaved"): lambda: wrap(layers.Linear, "__call__", _interleaved),
    ("L2", "no positions"): lambda: wrap(
        layers.Embedding, "__call__", lambda f: lambda self, ids, dtype: f(self, ids, dtype) * (ids.ndim > 1)
    ),
    ("L2", "square out_proj transposed"): lambda: wrap(
        layers.Linear,
        "__call__",
        lambda f: (
            lambda self, x: f(self, x) + x @ (self.weight - self.weight.T) if _square(self.weight) else f(self, x)
        ),
    ),
    ("L2", "mask off by one under dropout"): lambda: wrap(
        mx,
        "tri",
        lambda f: lambda rows, columns, *at, dtype: f(rows, columns, *(at or (1,)), dtype=dtype),
    ),
    # ---- L3: logits
    ("L3", "positions counted backwards"): lambda: wrap(
        mx, "arange", _positions(lambda f, start, stop: f(start, stop)[::-1])
    ),
    # ---- L4: loss
    ("L4", "labels not shifted"): lambda: wrap(
        model, "loss", lambda f: lambda network, batch, key=None: f(network, Batch(batch.tokens, batch.tokens), key)
    ),
    ("L4", "last position left out of the loss"): lambda: wrap(
        model,
        "loss",
        lambda _: (
            lambda network, batch, key=None: nn.losses.cross_entropy(
                network(batch.tokens, key)[:, :-1], batch.labels[:, :-1], reduction="mean"
            )
        ),
    ),
    ("L4", "packing that leaks to the neighbour"): lambda: wrap(
        model, "within_examples", lambda f: lambda starts: f(0 * starts)
    ),
    ("L4", "positions go on from one example to the next"): lambda: wrap(
        model, "restarted", lambda f: lambda starts: f(0 * starts)
    ),
    ("L4", "what fills a row counts"): lambda: _weights(lambda weights: mx.ones_like(weights)),
    ("L4", "answers begin a token later"): lambda: _weights(lambda weights: mx.roll(weights, 1, 1)),
    # ---- L5: gradients
    ("L5", "head untied: its gradient does not reach the embedding"): lambda: wrap(
        layers.Embedding, "as_linear", lambda _: lambda self, x: x @ mx.stop_gradient(self.weight).astype(x.dtype).T
    ),
    # ---- L6a: optimiser
    ("L6a", "no bias correction (MLX's default)"): lambda: _set_step(
        step_size=lambda _, __, rate: rate, root_correction=lambda *_: 1.0
    ),
    ("L6a", "beta2 off by 0.001"): lambda: wrap(
        optim.AdamW,
        "__init__",
        lambda f: lambda self, config: f(self, dataclasses.replace(config, beta2=config.beta2 + 0.001)),
    ),
    ("L6a", "decay on biases and norms"): lambda: wrap(
        optim.AdamW,
        "apply_single",
        lambda f: lambda self, g, p, s: f(self, g, p, s) - (p.ndim < 2) * (1 - self.state["decay"]) * p,
    ),
    ("L6a", "decay by the peak learning rate"): lambda: _set_step(
        decay=lambda self, _, __: 1 - PEAK * self.weight_decay
    ),
    ("L6a", "each tensor clipped on its own"): lambda: wrap(
        train,
        "clip_gradients",
        lambda f: lambda tree, most: (tree_map(lambda g: f([g], most)[0][0], tree), f(tree, most)[1]),
    ),
    ("L6a", "gradient norm added up in one go (MLX's own, on a CPU)"): lambda: wrap(
        train, "clip_gradients", lambda _: optimizers.clip_grad_norm
    ),
    # ---- L6b: one step
    ("L6b", "clipped before accumulation"): lambda: _micro_gradients(
        lambda gradients: optim.clip_gradients(gradients, 0.01)[0]
    ),
    ("L6b", "sum of the micro-steps for their mean"): lambda: _micro_gradients(
        lambda gradients: tree_map(lambda g: 2 * g, gradients)
    ),
    ("L6b", "one dropout mask for all micro-steps"): lambda: wrap(
        train, "dropout_key", lambda f: lambda seed, step, _: f(seed, step, 0)
    ),
    ("L6b", "a mean of the micro-steps' means, whatever counts in them"): lambda: wrap(
        train, "positions", lambda _: lambda _: 1.0
    ),
    # ---- L7: trajectory
    ("L7", "dropout masks frozen from step to step"): lambda: wrap(
        train, "dropout_key", lambda f: lambda seed, _, micro_step: f(seed, 0, micro_step)
    ),
    # ---- L8: change of framework
    ("L8", "batch order reseeded on resume"): lambda: wrap(
        trajectories,
        "batches_for",
        lambda f: lambda twin, step: f(twin, step - twin.resumed_at * isinstance(twin, MlxTwin)),
    ),
    # ---- G: generation
    ("G", "positions restart in the cache"): lambda: wrap(
        mx, "arange", _positions(lambda f, start, stop: f(0, stop - start))
    ),
    ("G", "the cache keeps the values of the first token"): lambda: wrap(
        attention.KVCache,
        "append",
        lambda f: (
            lambda self, k, v: (
                f(self, k, v) if self.length == 0 else (f(self, k, v)[0], _first_repeated(self.values, self.length))
            )
        ),
    ),
    # ---- S: real size
    ("S", f"positions begin again at {FAR}"): lambda: wrap(
        mx, "arange", _positions(lambda f, start, stop: f(start, stop) % FAR)
    ),
    ("S", f"mask off by one from position {FAR} on"): lambda: wrap(
        attention,
        "causal_attention",
        lambda f: lambda q, k, v, scale: _masked(q, k, v, scale, _late(k.shape[2])) if _far(q) else f(q, k, v, scale),
    ),
    ("S", f"mask off by one from position {FAR} on under dropout"): lambda: wrap(
        mx, "tri", lambda f: lambda T, S, *at, dtype: f(T, S, *at, dtype=dtype) if at or T <= FAR else _late(T)
    ),
    ("S", "gradients of micro-steps after the third dropped"): _three_gradients,
}

GPT2_MUTANTS = (
    *mutants("gpt", GPT),
    Mutant(
        "head bias dropped",
        "L3",
        lambda: wrap(model.GPT, "__call__", lambda f: lambda self, *a, **more: f(self, *a, **more) - self.head.bias),
        family="untied head",
    ),
    Mutant(
        "moments transferred without the step",
        "L8",
        lambda: wrap(
            torch_gpt.checkpoint,
            "load_optimizer_tensors",
            lambda f: lambda network, optimizer, tensors, _: f(network, optimizer, tensors, 0),
        ),
        twin="torch",
    ),
    Mutant(
        "ids of 16 bits",
        "S",
        lambda: wrap(
            layers.Embedding, "__call__", lambda f: lambda self, ids, dtype: f(self, ids.astype(mx.uint16), dtype)
        ),
        real="many ids",
    ),
    Mutant(
        "native dropout drops half of what it should",
        "S",
        lambda: wrap(F, "dropout", lambda f: lambda x, rate: f(x, rate / 2) * (1 - rate / 2) / (1 - rate)),
        twin="torch",
    ),
)


def _first_repeated(values: Any, length: int) -> Any:
    return mx.broadcast_to(values[:, :, :1], (*values.shape[:2], length, values.shape[3]))
