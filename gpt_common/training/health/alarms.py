"""Alarms during training: they say when learning is not happening, or has gone past its best."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from gpt_common.errors import WorkFailed

TOO_FAST = "Usually the learning rate is too high: lower it, or warm up longer"


class Diverged(WorkFailed):
    """A number became NaN or infinite: no later step can mend it."""


class Alarms:
    """Watches losses for the signs of a run that does not learn, cheats, or has passed its best.

    Args:
        vocab_size: entries of the vocabulary.
        max_steps: steps of the whole schedule.
        warmup_steps: steps of learning-rate warm-up.
        unigram_entropy: of the training tokens, nats per token, where it is known.
        floor: lowest possible validation loss, nats per token, where it is known.
        floor_error: standard error of that floor on the validation batches.
        patience: evaluations above the best one before an alarm.
        find_non_finite: names a tensor with NaN or infinity, or None; asked when a loss is not finite.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        max_steps: int,
        warmup_steps: int,
        unigram_entropy: float | None = None,
        floor: float | None = None,
        floor_error: float = 0.0,
        patience: int = 5,
        find_non_finite: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._uniform = math.log(vocab_size)
        self._unigram = unigram_entropy
        # By the end of two warm-ups every healthy run has left the unigram plateau far behind.
        self._learnt_by = max(100, min(2 * warmup_steps, max_steps))
        self._floor, self._floor_error = floor, floor_error
        self._patience = patience
        self._find_non_finite = find_non_finite
        self._recent: deque[float] = deque(maxlen=10)
        self._best = (math.inf, 0)
        self._start: float | None = None
        self._worse = False
        self.max_steps = max_steps
        self._above_best: list[float] = []
        self._said: set[str] = set()

    def on_step(self, step: int, loss: float, grad_norm: float | None = None) -> list[str]:
        """Watch a training loss (nats per token) and a gradient norm; call it at every logged step.

        Raises:
            Diverged: one of them is NaN or infinite.
        """
        self._require_finite(step, "loss", loss)
        if grad_norm is not None:
            self._require_finite(step, "gradient norm", grad_norm)
        if "learnt" in self._said or "stuck" in self._said:
            return []
        self._recent.append(loss)
        mean = sum(self._recent) / len(self._recent)
        plateau = self._uniform if self._unigram is None else min(self._unigram, self._uniform)
        if mean < 0.97 * plateau:
            self._said.add("learnt")
        elif step >= self._learnt_by:
            if mean >= 0.97 * self._uniform:
                level = f"ln({round(math.exp(self._uniform))}) = {self._uniform:.4f}: nothing is learnt"
            else:
                level = f"the unigram entropy {plateau:.4f}: only the tokens' frequencies are learnt"
            return self._once("stuck", f"after {step} steps the loss {mean:.4f} is still at {level}")
        return []

    def on_evaluation(self, step: int, val_loss: float) -> list[str]:
        """Watch a validation loss (nats per token).

        Raises:
            Diverged: it is NaN or infinite.
        """
        self._require_finite(step, "validation loss", val_loss)
        alarms: list[str] = []
        if self._floor is not None and val_loss < self._floor - 4 * self._floor_error:
            below = f"step {step}: validation loss {val_loss:.4f} is below the corpus's floor {self._floor:.4f}"
            alarms += self._once(
                "floor", f"{below}: the model is reading the future, or validation text is in training"
            )
        if self._start is None:
            self._start = val_loss
        best, best_step = self._best
        if val_loss < best:
            self._best = (val_loss, step)
            self._above_best = []
            return alarms
        # Twice in a row, or at the end: a fine-tuned model may leave its place before it finds a better one.
        if val_loss > 1.005 * self._start and (step >= self.max_steps or self._worse):
            worse = f"step {step}: validation loss {val_loss:.4f} is worse than the {self._start:.4f} it started from"
            alarms += self._once("worse", f"{worse}. Lower --learning-rate")
        self._worse = val_loss > 1.005 * self._start
        self._above_best.append(val_loss)
        recent = self._above_best[-self._patience :]
        # Half a percent: a converged run that wanders about its best is not one that gets worse.
        if len(recent) == self._patience and sum(recent) / self._patience > 1.005 * best:
            rising = (
                f"step {step}: validation loss {val_loss:.4f} is rising, {self._patience} evaluations above {best:.4f}"
            )
            alarms += self._once("rising", f"{rising}; best was step {best_step}")
        return alarms

    def on_save(self, step: int) -> None:
        """Call it before a checkpoint is written, so that the one before stays the latest if the weights are spoilt.

        Raises:
            Diverged: a tensor holds NaN or infinity.
        """
        tensor = self._find_non_finite()
        if tensor:
            raise Diverged(f"step {step}: NaN or infinity in {tensor}, not saved. {TOO_FAST}")

    def _once(self, kind: str, text: str) -> list[str]:
        if kind in self._said:
            return []
        self._said.add(kind)
        return [text]

    def _require_finite(self, step: int, name: str, value: float) -> None:
        if math.isfinite(value):
            return
        tensor = self._find_non_finite()
        where = f"; NaN or infinity in {tensor}" if tensor else ""
        raise Diverged(f"step {step}: the {name} is {value}{where}. {TOO_FAST}")
