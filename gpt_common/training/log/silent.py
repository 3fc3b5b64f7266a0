"""The log of a rank that is not the first: it writes nothing and prints nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt_common.training.log.console import PlainConsole, Progress
from gpt_common.training.log.runlog import RunLog


class SilentLog(RunLog):
    """See above; rank 0 writes the same things down."""

    def __init__(self) -> None:
        self._step, self._clock, self._opened = 0, time.monotonic, 0.0
        self.alarms: list[str] = []
        self._trackers = {}
        self._nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._console = PlainConsole(Progress(1, 0), self._nowhere)

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing but the file that is none."""
        self._nowhere.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        """Nothing."""
