"""What the ladder asks of a twin on a backend. Numpy in, numpy out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from convert.parity.compare import Array, Arrays, Tokens
from gpt_common.commands import SampleSettings
from gpt_common.config import ModelConfig, RunConfig
from gpt_common.data.batches import NumpyBatch

ComputeDtype = Literal["float32", "float64", "bfloat16"]
Batches = Sequence[NumpyBatch]
Choices = list[Array]
"""What routers prefer, (N, E) per call: scores with what balancing adds, before groups and the best are taken."""


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

    def gradients(self, batch: NumpyBatch, key: Array | None = None) -> tuple[float, Arrays]:
        """Loss in nats per token, and the gradient of every parameter."""

    def layer(self, path: str, inputs: tuple[Array, ...], upstream: Array, key: Array | None) -> LayerPass:
        """One module of the model on its own."""

    def operation(self, operation: Operation, upstream: Array) -> LayerPass:
        """One building block on its own; gradients are named "input 0", "parameter 0", ..."""

    def trace(self, batch: NumpyBatch, key: Array | None) -> Traced:
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
