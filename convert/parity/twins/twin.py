"""What the ladder asks of a twin on a backend, and what both answer alike. Numpy in, numpy out."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from convert.parity.compare import Array, Arrays, Tokens, relative
from convert.parity.twins.choices import Choices, Preferences
from convert.parity.twins.replaced import replaced
from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.adapting.quantisation import Grids, stored_shapes
from gpt_common.commands import SampleSettings
from gpt_common.config import ModelConfig, RunConfig, to_dict
from gpt_common.data.batches import NumpyBatch
from gpt_common.network.parameters import buffer_shapes, tensor_shapes
from gpt_common.training.checkpoint import place_of, write_checkpoint
from gpt_common.training.manifest import MODEL_FILE, Manifest, base_entry

if TYPE_CHECKING:
    import mlx_gpt.model
    import mlx_gpt.train
    import torch_gpt.model
    import torch_gpt.train

ComputeDtype = Literal["float32", "float64", "bfloat16"]
Batches = Sequence[NumpyBatch]


@dataclass(frozen=True)
class Dropped:
    """What one site of dropout made of its numbers."""

    zeros: int
    """Numbers other than zero that became zero."""
    numbers: int
    """Numbers other than zero."""
    scaled_wrongly: float
    """Relative distance of what was kept from what it should be."""

    @classmethod
    def between(cls, before: Array, after: Array, rate: float) -> Dropped:
        """Count what dropout at `rate` did; a weight that the mask has set to zero is none that it dropped."""
        kept = after != 0
        return cls(
            zeros=int(((before != 0) & ~kept).sum()),
            numbers=int((before != 0).sum()),
            scaled_wrongly=relative(after[kept], before[kept] / (1 - rate)),
        )


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


class Twin(ABC):
    """A model and its optimiser on one backend."""

    config: RunConfig
    grids: Grids
    """Its quantised matrices."""
    compiled: bool
    network: mlx_gpt.model.GPT | torch_gpt.model.GPT
    train_step: mlx_gpt.train.TrainStep | torch_gpt.train.TrainStep
    resumed_at: int
    """Step of the checkpoint that was restored last; 0 before."""

    # ---- weights -------------------------------------------------------------------------------------------------

    def initialise(self, seed: int) -> None:
        """Initial weights as the trainer draws them."""
        with self._here():
            self.network.initialise(seed)
            self._forget()

    @abstractmethod
    def set_weights(self, weights: Arrays) -> None:
        """Replace every parameter, and forget the optimiser's state; buffers that are not given become zero."""

    def weights(self) -> Arrays:
        """Every parameter by canonical name."""
        return {name: self._numpy(value) for name, value in self.network.named_parameters()}

    def buffers(self) -> Arrays:
        """Every buffer by canonical name."""
        places = self.network.state_dict()
        return {name: self._numpy(places[name]) for name in buffer_shapes(self.config.model)}

    @abstractmethod
    def moments(self) -> Arrays:
        """exp_avg.<name> and exp_avg_sq.<name>, or momentum.<name>."""

    def loads(self) -> list[list[int]]:
        """Tokens that each expert of each router got in the training steps since this was last asked."""
        return self.network.routers.take_loads()

    @contextmanager
    def choosing(self, given: Choices | None = None) -> Iterator[Choices]:
        """What every router prefers, call by call, in the passes made meanwhile; compiled ones cannot be watched.

        Args:
            given: choose by these preferences instead.
        """
        preferred = Preferences(given)
        with ExitStack() as stack:
            for router in () if self.compiled else self.network.routers.layers:
                right = router.choice

                def choice(scores_NE: Any, right: Any = right, router: Any = router) -> Any:
                    own_NE = right(scores_NE)
                    return self._like(own_NE, preferred.decide(router, self._numpy(own_NE)))

                stack.enter_context(replaced(router, "choice", choice))
            yield preferred.own

    # ---- one pass ------------------------------------------------------------------------------------------------

    def logits(self, tokens: Tokens) -> Array:
        """(B, T) ids -> (B, T, V), without dropout."""
        with self._here():
            return self._forward(tokens, None)

    def cached_logits(self, tokens: Tokens) -> Array:
        """The same through the key-value cache: half of the tokens at once, then one at a time."""
        half = max(1, tokens.shape[1] // 2)
        parts = [tokens[:, :half], *(tokens[:, t : t + 1] for t in range(half, tokens.shape[1]))]
        with self._here():
            caches = self.network.new_caches()
            return np.concatenate([self._forward(part, caches) for part in parts], axis=1)

    @abstractmethod
    def gradients(self, batch: NumpyBatch, key: Array | None = None) -> tuple[float, Arrays]:
        """Loss in nats per token, and the gradient of every parameter."""

    @abstractmethod
    def layer(self, path: str, inputs: tuple[Array, ...], upstream: Array, key: Array | None) -> LayerPass:
        """One module of the model on its own."""

    @abstractmethod
    def operation(self, operation: Operation, upstream: Array) -> LayerPass:
        """One building block on its own; gradients are named "input 0", "parameter 0", ..."""

    @abstractmethod
    def trace(self, batch: NumpyBatch, key: Array | None) -> Traced:
        """A whole pass with a tap at every module; MLX gives no upstream gradients."""

    @abstractmethod
    def dropped(self, tokens: Tokens, key: Array) -> list[Dropped]:
        """What dropout does in a forward pass of (B, T) ids, site after site in execution order."""

    # ---- training ------------------------------------------------------------------------------------------------

    @abstractmethod
    def update(self, gradients: Arrays, step: int, rate: float) -> float:
        """Clip and update number `step` (from 0) with given gradients; returns the norm before clipping."""

    def step(self, batches: Batches, step: int, rate: float) -> tuple[float, float]:
        """One training step as the trainer does it; loss and gradient norm."""
        with self._here():
            loss, norm = self.train_step(batches, step, rate)
            return float(loss), float(norm)

    def save(self, folder: Path, step: int) -> Path:
        """Write a checkpoint of `step` updates into a run folder; returns its path."""
        manifest = Manifest(step=step, config=to_dict(self.config))
        with self._here():
            if self.config.adapter.adapts:
                entry = base_entry(self._saved_base(folder / "base"), place_of(folder, step))
                manifest = dataclasses.replace(manifest, base=entry)
            return write_checkpoint(folder, manifest, write_files=self._save_tensors, best=False, keep=2)

    def _saved_base(self, folder: Path) -> Path:
        """What the adapters stand beside, as a checkpoint; written once."""
        from safetensors.numpy import save_file

        place = place_of(folder, 0)
        if not place.exists():
            names = stored_shapes(tensor_shapes(self.config.model), self.grids)
            tensors = {name: self._numpy(value) for name, value in self.network.state_dict().items() if name in names}
            tensors |= {f"{layer}.weight": tensors[f"{layer}.weight"].view(np.uint32) for layer in self.grids}
            plain = dataclasses.replace(self.config, adapter=AdapterConfig())
            save = lambda into: save_file(tensors, into / MODEL_FILE)  # noqa: E731
            write_checkpoint(folder, Manifest(step=0, config=to_dict(plain)), write_files=save, best=False, keep=1)
        return place

    @abstractmethod
    def restore(self, path: Path) -> int:
        """Take up a checkpoint; returns its step."""

    @abstractmethod
    def generate(self, prompt: Sequence[int], settings: SampleSettings, draws: Iterator[float]) -> list[int]:
        """New token ids."""

    # ---- what the framework decides ------------------------------------------------------------------------------

    def _here(self) -> AbstractContextManager[Any]:
        """Compute on this twin's device."""
        return nullcontext()

    @abstractmethod
    def _forget(self) -> None:
        """Begin training anew, from the weights that there are."""

    @abstractmethod
    def _forward(self, tokens: Tokens, caches: Any) -> Array: ...

    @abstractmethod
    def _save_tensors(self, folder: Path) -> None: ...

    @abstractmethod
    def _like(self, tensor: Any, values: Array) -> Any:
        """Numpy's values as a tensor of this framework, where and of the dtype that `tensor` is."""

    @staticmethod
    @abstractmethod
    def _numpy(tensor: Any) -> Array:
        """Integers and float64 stay what they are, everything else becomes float32."""

    def _angles(self, inputs: Array) -> Any:
        rotary = self.network.rotary
        return None if rotary is None else rotary.angles(0, inputs.shape[1])
