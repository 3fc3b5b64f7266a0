"""`--parallel ddp|fsdp`: the step of several ranks, carried by PyTorch's own engines.

Made for CUDA, and run over gloo on a CPU only: not measured on NCCL. What a step is stays what it is with the flat sum:
gradients are added up, not averaged, since every micro-step is divided by all of them; loss, loads of experts and what
is agreed on travel in a small sum of their own.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gpt_common.data.batches import Batch
from gpt_common.errors import UserError
from gpt_common.training.health.step_gates import check_dealt
from gpt_common.training.run import Run
from torch_gpt.distributed import whole
from torch_gpt.model import GPT, objective
from torch_gpt.optim import Optimizer, build_optimizer, lend_state, optimizer_tensors
from torch_gpt.probe import Step, TrainingProbe


class Carried(Step, Protocol):
    """The training step of train.py, and what an engine puts in the place of its own."""

    objective: Any


def carry(run: Run, train_step: Carried) -> None:
    """Let the engine that was asked for carry the step, and ask whether it is the same step; nothing for "flat".

    Model and optimiser have their first values by now, and no step was done.

    Raises:
        UserError: the engine cannot work on this device.
        GateFailed: the step is another one.
    """
    ranks = train_step.ranks
    if run.parallel == "flat" or ranks.world == 1:
        return
    ranks.together(lambda: _check_device(train_step.model.device))
    probe, asks = TrainingProbe(train_step.model, train_step), run.config.train.health_gates != "off"
    batches = run.batches(run.first_step) if asks else []
    known = probe.step_gradients(batches, run.first_step) if asks else None
    (Overlapped if run.parallel == "ddp" else Dealt)(train_step)
    ranks.adds_gradients = False
    if asks:
        run.log.note(f"health: {run.parallel}: all ranks {check_dealt(probe, batches, run.first_step, known)}")


def _check_device(device: torch.device) -> None:
    if device.type == "mps":
        raise UserError("--parallel needs collectives, which MPS has not: leave it out")


class Overlapped:
    """DistributedDataParallel: gradients are added up in buckets while the backward pass still computes others.

    Args:
        train_step: whose objective is asked through it from now on.
    """

    def __init__(self, train_step: Carried) -> None:
        from torch.nn.parallel import DistributedDataParallel

        self.train_step = train_step
        # Loads of experts are buffers, and every rank counts its own. Torch 2.13 has another name for this.
        names = signature(DistributedDataParallel).parameters
        own: dict[str, Any] = {
            "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False
        }
        self.wrapped = DistributedDataParallel(
            Objective(train_step.model), process_group=train_step.ranks.group, init_sync=False, **own
        )
        self.wrapped.register_comm_hook(train_step.ranks.group, lambda group, bucket: add_up(group, bucket))
        self.asked = 0
        train_step.objective = self.objective

    def objective(self, model: GPT, batch: Batch[Tensor], key: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Of a micro-step: the last one that a rank does of a step sends the sum of its gradients."""
        if self.train_step.ranks.world == 1:  # asked of this rank alone
            return objective(model, batch, key)
        self.asked += 1
        last = self.asked % (self.train_step.config.train.grad_accum_steps // self.train_step.ranks.world) == 0
        with nullcontext() if last else self.wrapped.no_sync():
            found: tuple[Tensor, Tensor] = self.wrapped(batch, key)
        return found


class Objective(nn.Module):
    """The objective as a module of its own, for an engine that counts from its forward pass."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch[Tensor], key: Tensor | None) -> tuple[Tensor, Tensor]:
        """What training minimises, and the loss in it."""
        return objective(self.model, batch, key)


def add_up(group: Any, bucket: Any) -> Any:
    """The sum of a bucket of gradients over ranks, while others are computed; DDP itself would take the mean."""
    from torch.distributed import all_reduce

    work = all_reduce(bucket.buffer(), group=group, async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


class Dealt:
    """FSDP2: of every parameter, its gradient and its moments each rank holds a part of the rows.

    A block is put together where it is at work. The state of the optimiser moves along.

    Args:
        train_step: which is this engine's from now on.
    """

    def __init__(self, train_step: Carried) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import distribute_tensor

        # Logits are a view, and nothing is done to them where they are: the gate on the dealt step asks for it.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
        self.train_step, self.ranks = train_step, train_step.ranks
        model, optimizer = train_step.model, train_step.optimizer
        names = {parameter: name for name, parameter in model.named_parameters()}
        mesh = init_device_mesh(model.device.type, (self.ranks.world,))
        for module in (*model.blocks, model):
            # The model's own too: whoever asks between two passes finds parts.
            part: Any = fully_shard(module, mesh=mesh, reshard_after_forward=True)
            part.set_gradient_divide_factor(1.0)  # a sum, and no mean
            part.set_force_sum_reduction_for_comms(True)
        places: Any = dict(model.named_parameters())
        for group in optimizer.param_groups:
            group["params"] = [places[names[parameter]] for parameter in group["params"]]
        for parameter, name in names.items():
            for moment, value in optimizer.state.pop(parameter, {}).items():
                place = places[name]
                part = value if value.ndim == 0 else distribute_tensor(value, place.device_mesh, place.placements)
                optimizer.state[place][moment] = part
        self.ranks.deals_weights = True
        self.ranks.gathers = self.collected
        train_step.update = self.clip_and_update

    def clip_and_update(self) -> Tensor:
        """Clip and step, each rank its part; returns the gradient norm before clipping, of all parts together."""
        train_step, model = self.train_step, self.train_step.model
        gradients: list[Any] = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        parts = [gradient.to_local() for gradient in gradients]
        # Row by row, as clip_gradients.
        squares = torch.stack([torch.linalg.vector_norm(part, dim=-1).square().sum() for part in parts]).sum()
        norm = self.ranks.summed(squares).sqrt()
        if largest := train_step.config.optim.grad_clip:
            torch._foreach_mul_(parts, torch.clamp(largest / (norm + 1e-6), max=1.0))
        train_step.optimizer.step()
        model.zero_grad(set_to_none=True)
        model.routers.balance()
        return norm

    @contextmanager
    def collected(self) -> Iterator[tuple[GPT, Optimizer]]:
        """Model and optimiser as they are saved, on the first rank's CPU; all ranks must call it."""
        model, optimizer = self.train_step.model, self.train_step.optimizer
        tensors = {name: self.to_first(tensor) for name, tensor in model.state_dict().items()}
        moments = {name: self.to_first(tensor) for name, tensor in optimizer_tensors(model, optimizer).items()}
        if not self.ranks.first:
            yield model, optimizer
            return
        saved = GPT(model.config, model.compute_dtype)
        saved.load_state_dict(tensors)
        remembering = build_optimizer(saved, self.train_step.config.optim)
        lend_state(saved, remembering, moments)
        yield saved, remembering

    def to_first(self, tensor: Tensor) -> Tensor:
        """All of a tensor, on the CPU; nothing on the other ranks, which hand in their parts."""
        found = whole(tensor)
        return found.cpu() if self.ranks.first else found.new_empty(0)
