"""`python -m mlx_gpt.train`: train a GPT in MLX. The same text in PyTorch is torch_gpt/train.py.

The loop is: learning rate -> micro-steps -> clip and step -> log -> evaluate -> sample -> save. What surrounds it
(data, folder, clock, log, what is due when) is gpt_common/training/run.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gpt_common.cli import answer_help
from gpt_common.commands import TrainCommand
from gpt_common.errors import run_main
from gpt_common.training.command_line import parse_training

if __name__ == "__main__":
    answer_help(TrainCommand, "python -m mlx_gpt.train")

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from gpt_common.config import RunConfig
from gpt_common.data.batches import Tokens
from gpt_common.keyed import dropout_key
from gpt_common.training.run import Run
from gpt_common.training.schedule import learning_rate
from mlx_gpt.checkpoint import load_checkpoint, load_weights, save_tensors
from mlx_gpt.device import (
    compiles,
    compute_dtype,
    describe,
    has_gpu,
    name_of,
    peak_memory,
    select_device,
    synchronise,
    waits,
)
from mlx_gpt.model import GPT, objective
from mlx_gpt.optim import AdamW, build_optimizer, clip_gradients, set_step
from mlx_gpt.probe import TrainingProbe
from mlx_gpt.sample import generate


class TrainStep:
    """One optimiser step: forward and backward over the micro-batches, clip, update. This is what benchmarks time.

    Args:
        model: updated in place.
        optimizer: its state is updated in place.
        config: clipping, dropout and the seed of its keys.
        compiled: compile the loss and its gradient.
    """

    def __init__(self, model: GPT, optimizer: AdamW, config: RunConfig, compiled: bool) -> None:
        self.model = model
        self.optimizer = optimizer
        self.config = config
        self.loss_and_gradients: Callable[..., Any] = partial(nn.value_and_grad(model, objective), model)
        self.update: Callable[..., mx.array] = self.clip_and_update
        self.previous: mx.array | None = None
        if compiled:
            state = [model.state, optimizer.state]
            self.loss_and_gradients = mx.compile(self.loss_and_gradients, inputs=state, outputs=state)
            self.update = mx.compile(self.clip_and_update, inputs=state, outputs=state)

    def __call__(self, batches: Sequence[tuple[Tokens, Tokens]], step: int, rate: float) -> tuple[mx.array, mx.array]:
        """Do step number `step` (from 0) at learning rate `rate`.

        Args:
            batches: inputs and labels (B, T) of each micro-step; their mean gradient makes the step.

        Returns:
            Mean loss in nats per token, and the gradient norm before clipping; on the device, not waited for.
        """
        total, gradients = mx.zeros(()), None
        for micro_step, (tokens, labels) in enumerate(batches):
            (_, micro_loss), micro_gradients = self.loss_and_gradients(
                self.tensor(tokens), self.tensor(labels), self.key(step, micro_step)
            )
            total = total + micro_loss / len(batches)
            micro_gradients = tree_map(lambda gradient: gradient / len(batches), micro_gradients)
            gradients = micro_gradients if gradients is None else tree_map(mx.add, gradients, micro_gradients)
            # Before the update joins the graph: otherwise MLX recomputes all checkpointed blocks at once.
            mx.async_eval(total, gradients, self.model.state)
        set_step(self.optimizer, step + 1, rate)
        norm = self.update(gradients)
        del gradients, micro_gradients  # what Python still names, MLX cannot overwrite
        mx.async_eval(total, norm, self.model.state, self.optimizer.state)
        # Python prepares the next step while this one runs; waiting for the one before bounds memory.
        if self.previous is not None:
            mx.eval(self.previous)
        self.previous = total
        return total, norm

    def clip_and_update(self, gradients: Any) -> mx.array:
        """Clip and step; returns the gradient norm before clipping."""
        gradients, norm = clip_gradients(gradients, self.config.optim.grad_clip)
        self.optimizer.update(self.model, gradients)
        self.model.routers.balance()
        return norm

    def key(self, step: int, micro_step: int) -> mx.array | None:
        """Dropout key of a micro-step; None without dropout."""
        if self.config.model.dropout == 0:
            return None
        words = dropout_key(self.config.train.seed, step, micro_step)
        return mx.array(words)

    def tensor(self, ids: Tokens) -> mx.array:
        """Token ids on the device."""
        return mx.array(ids)


def train(run: Run) -> None:
    """Train as `run` says, from its first step to its last."""
    config = run.config
    device = select_device(config.train.device)
    dtype = compute_dtype(config.train, device)
    model = GPT(config.model, dtype, config.train.gradient_checkpointing)
    optimizer = build_optimizer(model, config.optim)
    if run.resume_from:
        load_checkpoint(run.resume_from, model, optimizer)
    elif run.init_from:
        load_weights(run.init_from, model)
    else:
        model.initialise(config.train.seed)
    train_step = TrainStep(model, optimizer, config, compiles(config.train, device))
    probe = TrainingProbe(model)
    start = partial(run.start, find_non_finite=probe.find_non_finite)

    with start(description=describe(device), device=name_of(device), dtype=str(dtype).removeprefix("mlx.core.")):
        run.check_start(probe)
        if run.first_step == 0:
            run.evaluated(0, run.evaluate(probe.loss))
            run.sample(0, partial(generate, model))
        before = probe.checksums()
        run.timer.restart()

        for step in range(run.first_step, run.stop_at):
            rate = learning_rate(step, config.optim, config.train.max_steps)
            mean_loss, norm = train_step(run.batches(step), step, rate)
            done = step + 1
            if run.anything_due(done):
                synchronise(device)
            run.stepped(done, waited=run.anything_due(done) or waits(device))
            if run.log_due(done):
                memory, loads = peak_memory(device), model.routers.take_loads()
                run.record(
                    done, loss=float(mean_loss), lr=rate, grad_norm=float(norm), memory=memory, expert_loads=loads
                )
            with run.timer.paused():
                if step == run.first_step:
                    run.check_first_update(before, probe.checksums(), rate)
                if run.evaluation_due(done):
                    run.evaluated(done, run.evaluate(probe.loss))
                if run.sample_due(done):
                    run.sample(done, partial(generate, model))
                if run.save_due(done):
                    run.save(done, lambda folder: save_tensors(folder, model, optimizer))
            if run.interrupted is not None:
                break
        run.finish(done)


def main(argv: Sequence[str]) -> None:
    """The command."""
    command, why_preset = parse_training(argv, prog="python -m mlx_gpt.train", has_gpu=has_gpu())
    train(Run(command, twin="mlx_gpt", why_preset=why_preset))


if __name__ == "__main__":
    run_main(main)
