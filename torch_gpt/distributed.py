"""Several processes that train one model, each with its share of the micro-steps. In MLX: mlx_gpt/distributed.py.

Their gradients are added up in one flat reduction before the clip; with the loss, what balances experts, and what has
to be agreed on. Batches and dropout are keyed by micro-step, whoever does it: any number of ranks trains one model.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gpt_common.errors import UserError
from gpt_common.training.ranks.agreement import Agreement, Array
from gpt_common.training.ranks.pulse import meeting
from gpt_common.training.ranks.wire import Place, Wire, met
from gpt_common.words import say
from torch_gpt.device import synchronise
from torch_gpt.model import GPT

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
        """(N,) of this rank -> (W, N) of all of them, on the CPU."""
        from torch.distributed import all_gather

        rows = [torch.empty_like(values) for _ in range(self.world)]
        all_gather(rows, values, group=self.group)
        return torch.stack(rows)

    def add_up(self, model: GPT, mean_loss: Tensor) -> Tensor:
        """Add up what the ranks have found for their micro-steps: the loss, the gradients, the loads of experts.

        Everything is float32, in which a load is exact up to 16 million tokens.

        Returns:
            The loss of the whole step; its gradients and loads are in the model.
        """
        if self.world == 1 or self.apart:
            return mean_loss
        by_name = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        self.check_layout(by_name)
        gradients = list(by_name.values())
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
        synchronise(flat.device)  # what is timed is the others, not the backward pass
        began = perf_counter()
        with self.waiting():
            all_reduce(total, group=self.group)
            synchronise(flat.device)
        self.seconds += perf_counter() - began
        return total.to(flat.device)


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
    """Meet the other ranks, once in a process: over gloo for what is on the CPU, over NCCL for what is on a GPU."""
    from torch import distributed

    if not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # The pulse finds who is lost; who is there and at work, preparing data or saving, is waited for.
        engine = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(engine, timeout=timedelta(days=1))
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
