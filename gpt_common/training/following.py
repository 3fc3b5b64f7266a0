"""Training that follows a preparation: the tokens of a step are waited for, and what becomes known of the rest is said.

Of any other text all tokens are there, and nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from gpt_common.config import DataConfig, TrainConfig
from gpt_common.data import Dataset
from gpt_common.data.batches import Source, Windows
from gpt_common.data.corpora.following import difference
from gpt_common.errors import UserError
from gpt_common.words import duration

POLL_SECONDS = 1.0
"""Between two looks for what is waited for."""
LOOK_SECONDS = 10.0
"""Between two looks at a preparation that is ahead of the run."""


class Following:
    """Of one run.

    Args:
        name: of the dataset.
        source: where its training batches come from.
    """

    def __init__(self, name: str, source: Source, train: TrainConfig) -> None:
        self.name = name
        self.windows = source if isinstance(source, Windows) else None
        self.each = train.batch_size * train.grad_accum_steps
        """Windows of a step."""
        self.error: UserError | None = None
        """Why the run cannot go on."""
        self._looked = monotonic()
        self._said = False

    def lacks(self, step: int, steps: int = 1) -> bool:
        """Whether tokens of `steps` steps from `step` (from 0) on are not there, or wrong (`error`)."""
        if self.windows is None:
            return False
        try:
            if monotonic() > self._looked + LOOK_SECONDS:
                self._looked = monotonic()
                self.windows.stream.look()
            return not self.windows.there(self._numbers(step, steps))
        except UserError as error:
            self.error = error
            return True

    def wait(
        self,
        step: int,
        say: Callable[[str], None],
        enough: Callable[[], bool] = lambda: False,
        *,
        show: Callable[[str], None] = lambda _: None,
        agree: Callable[[bool, UserError | None], tuple[bool, UserError | None]] | None = None,
        steps: int = 1,
    ) -> bool:
        """Wait for the tokens of `steps` steps from `step` (from 0) on; False if they do not come.

        Args:
            say: takes a line.
            enough: asked all the time whether to wait no longer.
            show: takes what is there by now, all the time, and nothing at the end.
            agree: of several ranks, each with a disk of its own: told whether they are there and what is wrong, tells
                whether all have them and what is wrong with any.
        """
        if not self.lacks(step, steps) and agree is None:
            return True
        assert self.windows is not None
        stream, began = self.windows.stream, monotonic()
        needed = self.windows.needed(self._numbers(step, steps))
        if self.error is None:
            say(f"step {step + 1} waits for tokens of '{self.name}': {len(stream):,} are there, of {needed:,}")
        while not enough():
            grows = stream.grows  # asked first: what it finished before it stopped is found now
            lacks = self.lacks(step, steps)
            if lacks and self.error is None and not grows:
                self.error = UserError(f"nobody prepares '{self.name}' any more: go on with `{stream.remedy}`")
            there, self.error = (not lacks, self.error) if agree is None else agree(not lacks, self.error)
            if self.error is not None:
                break
            if there:
                show("")
                say(f"step {step + 1} goes on after {duration(monotonic() - began)}")
                return True
            show(f"waiting {duration(monotonic() - began)}  {len(stream):,} of {needed:,} tokens")
            sleep(POLL_SECONDS)
        show("")
        return False

    def news(self, max_steps: int) -> str | None:
        """A line, once, when it is known that the stream is too short for so many steps."""
        total = None if self.windows is None else self.windows.total
        if self._said or total is None or self.windows is None or max_steps * self.each <= total:
            return None
        self._said = True
        return (
            f"'{self.name}' ends after {len(self.windows.stream):,} tokens for training: from step "
            f"{total // self.each + 1} on they come again, in another order"
        )

    def _numbers(self, step: int, steps: int) -> range:
        return range(step * self.each, (step + steps) * self.each)


def check_preparation(checkpoint: Path, recorded: Mapping[str, Any], dataset: Dataset) -> None:
    """Refuse to go on with what is prepared from something else than a checkpoint was trained on.

    Args:
        recorded: what its manifest says of its dataset.

    Raises:
        UserError: names what differs.
    """
    before = recorded.get("preparation")
    if before and dataset.preparation and (other := difference(before, dataset.preparation)):
        raise UserError(
            f"cannot resume {checkpoint}: what is prepared as '{dataset.name}' has {other}: prepare it as it was, or "
            "start a new run (with --init-from to keep the weights)"
        )


def seen_before(before: DataConfig, now: DataConfig) -> list[str]:
    """A line where a base was trained on what is validation text now: to follow divides a corpus in another way."""
    if before.dataset != now.dataset or before.follow == now.follow:
        return []
    return [f"the base was trained on text of '{now.dataset}' that is for validation now: its loss flatters"]
