"""The MLX twin as the ladder sees it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from convert.parity.compare import Array, Arrays, Tokens
from convert.parity.twins.choices import routing_bias
from convert.parity.twins.replaced import replaced
from convert.parity.twins.twin import INPUTS, ComputeDtype, Dropped, LayerPass, Operation, Traced, Twin
from gpt_common.adapting.quantisation import Grids
from gpt_common.commands import SampleSettings
from gpt_common.config import ModelConfig, RunConfig
from gpt_common.data.batches import Batch, NumpyBatch
from gpt_common.machine.backends import Backend
from gpt_common.network.parameters import buffer_shapes
from mlx_gpt import attention, checkpoint, experts, feed_forward, kernels, layers, model, optim, sample, train
from mlx_gpt.device import to_device


class MlxTwin(Twin):
    """A model and its optimiser on one MLX backend."""

    network: model.GPT
    train_step: train.TrainStep

    def __init__(self, config: RunConfig, backend: Backend, dtype: ComputeDtype, grids: Grids) -> None:
        self.config, self.grids = config, grids
        self.device = mx.Device(mx.cpu if backend.device == "cpu" else mx.gpu)
        self.dtype: mx.Dtype = getattr(mx, dtype)
        self.compiled = backend.compiled
        with self._here():
            again = config.train.gradient_checkpointing
            self.network = model.GPT(config.model, self.dtype, again, config.adapter, grids)
            self._forget()

    def _forget(self) -> None:
        self.resumed_at = 0
        self.optimizer = optim.build_optimizer(self.network, self.config.optim)
        self._after_loading()

    def _after_loading(self) -> None:
        """A compiled step holds on to the state that it was made with."""
        self.train_step = train.TrainStep(self.network, self.optimizer, self.config, self.compiled)
        self.objective: Callable[..., Any] = nn.value_and_grad(
            self.network,
            lambda *batch: model.objective(self.network, Batch(*batch[:4]), batch[4]),
        )
        if self.compiled:
            state = [self.network.state]
            self.objective = mx.compile(self.objective, inputs=state, outputs=state)

    def set_weights(self, weights: Arrays) -> None:
        with self._here():
            buffers = {name: np.zeros(shape, np.float32) for name, shape in buffer_shapes(self.config.model).items()}
            tensors = [(name, mx.array(value)) for name, value in (buffers | weights).items()]
            self.network.update(tree_unflatten(tensors))
            self._forget()

    def moments(self) -> Arrays:
        with self._here():
            tensors = optim.optimizer_tensors(self.network, self.optimizer)
            return {name: self._numpy(value) for name, value in tensors.items()}

    def gradients(self, batch: NumpyBatch, key: Array | None = None) -> tuple[float, Arrays]:
        with self._here():
            there = to_device(batch, self.device)
            (_, loss), gradients = self.objective(there.tokens, there.labels, there.weights, there.starts, _key(key))
            self.network.routers.take_loads()  # of no training step
            return float(loss), {name: self._numpy(g) for name, g in _flat(gradients)}

    def layer(self, path: str, inputs: tuple[Array, ...], upstream: Array, key: Array | None) -> LayerPass:
        module: nn.Module = dict(self.network.named_modules())[path]
        takes = inspect.signature(type(module).__call__).parameters
        parameters = _flat(module.trainable_parameters())
        names = [name for name, _ in parameters]
        differentiable = [i for i, x in enumerate(inputs) if x.dtype.kind != "i"]
        more: list[Any] = [self.dtype] if "dtype" in takes else []

        def forward(*values: mx.array) -> mx.array:
            module.update(tree_unflatten(list(zip(names, values, strict=False))))
            given = dict(zip(differentiable, values[len(names) :], strict=True))
            arguments = [given[i] if i in given else mx.array(x) for i, x in enumerate(inputs)]
            return module(*arguments, *more)

        with self._here():
            if "key" in takes:
                more += [_key(key), None, self._angles(inputs[0])]
            values = [value for _, value in parameters] + [self._array(inputs[i]) for i in differentiable]
            outputs, gradients = mx.vjp(forward, values, [self._array(upstream)])
            module.update(tree_unflatten(parameters))
            found = dict(zip([*names, *(INPUTS[i] for i in differentiable)], gradients, strict=True))
            return LayerPass(self._numpy(outputs[0]), {name: self._numpy(g) for name, g in found.items()})

    def operation(self, operation: Operation, upstream: Array) -> LayerPass:
        with self._here():
            values = {f"input {i}": self._array(value) for i, value in enumerate(operation.inputs)}
            values |= {f"parameter {i}": mx.array(value) for i, value in enumerate(operation.parameters)}
            more: list[Any] = [] if operation.integers is None else [mx.array(operation.integers)]
            if operation.kind == "embedding":
                more.append(self.dtype)
            if operation.model is not None:
                more.append(operation.model)
            compute = OPERATIONS[operation.kind]
            # The upstream gradient has the dtype of the output, which only the operation knows.
            cotangent = mx.array(upstream).astype(compute(*values.values(), *more).dtype)
            outputs, gradients = mx.vjp(lambda *x: compute(*x, *more), list(values.values()), [cotangent])
            return LayerPass(
                self._numpy(outputs[0]), {n: self._numpy(g) for n, g in zip(values, gradients, strict=True)}
            )

    def trace(self, batch: NumpyBatch, key: Array | None) -> Traced:
        traced = Traced([], {}, {})
        paths = {id(module): path for path, module in self.network.named_modules() if path}

        def watched(original: Callable[..., mx.array]) -> Callable[..., mx.array]:
            def call(module: nn.Module, x: mx.array, *more: Any) -> mx.array:
                if (path := paths.get(id(module))) is None:
                    return original(module, x, *more)
                traced.inputs[path] = (self._numpy(x),)
                traced.taps.append((f"{path} input", traced.inputs[path][0]))
                output = original(module, x, *more)
                traced.taps.append((f"{path} output", self._numpy(output)))
                return output

            return call

        with self._here(), ExitStack() as stack:
            for kind in {type(module) for module in self.network.modules() if id(module) in paths}:
                stack.enter_context(replaced(kind, "__call__", watched(kind.__call__)))
            stack.enter_context(replaced(self.network, "gradient_checkpointing", False))
            mx.eval(model.loss(self.network, to_device(batch, self.device), _key(key)))
        return traced

    def dropped(self, tokens: Tokens, key: Array) -> list[Dropped]:
        found, drop = [], layers.dropout

        def watched(x: mx.array, rate: float, *more: Any) -> mx.array:
            y = drop(x, rate, *more)
            found.append(Dropped.between(self._numpy(x), self._numpy(y), rate))
            return y

        with self._here(), replaced(attention, "dropout", watched), replaced(model, "dropout", watched):
            mx.eval(self.network(mx.array(tokens), layers.as_key(key, self.config.model.dropout_rng)))
        return found

    def update(self, gradients: Arrays, step: int, rate: float) -> float:
        with self._here():
            tree = tree_unflatten([(name, mx.array(value)) for name, value in gradients.items()])
            optim.set_step(self.optimizer, step + 1, rate)
            norm = self.train_step.update(tree)
            mx.eval(norm, self.network.parameters(), self.optimizer.state)
            return float(norm)

    def restore(self, path: Path) -> int:
        with self._here():
            self._forget()
            self.resumed_at = checkpoint.load_checkpoint(path, self.network, self.optimizer).step
            self._after_loading()
            return self.resumed_at

    def generate(self, prompt: Sequence[int], settings: SampleSettings, draws: Iterator[float]) -> list[int]:
        with self._here():
            return list(sample.generate(self.network, prompt, settings, draws))

    # ---- numpy and back ------------------------------------------------------------------------------------------

    def _here(self) -> AbstractContextManager[Any]:
        """`mlx` and `mlx-cpu` live in one process."""
        return mx.stream(self.device)

    def _forward(self, tokens: Tokens, caches: Any) -> Array:
        return self._numpy(self.network(mx.array(tokens), caches=caches))

    def _save_tensors(self, folder: Path) -> None:
        checkpoint.save_tensors(folder, self.network, self.optimizer)

    def _like(self, tensor: mx.array, values: Array) -> mx.array:
        return mx.array(values.astype(np.float32)).astype(tensor.dtype)

    @staticmethod
    def _numpy(tensor: mx.array) -> Array:
        return np.array(tensor.astype(mx.float32) if mx.issubdtype(tensor.dtype, mx.floating) else tensor)

    def _array(self, values: Array) -> mx.array:
        return mx.array(values.astype(np.float32)).astype(self.dtype)


def _key(words: Array | None) -> mx.array | None:
    return None if words is None else mx.array(words)


def _flat(tree: Any) -> list[tuple[str, mx.array]]:
    return list(tree_flatten(tree))  # type: ignore[arg-type]


def _with(layer: Any, weight: mx.array, bias: mx.array | None) -> Any:
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    return layer


def _rotary(x_BHTK: mx.array, config: ModelConfig) -> mx.array:
    angles = layers.Rotary(config).angles(0, x_BHTK.shape[2])
    return layers.ROTATIONS[config.rope_layout](x_BHTK, angles)


def _router(x_ND: mx.array, weight_ED: mx.array, config: ModelConfig) -> mx.array:
    """The gate of every expert, zero for those not chosen, and how unevenly they are chosen: (N + 1, E)."""
    router = experts.MixtureOfExperts(config)
    router.router.weight = weight_ED
    if config.balancing == "bias":
        router.routing_bias = mx.array(routing_bias(config))
    gates_NK, experts_NK = router.route(x_ND)
    gates_NE = (gates_NK[..., None] * (experts_NK[..., None] == mx.arange(config.n_expert))).sum(axis=1)
    imbalance = router.routing.imbalance  # type: ignore[union-attr]
    return mx.concatenate([gates_NE, mx.broadcast_to(imbalance, (1, config.n_expert))])


OPERATIONS: dict[str, Callable[..., mx.array]] = {
    "linear": lambda x, weight, bias=None: _with(
        layers.Linear(weight.shape[1], weight.shape[0], bias is not None), weight, bias
    )(x),
    "layer_norm": lambda x, weight, bias=None: _with(
        layers.LayerNorm(weight.shape[0], 1e-5, bias is not None), weight, bias
    )(x),
    "rms_norm": lambda x, weight: _with(layers.RMSNorm(weight.shape[0], 1e-5), weight, None)(x),
    "rotary": _rotary,
    "silu_product": lambda gate, up: kernels.silu(gate) * up,
    "relu2": lambda x: feed_forward.ACTIVATIONS["relu2"](x),
    "stacked_linear": lambda x, weight, expert_M: _with(
        layers.StackedLinear(weight.shape[0], weight.shape[2], weight.shape[1]), weight, None
    )(x, expert_M),
    "router": _router,
    "orthogonal": lambda x: optim.orthogonal(x),
    "gelu": kernels.gelu,
    "gelu_tanh": lambda x: nn.gelu_approx(x),
    "embedding": lambda table, ids, dtype: _with(layers.Embedding(*table.shape), table, None)(ids, dtype),
    "attention": lambda q, k, v: attention.causal_attention(q, k, v, q.shape[-1] ** -0.5),
    "softmax": lambda x: kernels.softmax(kernels.upcast(x)),
    "dropout": lambda x, key: layers.dropout(x, 0.2, key, 3, "shared"),
    "cross_entropy": lambda logits, labels: kernels.cross_entropy(logits, labels).mean(),
}
"""The building blocks of the model, by the name that rungs/operations.py uses."""
