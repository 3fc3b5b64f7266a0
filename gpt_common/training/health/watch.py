"""All that watches over a run: gates before its first step and during it, alarms, and what was saved read back."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np
import numpy.typing as npt

from gpt_common.config import RunConfig
from gpt_common.data import Dataset
from gpt_common.data.batches import NumpyBatch, Rows, Source, Split, Windows, evaluation_batches, mean_loss, places
from gpt_common.training.checkpoint import find_checkpoint, read_manifest
from gpt_common.training.health.adapter_gates import check_adapters_moved, check_frozen, check_used, stirred
from gpt_common.training.health.alarms import Alarms
from gpt_common.training.health.asked import StepProbe
from gpt_common.training.health.data_gates import (
    Repeats,
    check_batches,
    check_drawn_anew,
    steps_per_epoch,
    text_of_stream,
)
from gpt_common.training.health.example_gates import check_examples
from gpt_common.training.health.gates import GateFailed, TrainedProbe, check_first_update, check_start
from gpt_common.training.health.leak_alarm import leak_alarm
from gpt_common.training.health.saved_gates import check_moments, check_pointer, check_same_weights, check_taken_up
from gpt_common.training.health.step_gates import asked_of, check_again, check_dealt, check_step
from gpt_common.training.ranks.agreement import Agreement
from gpt_common.training.ranks.nearness import NEAR
from gpt_common.training.schedule import learning_rate

MOVES = 1e-5
"""Learning rate at which a mean of many steps moves for certain; a run may be taken up where its schedule is at 0."""

BEST: Literal["best"] = "best"
LATEST: Literal["latest"] = "latest"


class Health:
    """Gates and alarms of one run.

    Args:
        splits: where training and validation batches come from.
        probe: the step, as it trains.
        evaluated: what is evaluated and saved: the model, or the mean of its weights.
        load: opens a checkpoint as anyone would who uses it.
        dtype: that the step computes in.
        first_step: updates that were done before.
        fresh: the weights are newly initialised.
        lowest: the best loss so far of a run that is taken up, nats per token.
        note: shows a line.
        warn: shows a line that must not be overlooked.
        ranks: the processes that train together, if there are several.
    """

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        splits: tuple[Source, Split],
        probe: StepProbe,
        evaluated: TrainedProbe,
        load: Callable[[Path], TrainedProbe],
        *,
        dtype: str,
        first_step: int,
        fresh: bool,
        lowest: float | None,
        note: Callable[[str], None],
        warn: Callable[[str], None],
        ranks: Agreement | None = None,
    ) -> None:
        self.config, self.dataset = config, dataset
        self.train, self.val = splits
        self.probe, self.evaluated, self.load = probe, evaluated, load
        self.dtype, self.first_step, self.fresh = dtype, first_step, fresh
        self.note, self._warn = note, warn
        self.rang: list[str] = []
        """Alarms so far; a machine that is busy is none of them."""
        self.ranks = ranks or Agreement()
        self.on = config.train.health_gates != "off"
        self.adapts = config.adapter.adapts
        tokens = config.train.batch_size * config.train.grad_accum_steps * config.model.block_size
        self.alarms = Alarms(
            vocab_size=config.model.vocab_size,
            unigram_entropy=dataset.unigram_entropy,
            floor=dataset.floor,
            floor_error=dataset.floor_error or 0.0,
            warmup_steps=config.optim.warmup_steps,
            max_steps=config.train.max_steps,
            tokens_per_step=tokens,
            tokens_evaluated=config.train.eval_batches * config.train.batch_size * config.model.block_size,
            steps_per_epoch=steps_per_epoch(self.train, config.train, config.model.block_size),
            lowest=lowest,
            find_non_finite=probe.find_non_finite,
        )
        self._asked: list[tuple[NumpyBatch, float]] = []
        self._asked_first = 0
        self._evaluations = 0
        self._still: dict[str, int] = {}
        self._text: list[int] = []
        self._repeats = Repeats(places(self.train, config.model.block_size), config.train.batch_size)

    def warn(self, text: str) -> None:
        """Ring an alarm."""
        self.rang.append(text)
        self._warn(text)

    def check_start(
        self,
        batches: Sequence[NumpyBatch],
        following: Sequence[NumpyBatch] = (),
        resumed: Path | None = None,
        longer: Sequence[NumpyBatch] = (),
    ) -> None:
        """Gates before the first step: can this model learn at all, and does the step do what it should?

        Args:
            batches: the micro-batches of the first step.
            following: those of the next one.
            resumed: the checkpoint that is taken up.
            longer: micro-batches of the whole length, where those of the first are shorter.

        Raises:
            GateFailed: names the gate, what it found and what that usually means.
        """
        if not self.on:
            return
        self._check_ranks(batches)
        self._frozen = self.probe.frozen_checksums() if self.adapts else {}
        with stirred(self.probe, self.config.train.seed) if self.adapts else nullcontext():
            self._ask(batches, following, longer or batches, resumed)
        if leak := leak_alarm(self.dataset):
            self.warn(leak)
        self._checksums = self.probe.checksums()
        self._still = self.evaluated.checksums() if self.config.optim.ema_decay else self._checksums
        # While B is 0, no gradient reaches A.
        waits = [name for name in self._checksums if name.endswith(".lora_a") and self.first_step == 0]
        self._first_to_move = {name: value for name, value in self._checksums.items() if name not in waits}

    def _check_ranks(self, batches: Sequence[NumpyBatch]) -> None:
        """Of several ranks: they begin with the same weights, and make the step that one of them would make."""
        if self.ranks.world > 1:
            self.ranks.check_weights(self._all_checksums, self.first_step)
            exact = "meet at averages only" if self.ranks.apart else check_dealt(self.probe, batches, self.first_step)
            self.note(f"health: {self.ranks.world} ranks have the same weights, and {exact}")

    def _all_checksums(self) -> dict[str, int]:
        return {**self.probe.checksums(), **self.probe.frozen_checksums()}

    def _ask(
        self,
        batches: Sequence[NumpyBatch],
        following: Sequence[NumpyBatch],
        longer: Sequence[NumpyBatch],
        resumed: Path | None,
    ) -> None:
        """The gates of `check_start`: of the data on what the first steps are given, of model and step on `longer`."""
        lines = check_start(self.probe, longer[0], fresh=self.fresh)
        if self.adapts:
            lines.append("health: " + check_used(self.probe, longer[0], exact=self.dtype == "float32"))
        lines.append("health: " + check_batches(batches, self._trained_text(), self.dataset.val, "training"))
        check_drawn_anew(batches, following, places(self.train, self.config.model.block_size))
        if isinstance(self.train, Rows):
            lines.append("health: " + check_examples(self.probe, longer, self.first_step))
        if resumed is not None:
            lines.append("health: " + check_taken_up(resumed, self.probe, self.first_step))
        self.asked_step = asked_of(self.probe, self.config, longer, self.first_step, self.dtype)
        for line in lines + check_step(self.asked_step, self.config.train.health_gates):
            self.note(line)

    def _trained_text(self) -> npt.NDArray[np.integer[Any]]:
        """What the first steps are to be given from: the training split, or of a stream the pools of the first step."""
        if not isinstance(self.train, Windows):
            return self.dataset.train
        each = self.config.train.batch_size * self.config.train.grad_accum_steps
        first = self.first_step * each
        return text_of_stream(self.train, range(first, first + each), self.dataset.train)

    def on_batches(self, step: int, batches: Sequence[NumpyBatch]) -> None:
        """Watch what step number `step` (from 0) is given; raises GateFailed if another step was given it."""
        if self.on:
            self._repeats.check(step, batches)

    def on_steps(self, step: int, losses: Sequence[float], lr: float, grad_norm: float) -> None:
        """Watch the losses of the steps up to `step`, nats per token, and rate and gradient norm of the last.

        Raises:
            Diverged: one of them is NaN or infinite.
            GateFailed: the first update left a parameter where it was, or a step had another rate than its own.
        """
        for number, loss in enumerate(losses, start=step - len(losses) + 1):
            for alarm in self.alarms.on_step(number, loss, grad_norm if number == step else None):
                self.warn(alarm)
        if self.on and not self.config.train.max_minutes:  # which sets the schedule when steps were timed
            planned = learning_rate(step - 1, self.config.optim, self.config.train.max_steps)
            if not abs(lr - planned) <= 1e-9 * planned:
                raise GateFailed(
                    "schedule",
                    f"step {step} was done at the learning rate {lr:.3g}, and {planned:.3g} was its turn",
                    "The loop asks the schedule for another step, or passes something else on",
                )
        if self.on and step == self.first_step + 1:
            after = self.probe.checksums()
            check_first_update(self._first_to_move, {name: after[name] for name in self._first_to_move}, lr)
            check_frozen(self._frozen, self.probe.frozen_checksums() if self.adapts else {})

    def on_speed(self, step: int, mfu: float | None, seconds: float, *, gpu: bool) -> None:
        """Watch the share of the device's peak that steps reach, which take so many seconds each."""
        micro_step = seconds / self.config.train.grad_accum_steps
        for alarm in self.alarms.on_speed(step, mfu, micro_step if gpu else None):
            self.warn(alarm)

    def loss_on(self, split: Source) -> float:
        """Mean loss on fixed batches of a split, nats per token."""
        return self._mean_loss(self.evaluated, split, dealt=True)

    def _mean_loss(self, probe: TrainedProbe, split: Source, *, dealt: bool = False) -> float:
        train = self.config.train
        sizes = {"block_size": self.config.model.block_size, "batch_size": train.batch_size}
        batches = list(evaluation_batches(split, **sizes, batches=train.eval_batches))
        losses = self.ranks.losses(batches, probe.losses) if dealt else probe.losses(batches)
        self._asked_first = len(self._asked)  # how many are of the split before
        self._asked += zip(batches, losses, strict=True)
        return mean_loss(batches, losses)

    def on_evaluation(self, step: int, train_loss: float, val_loss: float) -> None:
        """Watch an evaluation, and ask the step again in the middle of a run.

        Raises:
            Diverged: a loss is NaN or infinite.
            GateFailed: the losses are not of the split that they are said to be, or the step has changed its ways.
        """
        asked, self._asked = self._asked, []
        if self.on:
            self.ranks.check_weights(self._all_checksums, step, self.probe.weights, NEAR[self.config.optim.optimizer])
        if self.on and not self._evaluations:
            self._check_evaluation(asked, val_loss)
        text = [zlib.crc32(batch.tokens.tobytes()) for batch, _ in asked]
        if self.on and self._evaluations and text != self._text:
            raise GateFailed(
                "data", f"the evaluation at step {step} is on other text than the first", "Losses cannot be compared"
            )
        self._text = text
        if self.on and step > self.first_step:
            check_again(self.asked_step, step)
            self._check_moved(step)
        self._evaluations += 1
        for alarm in self.alarms.on_evaluation(step, val_loss, train_loss):
            self.warn(alarm)

    def _check_moved(self, step: int) -> None:
        """Once: what is evaluated, the weights or their mean, is not what it was before the first step."""
        still, self._still = self._still, {}
        rate = learning_rate(self.first_step, self.config.optim, self.config.train.max_steps)
        if rate >= MOVES and still and still == self.evaluated.checksums():
            raise GateFailed(
                "evaluation",
                f"after {step - self.first_step} steps the weights that are evaluated are still those of the beginning",
                "The mean of the weights is not updated, or another model is evaluated than trained",
            )
        if rate >= MOVES and still and self.adapts and step > self.first_step + 1:
            check_adapters_moved(still, self.evaluated.checksums())

    def _check_evaluation(self, asked: Sequence[tuple[NumpyBatch, float]], val_loss: float) -> None:
        """What was called the validation loss is the mean of the losses on validation text, wherever that was asked."""
        ours = asked[self._asked_first :]
        check_batches([batch for batch, _ in ours[:2]], self.dataset.val, self.dataset.train, "validation")
        mean = mean_loss([batch for batch, _ in ours], [loss for _, loss in ours])
        if not abs(mean - val_loss) <= 1e-6 * max(1.0, mean):
            raise GateFailed(
                "data",
                f"the validation loss is said to be {val_loss:.4f}, and is {mean:.4f} on the validation batches",
                "The loss of another split is logged in its place",
            )

    def on_save(self, step: int) -> None:
        """Call it before a checkpoint is written; raises Diverged if a tensor holds NaN or infinity."""
        self.alarms.on_save(step)

    def on_saved(self, folder: Path, step: int, best_step: int | None) -> None:
        """Call it when a checkpoint was written.

        Args:
            folder: the run's.
            step: of the checkpoint.
            best_step: of the best evaluation of the run.

        Raises:
            GateFailed: `latest` or `best` names another checkpoint than it should.
        """
        if not self.on:
            return
        check_pointer(folder, LATEST, step)
        if self._is_ours(best_step):
            check_pointer(folder, BEST, best_step)

    def _is_ours(self, best_step: int | None) -> TypeGuard[int]:
        """Whether this session found the best: an earlier one's may be of a future that was given up."""
        return best_step is not None and best_step > self.first_step

    def read_back(self, folder: Path, best: tuple[int | None, float | None]) -> str | None:
        """Load `best` and `latest` as a user would, and evaluate them: the stored losses must come out.

        Args:
            folder: the run's.
            best: step and loss of the best evaluation of the run.

        Returns:
            What was found, or None if there was nothing to compare.

        Raises:
            GateFailed: another loss comes out, or `best` is not the best.
        """
        found = {}
        for name in (BEST, LATEST) if self._is_ours(best[0]) else (LATEST,):
            checkpoint = find_checkpoint(folder, prefer=name)
            manifest = read_manifest(checkpoint)
            if name == BEST and (manifest.step, manifest.val_loss) != best:
                said = f"best is step {manifest.step} with loss {manifest.val_loss}"
                raise GateFailed(
                    "read back",
                    f"{said}, and step {best[0]} was best with {best[1]}",
                    "The pointer moved when it should not have, or did not when it should",
                )
            if checkpoint in found:
                continue
            loaded = self.load(checkpoint)
            if name == LATEST and not self.ranks.deals_weights:  # the others have left with theirs
                check_same_weights(checkpoint, loaded.checksums(), self.evaluated.checksums())
                if self.adapts:
                    check_frozen(self._frozen, self.probe.frozen_checksums())
                    check_frozen(self._frozen, loaded.frozen_checksums())
                check_moments(checkpoint, self.probe, "saved")
            if manifest.val_loss is None:
                continue
            found[checkpoint] = self._mean_loss(loaded, self.val)
            if not abs(found[checkpoint] - manifest.val_loss) <= 1e-5 * max(1.0, manifest.val_loss):
                raise GateFailed(
                    "read back",
                    f"{checkpoint} says validation loss {manifest.val_loss:.4f}, loaded again it has "
                    f"{found[checkpoint]:.4f}",
                    "Not the weights that were evaluated were saved, or they are not loaded as they were saved",
                )
        return f"{len(found)} checkpoint{'s' * (len(found) > 1)} loaded again, with the stored loss" if found else None
