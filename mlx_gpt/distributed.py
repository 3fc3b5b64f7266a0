"""Several processes that train one model, each with its share of the micro-steps. In PyTorch: torch_gpt/distributed.py.

Their gradients are added up in one flat reduction before the clip; with the loss, what balances experts, and what has
to be agreed on. Batches and dropout are keyed by micro-step, whoever does it: any number of ranks trains one model.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from gpt_common.errors import UserError
from gpt_common.network.together import owners
from gpt_common.training.ranks.agreement import Agreement, Array
from gpt_common.training.ranks.launchers import ring_hosts
from gpt_common.training.ranks.pulse import meeting
from gpt_common.training.ranks.watching import watched
from gpt_common.training.ranks.wire import Place, Wire, met
from gpt_common.words import say
from mlx_gpt.model import GPT
from mlx_gpt.optim import Optimizer, keep_share, lend_state, optimizer_tensors


class Ranks(Agreement):
    """This process among those that train a model.

    Args:
        group: how they are reached; None: there is no other.
    """

    def __init__(self, group: mx.distributed.Group | None = None) -> None:
        super().__init__(*((0, 1) if group is None else (group.rank(), group.size())))
        self.group = group
        self.owners: dict[str, int] = {}
        """Which rank updates a parameter, where each has its share."""

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
        with self.timed(flat):
            total = mx.distributed.all_sum(flat, group=self.group)
            mx.eval(total)
        return total

    @contextmanager
    def timed(self, sent: mx.array) -> Iterator[None]:
        """Around a wait for the other ranks, of which the seconds are counted."""
        mx.eval(sent)  # what is timed is the others, not the work before
        began = perf_counter()
        with self.waiting():
            yield
        self.seconds += perf_counter() - began

    def deal_out(self, model: GPT, optimizer: Optimizer) -> None:
        """Leave to each rank the update of its share of the parameters, if that is asked for.

        Rajbhandari et al. 2020, "ZeRO", section 5.1; dealt by whole parameters.
        """
        if not self.shards_optimizer:
            return
        self.owners = owners({name: parameter.size for name, parameter in model.named_parameters()}, self.world)
        keep_share(model, optimizer, self.owned(self.rank))

    def owned(self, rank: int) -> list[str]:
        """The parameters that a rank updates."""
        return [name for name, owner in self.owners.items() if owner == rank]

    def share_out(self, model: GPT) -> None:
        """After an update: give the others the parameters that were updated here, and take theirs."""
        if not self.owners:
            return
        places = dict(model.named_parameters())
        sizes = [sum(places[name].size for name in self.owned(rank)) for rank in range(self.world)]
        mine = [places[name].flatten() for name in self.owned(self.rank)]
        flat = mx.concatenate([*mine, mx.zeros(max(sizes) - sizes[self.rank])])
        with self.timed(flat):
            rows = self.gathered(flat)
        taken = []
        for rank in range(self.world):
            start = 0
            for name in self.owned(rank) if rank != self.rank else []:
                value = rows[rank, start : start + places[name].size]
                taken.append((name, value.reshape(places[name].shape)))
                start += value.size
        model.update(tree_unflatten(taken))

    @contextmanager
    def collected(self, model: GPT, optimizer: Optimizer) -> Iterator[tuple[GPT, Optimizer]]:
        """While the block lasts, model and optimiser as they are saved: rank 0 has what the others hold of them.

        All ranks must call it.
        """
        if self.shards_optimizer:
            lend_state(model, optimizer, self.lent(optimizer_tensors(model, optimizer)))
        yield model, optimizer
        if self.shards_optimizer:
            keep_share(model, optimizer, self.owned(self.rank))

    def lent(self, tensors: dict[str, mx.array]) -> dict[str, mx.array]:
        """Rank 0 gets the tensors of the others; the others get nothing. All must call it.

        One of each at a time, the largest first.
        """
        order = sorted(tensors, key=lambda name: (-tensors[name].size, name))
        lists = [json.loads(text) for text in self.gather(json.dumps([(name, tensors[name].shape) for name in order]))]
        found: dict[str, mx.array] = {}
        for turn in range(max(map(len, lists))):
            sent = [each[turn] if turn < len(each) else ("", [0]) for each in lists]
            mine = tensors[order[turn]].flatten() if turn < len(order) else mx.zeros(0)
            padded = mx.concatenate([mine, mx.zeros(max(math.prod(shape) for _, shape in sent) - mine.size)])
            mx.eval(padded)
            with self.waiting():
                rows = self.gathered(padded)
            for (name, shape), row in list(zip(sent, rows, strict=True))[1:] if self.first else []:
                if name:
                    found[name] = row[: math.prod(shape)].reshape(shape)
        return found


class Joined(Ranks):
    """Ranks that were started by hand, perhaps of both twins: what is added up travels as numpy."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        Agreement.__init__(self, wire.rank, wire.world)
        self.wire = wire

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
    if "MLX_RANK" in os.environ:
        return len(ring_hosts()) != 1
    return any(int(os.environ.get(name, "1")) > 1 for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"))


def join() -> Any:
    """Meet the other ranks, once in a process, over whatever the launcher has prepared: ring, JACCL, NCCL or MPI.

    Raises:
        UserError: MLX does not reach them.
    """
    try:
        return mx.distributed.init(strict=True)
    except RuntimeError as error:
        raise UserError(f"MLX does not meet the other ranks: {error}") from None


def address() -> str:
    """Where rank 0 is reached."""
    if "MLX_JACCL_COORDINATOR" in os.environ:
        return os.environ["MLX_JACCL_COORDINATOR"].rpartition(":")[0]
    if hosts := ring_hosts():
        return hosts[0].rpartition(":")[0]
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
            with watched(joined, timeout, place.host):
                yield joined
        return
    if not launched():
        yield Ranks()
        return
    with meeting():
        ranks = Ranks(join())
    with watched(ranks, timeout, address()):
        yield ranks
