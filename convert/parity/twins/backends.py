"""The backends: which there are, which are present here, and what the ladder asks of each. Numpy in, numpy out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from convert.parity.compare import Array, Arrays, Tokens
from gpt_common.cli import SampleSettings
from gpt_common.config import ModelConfig, RunConfig
from gpt_common.errors import UserError, nearest

ComputeDtype = Literal["float32", "float64", "bfloat16"]
Batches = Sequence[tuple[Tokens, Tokens]]
Choices = list[Array]
"""What routers prefer, (N, E) per call: scores with what balancing adds, before groups and the best are taken."""


@dataclass(frozen=True)
class Backend:
    """A framework on a device, eager or compiled."""

    name: str
    framework: Literal["mlx", "torch"]
    device: str
    compiled: bool = False


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("mlx", "mlx", "gpu", compiled=True),  # as the trainer does on a GPU
        Backend("mlx-cpu", "mlx", "cpu"),
        Backend("mlx-cpu-compiled", "mlx", "cpu", compiled=True),
        Backend("cpu", "torch", "cpu"),
        Backend("cpu-compiled", "torch", "cpu", compiled=True),
        Backend("mps", "torch", "mps"),
        Backend("mps-compiled", "torch", "mps", compiled=True),
        Backend("cuda", "torch", "cuda"),
        Backend("cuda-compiled", "torch", "cuda", compiled=True),
    )
}


@dataclass(frozen=True)
class Traced:
    """One forward and backward pass, seen from inside."""

    taps: list[tuple[str, Array]]
    """Every module's input and output in execution order: ("blocks.0.attention input", array)."""
    inputs: dict[str, tuple[Array, ...]]
    """The arrays that each module was given, by path, parents before their children; no keys, caches and angles."""
    upstream: Arrays
    """Gradient of the loss with respect to each module's output, by path."""


@dataclass(frozen=True)
class LayerPass:
    """One module or operation, forward and backward, from a given input and a given upstream gradient."""

    output: Array
    gradients: Arrays
    """By parameter name; "input" for the input's, which embeddings do not have, "input 1" for the next's."""


INPUTS = ("input", "input 1", "input 2")
"""Names of a module's arguments in `LayerPass.gradients`."""


@dataclass(frozen=True)
class Operation:
    """One call of a building block of the model."""

    name: str
    kind: str
    """Key of OPERATIONS in torch_twin.py and mlx_twin.py."""
    inputs: tuple[Array, ...]
    """Activations: given in the compute dtype."""
    output: tuple[int, ...]
    """Shape of the output, for the upstream gradient."""
    parameters: tuple[Array, ...] = ()
    """Given in float32, as in the model."""
    integers: Array | None = None
    """Token ids, the words of a dropout key, or the expert of each row."""
    model: ModelConfig | None = None
    """What kind of router it is, or how it rotates."""
    long_sum: bool = False
    trained_through: bool = True
    """Whether training ever takes its gradient."""


class Twin(Protocol):
    """A model and its optimiser on one backend."""

    config: RunConfig
    resumed_at: int
    """Step of the checkpoint that was restored last; 0 before."""

    def initialise(self, seed: int) -> None:
        """Initial weights as the trainer draws them."""

    def set_weights(self, weights: Arrays) -> None:
        """Replace every parameter, and forget the optimiser's state; buffers that are not given become zero."""

    def weights(self) -> Arrays:
        """Every parameter by canonical name."""

    def buffers(self) -> Arrays:
        """Every buffer by canonical name."""

    def moments(self) -> Arrays:
        """exp_avg.<name> and exp_avg_sq.<name>, or momentum.<name>."""

    def loads(self) -> list[list[int]]:
        """Tokens that each expert of each router got in the training steps since this was last asked."""

    def choosing(self, given: Choices | None = None) -> AbstractContextManager[Choices]:
        """What every router prefers, call by call, in the passes made meanwhile; compiled ones cannot be watched.

        Args:
            given: choose by these preferences instead.
        """

    def logits(self, tokens: Tokens) -> Array:
        """(B, T) ids -> (B, T, V), without dropout."""

    def cached_logits(self, tokens: Tokens) -> Array:
        """The same through the key-value cache: half of the tokens at once, then one at a time."""

    def gradients(self, tokens: Tokens, labels: Tokens, key: Array | None = None) -> tuple[float, Arrays]:
        """Loss in nats per token, and the gradient of every parameter."""

    def layer(self, path: str, inputs: tuple[Array, ...], upstream: Array, key: Array | None) -> LayerPass:
        """One module of the model on its own."""

    def operation(self, operation: Operation, upstream: Array) -> LayerPass:
        """One building block on its own; gradients are named "input 0", "parameter 0", ..."""

    def trace(self, tokens: Tokens, labels: Tokens, key: Array | None) -> Traced:
        """A whole pass with a tap at every module; MLX gives no upstream gradients."""

    def update(self, gradients: Arrays, step: int, rate: float) -> float:
        """Clip and update number `step` (from 0) with given gradients; returns the norm before clipping."""

    def step(self, batches: Batches, step: int, rate: float) -> tuple[float, float]:
        """One training step as the trainer does it; loss and gradient norm."""

    def save(self, folder: Path, step: int) -> Path:
        """Write a checkpoint of `step` updates into a run folder; returns its path."""

    def restore(self, checkpoint: Path) -> int:
        """Take up a checkpoint; returns its step."""

    def generate(self, prompt: Sequence[int], settings: SampleSettings, draws: Iterator[float]) -> list[int]:
        """New token ids."""


def open_twin(backend: Backend, config: RunConfig, dtype: ComputeDtype) -> Twin:
    """A twin with zero weights on a backend that is present."""
    if backend.framework == "mlx":
        from convert.parity.twins.mlx_twin import MlxTwin

        return MlxTwin(config, backend, dtype)
    from convert.parity.twins.torch_twin import TorchTwin

    return TorchTwin(config, backend, dtype)


def absent() -> dict[str, str]:
    """The backends that cannot run here, and why."""
    reasons: dict[str, str] = {}
    try:
        import mlx_gpt.device

        if not mlx_gpt.device.has_gpu():
            reasons |= dict.fromkeys(_names("mlx", "gpu"), "MLX finds neither Metal nor CUDA")
    except ImportError as error:
        reasons |= dict.fromkeys(_names("mlx"), f"MLX cannot be imported ({error})")
    try:
        import torch

        if not torch.backends.mps.is_available():
            reasons |= dict.fromkeys(_names("torch", "mps"), "PyTorch finds no MPS")
        if not torch.cuda.is_available():
            reasons |= dict.fromkeys(_names("torch", "cuda"), "PyTorch finds no CUDA")
    except ImportError as error:
        reasons |= dict.fromkeys(_names("torch"), f"PyTorch cannot be imported ({error})")
    return reasons


def _names(framework: str, device: str | None = None) -> list[str]:
    return [b.name for b in BACKENDS.values() if b.framework == framework and device in (None, b.device)]


def choose(names: Sequence[str]) -> tuple[list[Backend], dict[str, str]]:
    """The backends to compare, and those left out with the reason. No names: every eager one that is present.

    Raises:
        UserError: an unknown name, a backend that is not present, or none to compare.
    """
    missing = absent()
    for name in names:
        if name not in BACKENDS:
            raise UserError(f"no backend '{name}': {nearest(name, BACKENDS)}")
        if name in missing:
            raise UserError(f"backend {name} is not present here: {missing[name]}")
    eager = [b for b in BACKENDS.values() if b.name == "mlx" or not b.compiled]
    chosen = [BACKENDS[name] for name in names] or [b for b in eager if b.name not in missing]
    if len(chosen) < 2:
        raise UserError(f"parity needs two backends, found {', '.join(b.name for b in chosen) or 'none'}: see --help")
    return chosen, {} if names else missing
