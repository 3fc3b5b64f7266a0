"""The PyTorch twin as the ladder sees it; in float64 on a CPU it is the oracle."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from convert.parity.compare import Array, Arrays, Tokens
from convert.parity.twins.choices import routing_bias
from convert.parity.twins.replaced import replaced
from convert.parity.twins.twin import INPUTS, ComputeDtype, Dropped, LayerPass, Operation, Traced, Twin
from gpt_common.adapting.quantisation import Grids
from gpt_common.commands import SampleSettings
from gpt_common.config import ModelConfig, RunConfig
from gpt_common.data.batches import NumpyBatch
from gpt_common.machine.backends import Backend
from gpt_common.network.parameters import buffer_shapes
from torch_gpt import attention, checkpoint, experts, feed_forward, kernels, layers, model, optim, sample, train
from torch_gpt.device import to_device


class TorchTwin(Twin):
    """A model and its optimiser on one PyTorch backend."""

    network: model.GPT

    def __init__(self, config: RunConfig, backend: Backend, dtype: ComputeDtype, grids: Grids) -> None:
        self.config, self.grids = config, grids
        self.device = torch.device(backend.device)
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.compiled = backend.compiled
        again = config.train.gradient_checkpointing
        self.network = model.GPT(config.model, self.dtype, again, config.adapter, grids).to(self.device)
        if self.dtype == torch.float64:
            self.network.double()
        self.objective: Callable[..., Any] = torch.compile(model.objective) if self.compiled else model.objective
        self._forget()

    def _forget(self) -> None:
        self.resumed_at = 0
        self.optimizer = optim.build_optimizer(self.network, self.config.optim)
        self.train_step = train.TrainStep(self.network, self.optimizer, self.config, self.compiled)

    def set_weights(self, weights: Arrays) -> None:
        places = self.network.state_dict()
        with torch.no_grad():
            for name in buffer_shapes(self.config.model):
                places[name].zero_()
            for name, value in weights.items():
                places[name].copy_(kernels.as_words(torch.from_numpy(value)))
        self._forget()

    def moments(self) -> Arrays:
        tensors = optim.optimizer_tensors(self.network, self.optimizer)
        return {name: self._numpy(value) for name, value in tensors.items()}

    def gradients(self, batch: NumpyBatch, key: Array | None = None) -> tuple[float, Arrays]:
        value, loss = self.objective(self.network, to_device(batch, self.device), self._key(key))
        value.backward()
        self.network.routers.take_loads()  # of no training step
        gradients = {name: self._numpy(p.grad) for name, p in self.network.named_parameters() if p.grad is not None}
        self.network.zero_grad(set_to_none=True)
        return float(loss.detach()), gradients

    def layer(self, path: str, inputs: tuple[Array, ...], upstream: Array, key: Array | None) -> LayerPass:
        module = self.network.get_submodule(path)
        takes = inspect.signature(module.forward).parameters
        arguments: list[Any] = [
            self._ids(x) if x.dtype.kind == "i" else self._tensor(x).requires_grad_() for x in inputs
        ]
        differentiable = {INPUTS[i]: x for i, x in enumerate(arguments) if x.requires_grad}
        if "dtype" in takes:
            arguments.append(self.dtype)
        if "key" in takes:
            arguments += [self._key(key), None, self._angles(inputs[0])]
        output = module(*arguments)
        output.backward(self._tensor(upstream))
        gradients = {name: self._numpy(p.grad) for name, p in module.named_parameters() if p.grad is not None}
        gradients |= {name: self._numpy(x.grad) for name, x in differentiable.items()}
        module.zero_grad(set_to_none=True)
        return LayerPass(self._numpy(output), gradients)

    def operation(self, operation: Operation, upstream: Array) -> LayerPass:
        exact = torch.float64 if self.dtype == torch.float64 else torch.float32
        values = {f"input {i}": self._tensor(value) for i, value in enumerate(operation.inputs)}
        values |= {
            f"parameter {i}": torch.from_numpy(value).to(self.device, exact)
            for i, value in enumerate(operation.parameters)
        }
        for value in values.values():
            value.requires_grad_()
        more: list[Any] = [self.dtype] if operation.kind == "embedding" else []
        if operation.integers is not None:
            # Ids are computed with on the device; the words of a dropout key stay where they are.
            words = operation.kind == "dropout"
            more.insert(0, self._key(operation.integers) if words else self._ids(operation.integers))
        if operation.model is not None:
            more.append(operation.model)
        output = OPERATIONS[operation.kind](*values.values(), *more)
        output.backward(torch.from_numpy(upstream).to(self.device, output.dtype))
        return LayerPass(self._numpy(output), {name: self._numpy(value.grad) for name, value in values.items()})

    def trace(self, batch: NumpyBatch, key: Array | None) -> Traced:
        traced = Traced([], {}, {})
        hooks = []

        def watch(path: str, module: nn.Module) -> None:
            def before(module: nn.Module, arguments: tuple[Any, ...]) -> None:
                takes = inspect.signature(module.forward).parameters
                alone = arguments[:1] if "key" in takes or "dtype" in takes else arguments
                traced.inputs[path] = tuple(self._numpy(x) for x in alone)
                traced.taps.append((f"{path} input", traced.inputs[path][0]))

            def after(_: nn.Module, __: tuple[Any, ...], output: torch.Tensor) -> None:
                traced.taps.append((f"{path} output", self._numpy(output)))
                output.register_hook(lambda gradient: traced.upstream.__setitem__(path, self._numpy(gradient)))

            hooks.append(module.register_forward_pre_hook(before))
            hooks.append(module.register_forward_hook(after))

        for path, module in self.network.named_modules():
            if path and not isinstance(module, nn.ModuleList):
                watch(path, module)
        try:
            model.loss(self.network, to_device(batch, self.device), self._key(key)).backward()
        finally:
            for hook in hooks:
                hook.remove()
            self.network.zero_grad(set_to_none=True)
        return traced

    @torch.no_grad()
    def dropped(self, tokens: Tokens, key: Array) -> list[Dropped]:
        found, drop, attend = [], layers.dropout, attention.causal_attention

        def watched(x: torch.Tensor, rate: float, *more: Any) -> torch.Tensor:
            y = drop(x, rate, *more)
            found.append(Dropped.between(self._numpy(x), self._numpy(y), rate))
            return y

        def fused(
            q: torch.Tensor, k_BGSK: torch.Tensor, v_BGSV: torch.Tensor, scale: float, rate: float
        ) -> torch.Tensor:
            # Native dropout of weights is within PyTorch's attention: over an identity it finds the weights themselves.
            one_BGSS = torch.eye(k_BGSK.shape[2]).to(k_BGSK).expand(*k_BGSK.shape[:3], -1)
            y_BHTS = attend(q, k_BGSK, one_BGSS, scale, rate)
            before_BHTS = attend(q, k_BGSK, one_BGSS, scale, 0.0)
            found.append(Dropped.between(self._numpy(before_BHTS), self._numpy(y_BHTS), rate))
            return y_BHTS @ v_BGSV.repeat_interleave(q.shape[1] // v_BGSV.shape[1], dim=1)

        with (
            replaced(attention, "dropout", watched),
            replaced(model, "dropout", watched),
            replaced(attention, "causal_attention", fused),
        ):
            self.network(self._ids(tokens), layers.as_key(key, self.config.model.dropout_rng))
        return found

    def update(self, gradients: Arrays, step: int, rate: float) -> float:
        for name, parameter in self.network.named_parameters():
            # A copy: clipping works in place.
            parameter.grad = torch.from_numpy(gradients[name]).to(self.device, parameter.dtype, copy=True)
        norm = optim.clip_gradients(self.network, self.config.optim.grad_clip)
        optim.set_step(self.optimizer, step + 1, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def restore(self, path: Path) -> int:
        self._forget()
        self.resumed_at = checkpoint.load_checkpoint(path, self.network, self.optimizer).step
        return self.resumed_at

    def generate(self, prompt: Sequence[int], settings: SampleSettings, draws: Iterator[float]) -> list[int]:
        return list(sample.generate(self.network, prompt, settings, draws))

    # ---- numpy and back ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _forward(self, tokens: Tokens, caches: Any) -> Array:
        return self._numpy(self.network(self._ids(tokens), caches=caches))

    def _save_tensors(self, folder: Path) -> None:
        checkpoint.save_tensors(folder, self.network, self.optimizer)

    def _like(self, tensor: torch.Tensor, values: Array) -> torch.Tensor:
        return torch.from_numpy(values).to(tensor)

    @staticmethod
    def _numpy(tensor: Any) -> Array:
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point() and tensor.dtype != torch.float64:
            tensor = tensor.float()
        return np.array(tensor.numpy())

    def _ids(self, ids: Array) -> torch.Tensor:
        return torch.from_numpy(ids).to(self.device, torch.long)

    def _tensor(self, values: Array) -> torch.Tensor:
        return torch.from_numpy(values).to(self.device, self.dtype)

    def _key(self, words: Array | None) -> torch.Tensor | None:
        return None if words is None else torch.from_numpy(words)


def _call(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None, *arguments: Any) -> torch.Tensor:
    parameters = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    return functional_call(layer, parameters, arguments)


def _rotary(x_BHTK: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    angles = layers.Rotary(config).to(x_BHTK.device).angles(0, x_BHTK.shape[2])
    return layers.ROTATIONS[config.rope_layout](x_BHTK, angles)


class _Router(experts.MixtureOfExperts):
    """The gate of every expert, zero for those not chosen, and how unevenly they are chosen."""

    def forward(self, x_ND: torch.Tensor) -> torch.Tensor:
        """(N, D) -> (N + 1, E)."""
        gates_NK, experts_NK = self.route(x_ND)
        assert self.routing is not None
        E = self.config.n_expert
        gates_NE = torch.zeros(len(x_ND), E, dtype=gates_NK.dtype, device=x_ND.device)
        return torch.cat([gates_NE.scatter(1, experts_NK, gates_NK), self.routing.imbalance.expand(1, E)])


def _router(x_ND: torch.Tensor, weight_ED: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    router = _Router(config).to(x_ND.device)
    if config.balancing == "bias":
        router.routing_bias.copy_(torch.from_numpy(routing_bias(config)))
    return functional_call(router, {"router.weight": weight_ED}, (x_ND,))


OPERATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "linear": lambda x, weight, bias=None: _call(
        layers.Linear(weight.shape[1], weight.shape[0], bias is not None), weight, bias, x
    ),
    "layer_norm": lambda x, weight, bias=None: _call(
        layers.LayerNorm(weight.shape[0], 1e-5, bias is not None), weight, bias, x
    ),
    "rms_norm": lambda x, weight: _call(layers.RMSNorm(weight.shape[0], 1e-5), weight, None, x),
    "rotary": _rotary,
    "silu_product": lambda gate, up: kernels.silu(gate) * up,
    "relu2": feed_forward.ACTIVATIONS["relu2"],
    "stacked_linear": lambda x, weight, expert_M: _call(
        layers.StackedLinear(weight.shape[0], weight.shape[2], weight.shape[1]), weight, None, x, expert_M
    ),
    "router": _router,
    "orthogonal": optim.orthogonal,
    "gelu": kernels.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "embedding": lambda table, ids, dtype: _call(layers.Embedding(*table.shape), table, None, ids, dtype),
    "attention": lambda q, k, v: attention.causal_attention(q, k, v, q.shape[-1] ** -0.5, 0.0),
    "softmax": lambda x: kernels.softmax(kernels.upcast(x)),
    "dropout": lambda x, key: layers.dropout(x, 0.2, key, 3, "shared"),
    "cross_entropy": lambda logits, labels: kernels.cross_entropy(logits, labels).mean(),
}
"""The building blocks of the model, by the name that rungs/operations.py uses."""
