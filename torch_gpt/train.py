"""`python -m torch_gpt.train`: train a GPT in PyTorch. The same text in MLX is mlx_gpt/train.py.

The loop is: learning rate -> micro-steps -> clip and step -> log -> evaluate -> sample -> save. What surrounds it
(data, folder, clock, log, what is due when) is gpt_common/training/run.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from gpt_common.cli import answer_help
from gpt_common.commands import TrainCommand
from gpt_common.errors import run_main
from gpt_common.training.command_line import parse_training

if __name__ == "__main__":
    answer_help(TrainCommand, "python -m torch_gpt.train")

import torch

from gpt_common.config import RunConfig
from gpt_common.data.batches import Tokens
from gpt_common.keyed import dropout_key
from gpt_common.training.run import Run
from gpt_common.training.schedule import learning_rate
from torch_gpt.checkpoint import load_checkpoint, load_weights, save_tensors
from torch_gpt.device import (
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
from torch_gpt.model import GPT, objective
from torch_gpt.optim import build_optimizer, clip_gradients, set_step
from torch_gpt.probe import TrainingProbe
from torch_gpt.sample import generate


class TrainStep:
    """One optimiser step: forward and backward over the micro-batches, clip, update. This is what benchmarks time.

    Args:
        model: updated in place.
        optimizer: its state is updated in place.
        config: clipping, dropout and the seed of its keys.
        compiled: compile the loss and its gradient.
    """

    def __init__(self, model: GPT, optimizer: torch.optim.Optimizer, config: RunConfig, compiled: bool) -> None:
        self.model = model
        self.optimizer = optimizer
        self.config = config
        self.device = model.device
        self.objective = torch.compile(objective) if compiled else objective

    def __call__(
        self, batches: Sequence[tuple[Tokens, Tokens]], step: int, rate: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Do step number `step` (from 0) at learning rate `rate`.

        Args:
            batches: inputs and labels (B, T) of each micro-step; their mean gradient makes the step.

        Returns:
            Mean loss in nats per token, and the gradient norm before clipping; on the device, not waited for.
        """
        total = torch.zeros((), device=self.device)
        for micro_step, (tokens, labels) in enumerate(batches):
            value, micro_loss = self.objective(
                self.model, self.tensor(tokens), self.tensor(labels), self.key(step, micro_step)
            )
            (value / len(batches)).backward()
            total = total + micro_loss.detach() / len(batches)
        norm = clip_gradients(self.model, self.config.optim.grad_clip)
        set_step(self.optimizer, step + 1, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.routers.balance()
        return total, norm

    def key(self, step: int, micro_step: int) -> torch.Tensor | None:
        """Dropout key of a micro-step; None without dropout."""
        if self.config.model.dropout == 0:
            return None
        words = dropout_key(self.config.train.seed, step, micro_step)
        if self.config.model.dropout_rng == "native":
            torch.manual_seed(int(words[0]) << 32 | int(words[1]))
        return torch.from_numpy(words)

    def tensor(self, ids: Tokens) -> torch.Tensor:
        """Token ids on the device."""
        return torch.from_numpy(ids).to(self.device, torch.long)


def train(run: Run) -> None:
    """Train as `run` says, from its first step to its last."""
    config = run.config
    device = select_device(config.train.device)
    dtype = compute_dtype(config.train, device)
    model = GPT(config.model, dtype, config.train.gradient_checkpointing).to(device)
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

    with start(description=describe(device), device=name_of(device), dtype=str(dtype).removeprefix("torch.")):
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
    command, why_preset = parse_training(argv, prog="python -m torch_gpt.train", has_gpu=has_gpu())
    train(Run(command, twin="torch_gpt", why_preset=why_preset))


if __name__ == "__main__":
    run_main(main)
