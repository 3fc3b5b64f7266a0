"""What a worker times: a model on a backend that can do one training step and wait for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.measuring.backends import Backend
from benchmarks.readings import Compilation
from convert.formats.names import CONV1D, GPT2, translate
from gpt_common.config import RunConfig
from gpt_common.data.batches import NumpyBatch, training_batch
from gpt_common.keyed import keyed_generator
from gpt_common.network.init import initial_weights
from gpt_common.network.parameters import parameter_shapes, trained_shapes
from gpt_common.training.schedule import learning_rate

Batches = list[NumpyBatch]
CORPUS_TOKENS = 1_000_000


class Absent(Exception):
    """This backend cannot run here, or cannot do this work; says why."""


class Refused(Exception):
    """A peer's code that the person named cannot be used, or computes something else than ours; says how."""


class Work(Protocol):
    """A model, its optimiser, and how to wait for them."""

    description: str
    """Framework, version and device."""
    device: str
    """"cpu", "gpu", "mps" or "cuda"."""
    dtype: str
    """Compute dtype."""
    model: Any
    """The model at work."""
    notes: list[str]
    """In what this work differs from the others', if it does."""

    def step(self, batches: Batches, step: int, rate: float) -> None:
        """Queue one optimiser step: forward, backward, clip, AdamW, zero."""

    def wait(self) -> None:
        """Until all that was queued is done."""

    def force(self) -> float:
        """Loss of the last step and one updated weight, copied to the host: nothing can be unfinished after it."""

    def loss(self) -> float:
        """Loss of the last step, nats per token."""

    def product(self, n: int) -> Callable[[], None]:
        """A function that queues one product of two n x n matrices in the compute dtype."""

    def weight_bytes(self) -> int:
        """Of all tensors that the model holds, without adapters beside them."""

    def memory(self) -> dict[str, int | None]:
        """`peak` and `cache` bytes of the framework's allocator, None where it does not say."""

    def compilation(self) -> Compilation | None:
        """What compilation did so far; None if nothing is compiled."""

    def generate(self, prompt: Sequence[int], tokens: int) -> Iterator[int]:
        """Greedy continuation, one token at a time, with a key-value cache."""


def run_steps(work: Work, config: RunConfig, steps: Iterable[tuple[int, Batches]]) -> None:
    """Do the steps that `Batcher.take` gave, at the schedule's learning rates, and wait for them."""
    for number, batches in steps:
        work.step(batches, number, learning_rate(number, config.optim, config.train.max_steps))
    work.wait()


def weight_bytes(sizes: Mapping[str, int], config: RunConfig) -> int:
    """Bytes of a model's tensors without the adapters beside them.

    Args:
        sizes: bytes by name.
    """
    adapters = trained_shapes(config.model, config.adapter).keys() - parameter_shapes(config.model).keys()
    return sum(size for name, size in sizes.items() if name not in adapters)


OpenWork = Callable[[Backend, RunConfig], Work]
"""`worker.open_work`."""


def gpt2_weights(config: RunConfig, *, conv1d: bool = False) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Our initial weights under the names that published implementations of GPT-2 give them.

    Args:
        conv1d: matrices of blocks transposed, as transformers keeps them.
    """
    for name, array in initial_weights(config.model, config.train.seed):
        foreign = translate(name, GPT2)
        assert foreign is not None
        yield foreign, array.T.copy() if conv1d and name.endswith(CONV1D) else array


class Batcher:
    """The batches of every step, equal for all backends: random tokens, for speed does not depend on their meaning."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        generator = keyed_generator(config.train.seed, "benchmark tokens")
        self._tokens = generator.integers(0, config.model.vocab_size, CORPUS_TOKENS).astype(np.uint16)
        self.next_step = 0

    def take(self, steps: int) -> list[tuple[int, Batches]]:
        """The next `steps` steps: their numbers, and the batch of every micro-step."""
        numbers = range(self.next_step, self.next_step + steps)
        self.next_step += steps
        return [(step, self._batches(step)) for step in numbers]

    def _batches(self, step: int) -> Batches:
        train, block_size = self._config.train, self._config.model.block_size
        return [
            training_batch(
                self._tokens,
                block_size=block_size,
                batch_size=train.batch_size,
                seed=train.seed,
                step=step,
                micro_step=micro_step,
            )
            for micro_step in range(train.grad_accum_steps)
        ]
