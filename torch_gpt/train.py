"""`python -m torch_gpt.train`: train a GPT in PyTorch. The same text in MLX is mlx_gpt/train.py.

The loop is: learning rate -> micro-steps -> clip and step -> log -> evaluate -> sample -> save. What surrounds it
(data, folder, clock, log) is gpt_common/training/run.py; what is due when, due.py beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gpt_common.cli import answer_early
from gpt_common.errors import run_main
from gpt_common.machine.blas import wait_passively
from gpt_common.training.command_line import parse_early, parse_training

if __name__ == "__main__":
    answer_early(lambda argv: parse_early(argv, "python -m torch_gpt.train"))
    wait_passively()  # before PyTorch is imported

import torch

from gpt_common.config import RunConfig
from gpt_common.data.batches import Batch, NumpyBatch, positions
from gpt_common.keyed import dropout_key
from gpt_common.machine.mps import check_sums
from gpt_common.training.notebook import CallableModule
from gpt_common.training.ranks.wire import place_of
from gpt_common.training.run import Run
from gpt_common.training.schedule import learning_rate
from torch_gpt.checkpoint import build_model, load_checkpoint, load_weights, save_tensors
from torch_gpt.device import compiles, compute_device, compute_dtype, has_gpu, select_device, to_device
from torch_gpt.distributed import Ranks, open_ranks
from torch_gpt.layers import as_key
from torch_gpt.model import GPT, objective
from torch_gpt.optim import Average, Optimizer, build_optimizer, clip_gradients, set_step
from torch_gpt.parallel.engines import carry
from torch_gpt.probe import TrainingProbe
from torch_gpt.sample import generate


class TrainStep:
    """One optimiser step: forward and backward over the micro-batches, clip, update. This is what benchmarks time.

    Args:
        model: updated in place.
        optimizer: its state is updated in place.
        config: clipping, dropout and the seed of its keys.
        compiled: compile the loss and its gradient.
        ranks: the processes that share the micro-steps; None: this one does all of them.
    """

    def __init__(
        self, model: GPT, optimizer: Optimizer, config: RunConfig, compiled: bool, ranks: Ranks | None = None
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.config = config
        self.ranks = ranks or Ranks()
        self.compiled = compiled
        self.objective = torch.compile(objective) if compiled else objective
        self.update: Callable[[], torch.Tensor] = self.clip_and_update

    def __call__(self, batches: Sequence[NumpyBatch], step: int, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Do step number `step` (from 0) at learning rate `rate`.

        Args:
            batches: one of each micro-step; the mean gradient over all of them makes the step.

        Returns:
            Mean loss in nats per token, and the gradient norm before clipping; on the device, not waited for.
        """
        mean_loss: Any = 0.0
        counted = sum(positions(batch) for batch in self.ranks.counted(batches))
        for micro_step, batch in self.ranks.dealt(batches):
            # Their mean is what one large batch would give: each by their number, unless positions have weights.
            parts = counted / positions(batch)
            tensors, key = to_device(batch, self.model.device), self.key(step, micro_step)
            mean_loss = mean_loss + self.accumulate(tensors, key, parts)
        mean_loss = self.ranks.add_up(self.model, mean_loss)  # alone, nothing is to be added
        set_step(self.optimizer, step + 1, rate)
        norm = self.update()
        self.ranks.share_out(self.model)  # nothing, unless each rank has updated its share
        return mean_loss, norm

    def accumulate(self, batch: Batch[torch.Tensor], key: torch.Tensor | None, parts: float) -> torch.Tensor:
        """Forward and backward: add a micro-step's gradient, divided by `parts`, to the step's; returns its loss so."""
        value, loss = self.objective(self.model, batch, key)
        (value / parts).backward()
        return loss.detach() / parts

    def clip_and_update(self) -> torch.Tensor:
        """Clip and step; returns the gradient norm before clipping."""
        # One bad batch must not throw the weights. The norm is that of the whole step and of all tensors together:
        # clipped part by part, the step would point elsewhere.
        norm = clip_gradients(self.model, self.config.optim.grad_clip)
        self.optimizer.step()
        self.model.zero_grad(set_to_none=True)  # not to zeros: memory for the next step's activations
        self.model.routers.balance()
        return norm

    def key(self, step: int, micro_step: int) -> torch.Tensor | None:
        """Dropout key of a micro-step; None without dropout."""
        if not self.config.drops:
            return None
        words = dropout_key(self.config.train.seed, step, micro_step)
        return as_key(words, self.config.model.dropout_rng)


def train(run: Run, ranks: Ranks | None = None) -> None:
    """Train as `run` says, from its first step to its last; `ranks` share each step."""
    config = run.config
    device = select_device(config.train.device)
    check_sums(config, device.type, torch.__version__)
    dtype = compute_dtype(config.train, device)
    model = GPT(config.model, dtype, config.train.gradient_checkpointing, config.adapter, run.grids).to(device)
    optimizer, ranks = build_optimizer(model, config.optim), ranks or Ranks()
    ranks.deal_out(model, optimizer)
    average = Average(model, config.optim)
    if run.resume_from:
        load_checkpoint(run.resume_from, model, optimizer, average)
    elif run.init_from:
        if load_weights(run.init_from, model, run.growth).base is None:
            model.adapters.initialise(model, config.train.seed)  # often there are none
    else:
        model.initialise(config.train.seed)
    if run.first_step == 0:
        average.restart()
    train_step = TrainStep(model, optimizer, config, compiles(config.train, device), ranks)
    sampler = partial(generate, average.model)

    with run.start(
        compute_device(device, dtype),
        TrainingProbe(model, train_step),
        TrainingProbe(average.model),
        lambda checkpoint: TrainingProbe(build_model(checkpoint, config.model, dtype).to(device)),
    ):
        # Before the first step: can this model learn at all, and what does it know without having learnt anything?
        run.check_start()
        carry(run, train_step)  # by another engine than the flat sum, where one is asked for
        if run.first_step == 0:
            run.evaluate(0)
            run.sample(0, sampler)

        losses: list[Any] = []  # of steps since the last record, still on the device
        for step in run.steps():
            rate = learning_rate(step, config.optim, run.max_steps)
            loss, norm = train_step(run.batches(step), step, rate)
            average.update(step + 1)
            losses.append(loss)
            due = run.after_step(step + 1)
            if due.log:
                # Only here are losses fetched: a number that Python waits for at every step would keep a GPU idle.
                loads, values = model.routers.take_loads(), [float(loss) for loss in losses]
                run.record(due.step, losses=values, lr=rate, grad_norm=float(norm), expert_loads=loads)
                losses = []
            if due.evaluation:
                run.evaluate(due.step)
            if due.save:
                with ranks.collected(model, optimizer) as whole:
                    run.save(due.step, lambda folder: save_tensors(folder, *whole, average))
            if due.sample:
                # After saving: nothing that is not needed stands between the last step and its checkpoint.
                run.sample(due.step, sampler)


def main(argv: Sequence[str]) -> Path:
    """The command; returns the folder of the run."""
    command, why_preset = parse_training(argv, prog="python -m torch_gpt.train", has_gpu=has_gpu())
    with (
        open_ranks(command.rank_timeout, place_of(command.listen, command.join, command.ranks)) as ranks,
        Run(command, twin="torch_gpt", why_preset=why_preset, ranks=ranks) as run,
    ):
        train(run, ranks)
    return run.folder


sys.modules[__name__].__class__ = CallableModule

if __name__ == "__main__":
    run_main(main)
