"""Several processes that train one model, each with its share of the micro-steps. In PyTorch: torch_gpt/distributed.py.

Their gradients are added up in one flat reduction before the clip; with the loss, what balances experts, and what has
to be agreed on. Batches and dropout are keyed by micro-step, whoever does it: any number of ranks trains one model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from gpt_common.errors import UserError
from gpt_common.training.ranks.agreement import Agreement, Array
from gpt_common.training.ranks.pulse import meeting
from gpt_common.training.ranks.wire import Place, Wire, met
from gpt_common.words import say
from mlx_gpt.model import GPT


class Ranks(Agreement):
    """This process among those that train a model.

    Args:
        group: how they are reached; None: there is no other.
    """

    def __init__(self, group: mx.distributed.Group | None = None) -> None:
        super().__init__(*((0, 1) if group is None else (group.rank(), group.size())))
        self.group = group

    def gather(self, text: str) -> list[str]:
        """What every rank has to say, by rank; all must call it, and wait until all have."""
        if self.group is None:
            return [text]
        words = np.frombuffer(text.encode(), np.uint8)
        with self.waiting():
            lengths: Any = self.gathered(mx.array([len(words)])).flatten().tolist()
            padded = np.zeros(max(*lengths, 1), np.uint8)
            padded[: len(words)] = words
            rows = np.array(self.gathered(mx.array(padded)))
        return [bytes(row[:length]).decode() for row, length in zip(rows, lengths, strict=True)]

    def gathered(self, values: mx.array) -> mx.array:
        """(N,) of this rank -> (W, N) of all of them."""
        rows = mx.distributed.all_gather(values[None], group=self.group)
        mx.eval(rows)
        return rows

    def add_up(self, model: GPT, mean_loss: mx.array, gradients: Any) -> tuple[mx.array, Any]:
        """Add up what the ranks have found for their micro-steps: the loss, the gradients, the loads of experts.

        Everything is float32, in which a load is exact up to 16 million tokens.

        Returns:
            The loss of the whole step and its gradients; its loads are in the model.
        """
        if self.world == 1 or self.apart:
            return mean_loss, gradients
        by_name: Any = dict(tree_flatten(gradients))
        self.check_layout(by_name)
        wishes = mx.array(self.wished)
        tensors = [*by_name.values(), mean_loss, *model.routers.step_loads, wishes]
        flat = mx.concatenate([tensor.flatten().astype(mx.float32) for tensor in tensors])
        total = self.summed(flat)
        sums: Any = mx.split(total, np.cumsum([tensor.size for tensor in tensors])[:-1].tolist())
        added = [(name, part.reshape(by_name[name].shape)) for name, part in zip(by_name, sums, strict=False)]
        rest = sums[len(added) :]
        model.routers.take_step_loads(rest[1:-1])
        self.agreed = rest[-1].tolist()
        return rest[0].reshape(()), tree_unflatten(added)

    def added(self, mine: Array) -> Array:
        """(N,) float32 of this rank -> their sum over all."""
        return np.array(self.summed(mx.array(mine)))

    def summed(self, flat: mx.array) -> mx.array:
        """The sum of an array over all ranks. Waited for, and timed.

        A GPU must not wait for another machine: macOS ends what makes it wait for seconds. So this process waits, for
        its GPU before the sum, and then, with nothing queued there, for the others.
        """
        mx.eval(flat)
        began = perf_counter()
        with self.waiting():
            total = mx.distributed.all_sum(flat, group=self.group)
            mx.eval(total)
        self.seconds += perf_counter() - began
        return total


class Joined(Ranks):
    """Ranks that were started by hand, perhaps of both twins: what is added up travels as numpy."""

    def __init__(self, wire: Wire) -> None:
        Agreement.__init__(self, wire.rank, wire.world)
        self.group, self.wire = None, wire

    def gather(self, text: str) -> list[str]:
        """What every rank has to say, by rank; all must call it, and wait until all have."""
        assert self.wire is not None
        with self.waiting():
            return self.wire.gather(text)

    def summed(self, flat: mx.array) -> mx.array:
        """The sum of an array over all ranks. Waited for, and timed."""
        assert self.wire is not None
        mine = np.array(flat)  # what is timed is the others, not the backward pass
        began = perf_counter()
        with self.waiting():
            total = mx.array(self.wire.add_up(mine))
        self.seconds += perf_counter() - began
        return total


def launched() -> bool:
    """Whether a launcher has started several ranks: mlx.launch, or MPI, says so in the environment."""
    return any(name in os.environ for name in ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"))


def join() -> Any:
    """Meet the other ranks, once in a process, over whatever the launcher has prepared: ring, JACCL, NCCL or MPI."""
    return mx.distributed.init(strict=True)


def address() -> str:
    """Where rank 0 is reached."""
    if "MLX_JACCL_COORDINATOR" in os.environ:
        return os.environ["MLX_JACCL_COORDINATOR"].rpartition(":")[0]
    if "MLX_HOSTFILE" in os.environ:
        hosts = json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text(encoding="utf-8"))
        return str(hosts[0][0]).rpartition(":")[0]
    return os.environ.get("NCCL_HOST_IP", "127.0.0.1")


@contextmanager
def open_ranks(timeout: float, place: Place | None = None) -> Iterator[Ranks]:
    """The ranks of this run, watched while the block lasts; alone, where no launcher has started others.

    Args:
        timeout: seconds of silence after which a rank is given up.
        place: where they meet, if they are started by hand.

    Raises:
        UserError: they do not meet.
    """
    if place is not None:
        if launched():
            raise UserError("a launcher has started several ranks: leave out --listen, --join, or the launcher")
        with met(place, partial(say, flush=True)) as wire:
            joined = Joined(wire)
            with joined.watched(timeout, place.host):
                yield joined
        return
    if not launched():
        yield Ranks()
        return
    with meeting():
        ranks = Ranks(join())
    with ranks.watched(timeout, address()):
        yield ranks
