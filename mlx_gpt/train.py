"""`python -m mlx_gpt.train`: train a GPT in MLX. The same text in PyTorch is torch_gpt/train.py.

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
from gpt_common.machine.blas import load_fast_blas
from gpt_common.training.command_line import parse_early, parse_training

if __name__ == "__main__":
    answer_early(lambda argv: parse_early(argv, "python -m mlx_gpt.train"))
    load_fast_blas()  # before MLX is imported

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from gpt_common.config import RunConfig
from gpt_common.data.batches import Batch, NumpyBatch, positions
from gpt_common.keyed import dropout_key
from gpt_common.training.notebook import CallableModule
from gpt_common.training.ranks.wire import place_of
from gpt_common.training.run import Run
from gpt_common.training.schedule import learning_rate
from mlx_gpt.checkpoint import build_model, load_checkpoint, load_weights, save_tensors
from mlx_gpt.device import compiles, compute_device, compute_dtype, has_gpu, limit_cache, select_device, to_device
from mlx_gpt.distributed import Ranks, open_ranks
from mlx_gpt.layers import as_key
from mlx_gpt.model import GPT, objective
from mlx_gpt.optim import Average, Optimizer, build_optimizer, clip_gradients, set_step
from mlx_gpt.probe import TrainingProbe
from mlx_gpt.sample import generate


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
        # A compiled function takes arrays, no object.
        self.loss_and_gradients: Callable[..., Any] = nn.value_and_grad(
            model, lambda *batch: objective(model, Batch(*batch[:4]), batch[4])
        )
        self.add: Callable[..., Any] = self.add_gradients
        self.update: Callable[..., mx.array] = self.clip_and_update
        self.gradients: Any = None
        self.previous: mx.array | None = None
        self.compiled = compiled
        if compiled:
            # Two functions, not one: gradients of micro-steps are added up and evaluated in between. What a function
            # reads and replaces besides its arguments, weights and moments, is named as its state.
            self.add = mx.compile(self.add_gradients, inputs=model.state, outputs=model.state)
            state = [model.state, optimizer.state]
            self.update = mx.compile(self.clip_and_update, inputs=state, outputs=state)

    def __call__(self, batches: Sequence[NumpyBatch], step: int, rate: float) -> tuple[mx.array, mx.array]:
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
        # Alone, nothing is to be added.
        mean_loss, self.gradients = self.ranks.add_up(self.model, mean_loss, self.gradients)
        set_step(self.optimizer, step + 1, rate)
        norm = self.update(self.gradients)
        self.gradients = None  # what Python still names, MLX cannot overwrite
        self.ranks.share_out(self.model)  # nothing, unless each rank has updated its share
        mx.async_eval(mean_loss, norm, self.model.state, self.optimizer.state)
        # Python prepares the next step while this one runs; waiting for the one before bounds memory.
        if self.previous is not None:
            mx.eval(self.previous)
        self.previous = mean_loss
        return mean_loss, norm

    def accumulate(self, batch: Batch[mx.array], key: mx.array | None, parts: float) -> mx.array:
        """Forward and backward: add a micro-step's gradient, divided by `parts`, to the step's; returns its loss so."""
        divisor = None if parts == 1 else mx.array(parts)  # a gradient that is the step's is not gone over once more
        loss, self.gradients = self.add(
            self.gradients, divisor, batch.tokens, batch.labels, batch.weights, batch.starts, key
        )
        # MLX computes nothing before it is asked. Asked here, a micro-step's activations are gone before the next one's
        # come; and the update has not joined the graph yet, with which MLX recomputes all checkpointed blocks at once.
        mx.async_eval(loss, self.gradients, self.model.state)
        return loss

    def add_gradients(self, sums: Any, parts: mx.array | None, *batch: mx.array | None) -> tuple[mx.array, Any]:
        """Loss and gradient of a micro-step, divided by `parts`; the gradient on top of those of the ones before."""
        (_, loss), gradients = self.loss_and_gradients(*batch)
        if parts is not None:
            loss, gradients = loss / parts, tree_map(lambda gradient: gradient / parts, gradients)
        return loss, gradients if sums is None else tree_map(mx.add, sums, gradients)

    def clip_and_update(self, gradients: Any) -> mx.array:
        """Clip and step; returns the gradient norm before clipping."""
        # One bad batch must not throw the weights. The norm is that of the whole step and of all tensors together:
        # clipped part by part, the step would point elsewhere.
        gradients, norm = clip_gradients(gradients, self.config.optim.grad_clip)
        self.optimizer.update(self.model, gradients)
        self.model.routers.balance()
        return norm

    def key(self, step: int, micro_step: int) -> mx.array | None:
        """Dropout key of a micro-step; None without dropout."""
        if not self.config.drops:
            return None
        words = dropout_key(self.config.train.seed, step, micro_step)
        return as_key(words, self.config.model.dropout_rng)


def train(run: Run, ranks: Ranks | None = None) -> None:
    """Train as `run` says, from its first step to its last; `ranks` share each step."""
    config = run.config
    device = select_device(config.train.device)
    limit_cache(config, device)
    dtype = compute_dtype(config.train, device)
    model = GPT(config.model, dtype, config.train.gradient_checkpointing, config.adapter, run.grids)
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
        lambda checkpoint: TrainingProbe(build_model(checkpoint, config.model, dtype)),
    ):
        # Before the first step: can this model learn at all, and what does it know without having learnt anything?
        run.check_start()
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
    command, why_preset = parse_training(argv, prog="python -m mlx_gpt.train", has_gpu=has_gpu())
    with (
        open_ranks(command.rank_timeout, place_of(command.listen, command.join, command.ranks)) as ranks,
        Run(command, twin="mlx_gpt", why_preset=why_preset, ranks=ranks) as run,
    ):
        train(run, ranks)
    return run.folder


sys.modules[__name__].__class__ = CallableModule

if __name__ == "__main__":
    run_main(main)
