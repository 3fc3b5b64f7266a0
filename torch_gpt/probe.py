"""What the health gates of gpt_common/training/health ask of a model and of its training step."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch

from gpt_common.config import RunConfig
from gpt_common.data.batches import NumpyBatch, Tokens
from gpt_common.training.health.asked import Tried
from torch_gpt.device import synchronise, tensor, to_device
from torch_gpt.distributed import Ranks, whole
from torch_gpt.model import GPT, loss
from torch_gpt.optim import Optimizer, load_optimizer_tensors, optimizer_tensors

ALONE = 4
"""So many steps of one rank are timed."""


class Step(Protocol):
    """The training step of train.py, which imports this file."""

    model: GPT
    optimizer: Optimizer
    config: RunConfig
    compiled: bool
    ranks: Ranks
    update: Callable[..., torch.Tensor]

    def __call__(self, batches: Sequence[NumpyBatch], step: int, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Do it."""


class TrainingProbe:
    """A model seen from outside: losses, logits and gradients as numpy, without dropout; and the step that trains it.

    Args:
        model: what is asked.
        train_step: its training step, for those that ask it.
    """

    def __init__(self, model: GPT, train_step: Step | None = None) -> None:
        self.model = model
        self.train_step = train_step
        self.compiled = train_step is not None and train_step.compiled
        self.vocab_size = model.config.vocab_size

    @torch.no_grad()
    def loss(self, batch: NumpyBatch) -> float:
        """Mean cross entropy in nats per token."""
        return self.losses([batch])[0]

    @torch.no_grad()
    def losses(self, batches: Iterable[NumpyBatch]) -> list[float]:
        """The same of each batch, in less time: nobody waits for the device between them."""
        found = [loss(self.model, to_device(batch, self.model.device)) for batch in batches]
        values: list[float] = torch.stack(found).tolist() if found else []
        return values

    @torch.no_grad()
    def logits(self, tokens: Tokens) -> np.ndarray:
        """(B, T) ids -> (B, T, V) float32."""
        return np.asarray(self.model(tensor(tokens, self.model.device)).float().cpu().numpy())

    @torch.no_grad()
    def cached_logits(self, tokens: Tokens) -> np.ndarray:
        """The same, half of the tokens read at once and the others one by one, with a cache."""
        caches, ids, half = self.model.new_caches(), tensor(tokens, self.model.device), tokens.shape[1] // 2
        parts = [ids[:, :half], *(ids[:, t : t + 1] for t in range(half, tokens.shape[1]))]
        read = [self.model(part, caches=caches).float() for part in parts if part.shape[1]]
        return torch.cat(read, dim=1).cpu().numpy()

    def gradient_norms(self, batch: NumpyBatch) -> dict[str, float]:
        """Norm of each parameter's gradient by name."""
        loss(self.model, to_device(batch, self.model.device)).backward()
        norms = {name: float(p.grad.norm()) for name, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad(set_to_none=True)
        return norms

    def parameter_names(self) -> list[str]:
        """Names of all parameters that training should move."""
        return [name for name, _ in self.model.named_parameters()]

    def checksums(self) -> dict[str, int]:
        """CRC-32 of every parameter's bytes by name: tells whether an update moved it."""
        return {name: zlib.crc32(value.tobytes()) for name, value in self._parameters()}

    def frozen_checksums(self) -> dict[str, int]:
        """CRC-32 of every tensor's bytes that is saved and not trained, by name."""
        trained = {name for name, _ in self.model.named_parameters()}
        tensors = {name: value for name, value in self.model.state_dict().items() if name not in trained}
        return {name: zlib.crc32(value.float().cpu().numpy().tobytes()) for name, value in tensors.items()}

    def find_non_finite(self) -> str | None:
        """Name of the first parameter with NaN or infinity, if any."""
        return next((name for name, value in self._parameters() if not np.isfinite(value).all()), None)

    # ---- the training step ---------------------------------------------------------------------------------------

    def step_loss(self, batches: Sequence[NumpyBatch], step: int, *, dropout: bool = True) -> float:
        """The loss that the step reports, nats per token; nothing is updated."""
        return self._held_back(batches, step, dropout)[0]

    def step_gradients(
        self, batches: Sequence[NumpyBatch], step: int, *, dropout: bool = True, dealt: bool = False
    ) -> tuple[float, dict[str, np.ndarray[Any, Any]]]:
        """The same, and the gradient that would have been clipped and applied; `dealt`: to all ranks that train."""
        loss, gradients = self._held_back(batches, step, dropout, dealt)
        return loss, {name: whole(gradient).cpu().numpy() for name, gradient in gradients.items()}

    def try_step(self, batches: Sequence[NumpyBatch], step: int, rate: float, clip: float) -> Tried:
        """Take the step, clipped to the norm `clip`, remember what it did to the weights, and undo it, to the bit."""
        assert self.train_step is not None
        config, ranks, before = self.train_step.config, self.train_step.ranks, self.weights()
        self.train_step.config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, grad_clip=clip))
        try:
            with self.undone(step):
                _, norm = self.train_step(batches, step, rate)
                after, moments = self.weights(), self.moments()
        finally:
            self.train_step.config = config
        if ranks.owners:  # others update the others
            before, after = ({name: weights[name] for name in ranks.owned(ranks.rank)} for weights in (before, after))
        return Tried(float(norm), before, after, moments)

    def seconds_alone(self, batches: Sequence[NumpyBatch], step: int) -> float:
        """Seconds of a step that this rank makes alone, the median of some; nothing stays of them."""
        assert self.train_step is not None
        seconds = []
        with self.undone(step):
            for _ in range(1 + ALONE):  # the first compiles
                began = perf_counter()
                self.train_step(batches, step, 0.0)
                synchronise(self.model.device)
                seconds.append(perf_counter() - began)
        return median(seconds[1:])

    @contextmanager
    def undone(self, step: int) -> Iterator[None]:
        """Steps within the block are this rank's alone, and are undone, to the bit."""
        assert self.train_step is not None
        state, moments = {name: value.clone() for name, value in self.model.state_dict().items()}, self.moments()
        ranks, self.train_step.ranks = self.train_step.ranks, Ranks()
        try:
            yield
        finally:
            self.train_step.ranks = ranks
        self.model.load_state_dict(state)
        self.set_moments(moments, step)
        self.model.routers.take_loads()

    def weights(self) -> dict[str, np.ndarray[Any, Any]]:
        """A copy of every parameter."""
        return {name: value.copy() for name, value in self._parameters()}

    def set_weights(self, weights: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Put parameters back."""
        places = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in weights.items():
                places[name].copy_(torch.from_numpy(value))

    def moments(self) -> dict[str, np.ndarray[Any, Any]]:
        """A copy of the optimiser's state by name, as in a checkpoint."""
        assert self.train_step is not None
        tensors = optimizer_tensors(self.model, self.train_step.optimizer)
        return {name: value.cpu().numpy().copy() for name, value in tensors.items()}

    def set_moments(self, moments: Mapping[str, np.ndarray[Any, Any]], step: int) -> None:
        """Put the optimiser's state back, after `step` updates."""
        assert self.train_step is not None
        tensors = {name: torch.from_numpy(value) for name, value in moments.items()}
        load_optimizer_tensors(self.model, self.train_step.optimizer, tensors, step)

    def _held_back(
        self, batches: Sequence[NumpyBatch], step: int, dropout: bool, dealt: bool = False
    ) -> tuple[float, dict[str, torch.Tensor]]:
        """Loss and gradient of the step as it trains, its update left out."""
        train_step, gradients = self.train_step, {}
        assert train_step is not None

        def hold_back() -> torch.Tensor:
            gradients.update({n: p.grad for n, p in self.model.named_parameters() if p.grad is not None})
            self.model.zero_grad(set_to_none=True)
            return torch.zeros(())

        update, config, ranks = train_step.update, train_step.config, train_step.ranks
        train_step.update = hold_back
        if not dealt:
            train_step.ranks = Ranks()
        if not dropout:
            model = dataclasses.replace(config.model, dropout=0.0)
            adapter = dataclasses.replace(config.adapter, adapter_dropout=0.0)
            train_step.config = dataclasses.replace(config, model=model, adapter=adapter)
        try:
            loss, _ = train_step(batches, step, 0.0)
        finally:
            train_step.update, train_step.config, train_step.ranks = update, config, ranks
            self.model.zero_grad(set_to_none=True)
            self.model.routers.forget()
        return float(loss), gradients

    def _parameters(self) -> Iterator[tuple[str, np.ndarray]]:
        for name, parameter in self.model.named_parameters():
            yield name, whole(parameter.detach()).cpu().numpy()
