"""Alarms during training: relations between losses that no healthy run has, at any step of it.

A single number can look right for hours: a model that reads the future has a fine training loss. So losses are compared
with the floor and the plateau of the corpus, with their own best, and training with validation. No alarm goes to sleep.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from gpt_common.errors import WorkFailed
from gpt_common.network.flops import ASSUMED_MFU

TOO_FAST = "Usually the learning rate is too high: lower it, or warm up longer"
SLOWER = 10
"""How many times slower than planned is no matter of configuration."""
FULL_SECONDS = 0.02
"""A micro-step that is planned to take so long keeps a GPU at work; a shorter one leaves it idle between kernels."""
SOME_TEXT = 100_000
"""Tokens after which more than their frequencies is learnt."""
WINDOW = 20
"""Steps whose mean loss is judged: one batch says little."""


class Diverged(WorkFailed):
    """A number became NaN or infinite: no later step can mend it."""


class Alarms:
    """Watches losses for the signs of a run that does not learn, collapses, cheats, or has passed its best.

    Args:
        vocab_size: entries of the vocabulary.
        max_steps: steps of the whole schedule.
        warmup_steps: steps of learning-rate warm-up.
        unigram_entropy: of the training tokens, nats per token, where it is known.
        floor: lowest possible validation loss, nats per token, where it is known.
        floor_error: standard error of that floor on the validation batches.
        patience: evaluations above the best one before an alarm.
        tokens_per_step: that are trained on.
        tokens_evaluated: in an evaluation of one split.
        steps_per_epoch: steps in which as many tokens are seen as there are, where it is known.
        lowest: loss that a run which is taken up has had, nats per token.
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
        tokens_per_step: int = SOME_TEXT,
        tokens_evaluated: int = SOME_TEXT,
        steps_per_epoch: float | None = None,
        lowest: float | None = None,
        find_non_finite: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._uniform = math.log(vocab_size)
        self._plateau = self._uniform if unigram_entropy is None else min(unigram_entropy, self._uniform)
        # By the end of two warm-ups every healthy run that has seen some text has left the unigram plateau far behind.
        self._learnt_by = max(100, min(2 * warmup_steps, max_steps), math.ceil(SOME_TEXT / tokens_per_step))
        self._floor, self._floor_error = floor, floor_error
        self._patience = patience
        self._epoch = steps_per_epoch
        self._evaluated_tokens = tokens_evaluated
        self._find_non_finite = find_non_finite
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._lowest = math.inf if lowest is None else lowest
        self._best = (math.inf, 0)
        self._start: float | None = None
        self._evaluated: list[tuple[float, float]] = []
        self._worse = False
        self.max_steps = max_steps
        self._above_best: list[float] = []
        self._said: set[str] = set()

    def on_step(self, step: int, loss: float, grad_norm: float | None = None) -> list[str]:
        """Watch a training loss (nats per token) and a gradient norm; call it for every step.

        Raises:
            Diverged: one of them is NaN or infinite.
        """
        self._require_finite(step, "loss", loss)
        if grad_norm is not None:
            self._require_finite(step, "gradient norm", grad_norm)
        self._recent.append(loss)
        mean = sum(self._recent) / len(self._recent)
        alarms = self._on_floor(step, mean)
        if len(self._recent) == WINDOW:
            self._lowest = min(self._lowest, mean)
        if self._lowest < 0.9 * self._plateau:
            return alarms + self._on_collapse(step, mean)
        if step >= self._learnt_by and mean >= 0.97 * self._plateau:
            level = f"the unigram entropy {self._plateau:.4f}: only the tokens' frequencies are learnt"
            if mean >= 0.97 * self._uniform:
                level = f"ln({round(math.exp(self._uniform))}) = {self._uniform:.4f}: nothing is learnt"
            alarms += self._once("stuck", f"after {step} steps the loss {mean:.4f} is still at {level}")
        return alarms

    def _on_collapse(self, step: int, mean: float) -> list[str]:
        """A loss that was low and is not any more; said again if it recovers and collapses again."""
        back = mean >= 0.97 * self._plateau
        # Twice the best, and by an amount that batches do not differ by where the best is small.
        doubled = mean > 2 * self._lowest and mean - self._lowest > 0.1 * self._plateau
        if not back and not doubled:
            if mean < 1.3 * self._lowest:
                self._said -= {"back", "doubled"}
            return []
        if back:
            self._said.add("doubled")  # which it is too
            text = f"the loss {mean:.4f} is back at the plateau {self._plateau:.4f} of knowing frequencies alone"
            return self._once("back", f"step {step}: {text}; it had been {self._lowest:.4f}. {TOO_FAST}")
        text = f"the loss {mean:.4f} has risen to more than twice the {self._lowest:.4f} that it had been"
        return self._once("doubled", f"step {step}: {text}. {TOO_FAST}")

    def _on_floor(self, step: int, mean: float) -> list[str]:
        if self._floor is None or len(self._recent) < WINDOW:
            return []
        spread = math.sqrt(sum((loss - mean) ** 2 for loss in self._recent) / (WINDOW - 1) / WINDOW)
        if mean + 4 * spread >= self._floor - 4 * self._floor_error:
            return []
        text = f"step {step}: training loss {mean:.4f} is below the corpus's floor {self._floor:.4f}"
        return self._once("training floor", f"{text}: training reads the future, or knows the text by heart")

    def on_speed(self, step: int, mfu: float | None, micro_step: float | None = None) -> list[str]:
        """Watch the share of the device's peak that a step reaches, where the peak is known.

        Args:
            micro_step: seconds that one took on a GPU; of a CPU nothing is expected.
        """
        if mfu is None or math.isnan(mfu):
            return []
        if mfu > 1:
            text = f"step {step}: MFU {mfu:.1%} is more than the device can do"
            return self._once("too fast", f"{text}: steps are not waited for, or the clock or the chip is another")
        planned = 0.0 if micro_step is None else micro_step * mfu / ASSUMED_MFU
        if planned >= FULL_SECONDS and mfu < ASSUMED_MFU / SLOWER:
            text = f"step {step}: MFU {mfu:.2%} is less than a tenth of the {ASSUMED_MFU:.0%} that such steps reach"
            return self._once("slow", f"{text}: is another process on the device, or the machine hot or saving power?")
        return []

    def on_evaluation(self, step: int, val_loss: float, train_loss: float | None = None) -> list[str]:
        """Watch a validation loss, and a loss of the same kind on training text, nats per token.

        Raises:
            Diverged: one of them is NaN or infinite.
        """
        self._require_finite(step, "validation loss", val_loss)
        alarms: list[str] = []
        if self._floor is not None and val_loss < self._floor - 4 * self._floor_error:
            below = f"step {step}: validation loss {val_loss:.4f} is below the corpus's floor {self._floor:.4f}"
            alarms += self._once(
                "floor", f"{below}: the model is reading the future, or validation text is in training"
            )
        if train_loss is not None:
            self._require_finite(step, "loss on training text", train_loss)
            alarms += self._on_gap(step, train_loss, val_loss)
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

    def _on_gap(self, step: int, train_loss: float, val_loss: float) -> list[str]:
        """Three losses of one model that must agree: of its training steps, of training text, of validation text."""
        alarms: list[str] = []
        # Losses of tokens scatter by about their mean: of few, two samples of one text differ by that.
        chance = 4 * max(train_loss, val_loss) / math.sqrt(self._evaluated_tokens)
        gap = 0.1 * self._plateau + chance
        if len(self._recent) == WINDOW:
            steps = sum(self._recent) / WINDOW
            # Dropout makes the loss of a step higher, and so do the older weights of the steps before; never lower.
            if train_loss > steps + gap and train_loss > 1.1 * steps:
                text = f"step {step}: training steps say {steps:.4f}, evaluation on training text says {train_loss:.4f}"
                alarms += self._once("paths", f"{text}: the step trains on something else (the future, other labels)")
        seen_less_than_once = self._epoch is not None and step < self._epoch
        if seen_less_than_once and val_loss > train_loss + 1.5 * gap and step > 0:
            text = (
                f"step {step}: validation loss {val_loss:.4f}, {train_loss:.4f} on training text that was hardly seen"
            )
            alarms += self._once(
                "gap", f"{text}: validation text is of another kind, or the training text repeats itself"
            )
        self._evaluated.append((train_loss, val_loss))
        before = self._evaluated[-3:]
        falling = len(before) == 3 and before[0][0] > before[1][0] > before[2][0]
        rising = len(before) == 3 and before[0][1] < before[1][1] < before[2][1]
        if falling and rising and before[2][1] > 1.02 * before[0][1]:
            text = (
                f"step {step}: validation loss rises, {before[0][1]:.4f} to {before[2][1]:.4f}, and training loss falls"
            )
            alarms += self._once("apart", f"{text}: from here on the training text is learnt by heart")
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
