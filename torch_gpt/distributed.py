"""Several processes that train one model, each with its share of the micro-steps. In MLX: mlx_gpt/distributed.py.

Their gradients are added up in one flat reduction before the clip; with the loss, what balances experts, and what has
to be agreed on. Batches and dropout are keyed by micro-step, whoever does it: any number of ranks trains one model.
"""

from __future__ import annotations

import atexit
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gpt_common.errors import UserError
from gpt_common.network.together import owners
from gpt_common.training.ranks.agreement import Agreement, Array
from gpt_common.training.ranks.pulse import meeting
from gpt_common.training.ranks.watching import watched
from gpt_common.training.ranks.wire import Place, Wire, met
from gpt_common.words import say
from torch_gpt.device import synchronise
from torch_gpt.model import GPT
from torch_gpt.optim import Optimizer, keep_share, lend_state, optimizer_tensors

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Ranks(Agreement):
    """This process among those that train a model.

    Args:
        group: how they are reached; None: there is no other.
    """

    def __init__(self, group: ProcessGroup | None = None) -> None:
        super().__init__(*((0, 1) if group is None else (group.rank(), group.size())))
        self.group = group
        self.adds_gradients = True
        """Whether the flat sum does, and no engine of torch_gpt/parallel."""
        self.gathers: Callable[[], AbstractContextManager[tuple[GPT, Optimizer]]] | None = None
        """Of an engine that deals the weights to ranks: how they are collected."""
        self.owners: dict[str, int] = {}
        """Which rank updates a parameter, where each has its share."""

    def gather(self, text: str) -> list[str]:
        """What every rank has to say, by rank; all must call it, and wait until all have."""
        if self.group is None:
            return [text]
        words = np.frombuffer(text.encode(), np.uint8)
        with self.waiting():
            lengths: Any = self.gathered(torch.tensor([len(words)])).flatten().tolist()
            padded = np.zeros(max(*lengths, 1), np.uint8)
            padded[: len(words)] = words
            rows = np.array(self.gathered(torch.from_numpy(padded)))
        return [bytes(row[:length]).decode() for row, length in zip(rows, lengths, strict=True)]

    def gathered(self, values: Tensor) -> Tensor:
        """(N,) of this rank -> (W, N) of all of them."""
        from torch.distributed import all_gather

        rows = values.new_empty(self.world, len(values))
        all_gather(list(rows), values, group=self.group)
        return rows

    def add_up(self, model: GPT, mean_loss: Tensor) -> Tensor:
        """Add up what the ranks have found for their micro-steps: the loss, the gradients, the loads of experts.

        Everything is float32, in which a load is exact up to 16 million tokens.

        Returns:
            The loss of the whole step; its gradients and loads are in the model.
        """
        if self.world == 1 or self.apart:
            return mean_loss
        named = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        self.check_layout(named)
        gradients = list(named.values()) if self.adds_gradients else []
        wishes = torch.tensor(self.wished, device=mean_loss.device)
        tensors = [*gradients, mean_loss, *model.routers.step_loads, wishes]
        flat = torch.cat([tensor.flatten().float() for tensor in tensors])
        total = self.summed(flat)
        sums = total.split([tensor.numel() for tensor in tensors])
        for gradient, added in zip(gradients, sums, strict=False):
            gradient.copy_(added.view_as(gradient))
        rest = sums[len(gradients) :]
        model.routers.take_step_loads(rest[1:-1])
        self.agreed = rest[-1].tolist()
        return rest[0].reshape(())

    def added(self, mine: Array) -> Array:
        """(N,) float32 of this rank -> their sum over all."""
        return self.summed(torch.from_numpy(mine)).numpy()

    def summed(self, flat: Tensor) -> Tensor:
        """The sum of a tensor over all ranks. Waited for, and timed."""
        from torch.distributed import all_reduce

        total = flat.cpu() if flat.device.type == "mps" else flat  # which has no collectives
        with self.timed(flat.device):
            all_reduce(total, group=self.group)
        return total.to(flat.device)

    @contextmanager
    def timed(self, device: torch.device) -> Iterator[None]:
        """Around a wait for the other ranks, of which the seconds are counted."""
        synchronise(device)  # what is timed is the others, not the work before
        began = perf_counter()
        with self.waiting():
            yield
            synchronise(device)
        self.seconds += perf_counter() - began

    def deal_out(self, model: GPT, optimizer: Optimizer) -> None:
        """Leave to each rank the update of its share of the parameters, if that is asked for.

        Rajbhandari et al. 2020, "ZeRO", section 5.1; dealt by whole parameters.
        """
        if not self.shards_optimizer:
            return
        self.owners = owners({name: parameter.numel() for name, parameter in model.named_parameters()}, self.world)
        keep_share(model, optimizer, self.owned(self.rank))

    def owned(self, rank: int) -> list[str]:
        """The parameters that a rank updates."""
        return [name for name, owner in self.owners.items() if owner == rank]

    @torch.no_grad()
    def share_out(self, model: GPT) -> None:
        """After an update: give the others the parameters that were updated here, and take theirs."""
        if not self.owners:
            return
        places = dict(model.named_parameters())
        sizes = [sum(places[name].numel() for name in self.owned(rank)) for rank in range(self.world)]
        mine = [places[name].flatten() for name in self.owned(self.rank)]
        flat = torch.cat([*mine, torch.zeros(max(sizes) - sizes[self.rank], device=model.device)])
        with self.timed(model.device):
            rows = self.gathered(flat.cpu() if flat.device.type == "mps" else flat)
        for rank in range(self.world):
            names = self.owned(rank) if rank != self.rank else []
            values = rows[rank, : sizes[rank]].split([places[name].numel() for name in names]) if names else []
            for name, value in zip(names, values, strict=True):
                places[name].copy_(value.view_as(places[name]))

    @contextmanager
    def collected(self, model: GPT, optimizer: Optimizer) -> Iterator[tuple[GPT, Optimizer]]:
        """While the block lasts, model and optimiser as they are saved: rank 0 has what the others hold of them.

        All ranks must call it.
        """
        if self.gathers is not None:
            with self.gathers() as found:
                yield found
            return
        if self.shards_optimizer:
            lend_state(model, optimizer, self.lent(optimizer_tensors(model, optimizer)))
        yield model, optimizer
        if self.shards_optimizer:
            keep_share(model, optimizer, self.owned(self.rank))

    def lent(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rank 0 gets the tensors of the others, on the CPU; the others get nothing. All must call it.

        One of each at a time, the largest first: together they would take as much as is saved by sharing them.
        """
        order = sorted(tensors, key=lambda name: (-tensors[name].numel(), name))
        lists = [json.loads(text) for text in self.gather(json.dumps([(name, tensors[name].shape) for name in order]))]
        found: dict[str, Tensor] = {}
        for turn in range(max(map(len, lists))):
            sent = [each[turn] if turn < len(each) else ("", [0]) for each in lists]
            padded = torch.zeros(max(math.prod(shape) for _, shape in sent))
            if turn < len(order):
                padded[: tensors[order[turn]].numel()] = tensors[order[turn]].flatten()
            with self.waiting():
                rows = self.gathered(padded)
            for (name, shape), row in list(zip(sent, rows, strict=True))[1:] if self.first else []:
                if name:
                    found[name] = row[: math.prod(shape)].reshape(shape).clone()
        return found


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which each rank holds a part; all ranks must ask."""
    parts = getattr(tensor, "full_tensor", None)
    return tensor if parts is None else parts()


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

    def summed(self, flat: Tensor) -> Tensor:
        """The sum of a tensor over all ranks. Waited for, and timed."""
        assert self.wire is not None
        mine = flat.cpu().numpy()  # what is timed is the others, not the backward pass
        began = perf_counter()
        with self.waiting():
            total = torch.from_numpy(self.wire.add_up(mine))
        self.seconds += perf_counter() - began
        return total.to(flat.device)


def launched() -> bool:
    """Whether a launcher has started several ranks: torchrun says so in the environment."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def join() -> Any:
    """Meet the other ranks, once in a process: over gloo for what is on the CPU, over NCCL for what is on a GPU.

    Raises:
        UserError: PyTorch does not reach them.
    """
    from torch import distributed

    if not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # The pulse finds who is lost; who is there and at work, preparing data or saving, is waited for.
        engine = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            distributed.init_process_group(engine, timeout=timedelta(days=1))
        except RuntimeError as error:
            raise UserError(f"PyTorch does not meet the other ranks: {error}") from None
        atexit.register(distributed.destroy_process_group)
    return distributed.group.WORLD


def address() -> str:
    """Where rank 0 is reached."""
    return os.environ["MASTER_ADDR"]


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
