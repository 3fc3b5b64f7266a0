"""One backend in a process of its own: takes a job as JSON on standard input, writes events as JSON lines.

    {"event": "progress", "phase": "warm-up", "share": 0.4}
    {"event": "result", ...}      the end of a job that worked
    {"event": "absent", "reason": "..."}      this backend cannot run here, or cannot do this work
    {"event": "refused", "reason": "..."}     a peer's code cannot be used, or does other work

SIGINT ends a series early; the result then says `interrupted`. Whatever libraries print goes to standard error.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from typing import IO, Any

from benchmarks.grids import grids_on
from benchmarks.measuring.backends import Backend
from benchmarks.measuring.thermal import open_watch
from benchmarks.measuring.work import Absent, Refused, Work
from benchmarks.readings import Plan, Record
from gpt_common.adapting.quantisation import Grids
from gpt_common.config import RunConfig, from_dict
from gpt_common.machine.blas import load_fast_blas, wait_passively
from gpt_common.machine.provenance import versions

EVENTS_PER_SECOND = 5


class Events:
    """The stream to the parent."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._phase, self._last = "", 0.0

    def send(self, event: str, **fields: Any) -> None:
        """One line."""
        print(json.dumps({"event": event, **fields}), file=self._file, flush=True)

    def progress(self, phase: str, share: float) -> None:
        """Every new phase, and otherwise some times a second."""
        now = time.monotonic()
        if phase != self._phase or now - self._last >= 1 / EVENTS_PER_SECOND:
            self._phase, self._last = phase, now
            self.send("progress", phase=phase, share=round(share, 3))


def main() -> None:
    """Read the job, do it, answer."""
    events = Events(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    stopped: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: stopped.append(number))
    job = json.loads(sys.stdin.read())
    if job["task"] == "presence":
        events.send("result", devices=_presence(job["backends"], from_dict(job["config"])))
        return
    backend, config = Backend(**job["backend"]), from_dict(job["config"])
    about = None
    try:
        events.progress("start", 0)
        if job["task"] == "overhead":
            from benchmarks.measuring.overhead import measure_overhead

            found: Record = measure_overhead(open_work, backend, config, events.progress)
        else:
            work = open_work(backend, config)
            if job["task"] == "generation":
                from benchmarks.measuring.generation import measure_generation

                found = measure_generation(work, config, events.progress)
            else:
                from benchmarks.measuring.measure import Measurement

                watch, plan = open_watch(work.device), Plan(**job["plan"])
                found = Measurement(work, config, plan, watch, events.progress, lambda: bool(stopped)).run()
            about = {name: getattr(work, name) for name in ("description", "device", "dtype", "notes")}
            about |= {"weight_bytes": work.weight_bytes(), "versions": versions()}
        events.send("result", about=about, **found.model_dump())
    except Absent as absent:
        events.send("absent", reason=str(absent))
    except Refused as refused:
        events.send("refused", reason=str(refused))


def open_work(backend: Backend, config: RunConfig, grids: Grids | None = None) -> Work:
    """The work of a backend with the configuration's model at its initial weights.

    Args:
        grids: which of its matrices are quantised; all that can be on the backend's grid if None. A peer has none.

    Raises:
        Absent: not here.
        Refused: a peer's code cannot be used, or computes another loss than ours.
    """
    if backend.half:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, dtype="bfloat16"))
    grids = grids_on(config, backend.grid) if grids is None else grids
    if backend.framework == "mlx":
        try:
            load_fast_blas()  # before MLX is imported
            from benchmarks.measuring.mlx_work import MlxLmWork, MlxWork
        except ImportError as error:
            raise Absent(f"MLX cannot be imported: {error}") from None
        return MlxLmWork(backend, config) if backend.peer else MlxWork(backend, config, grids)
    wait_passively()  # as the trainer does, before PyTorch is imported
    try:
        from benchmarks.measuring.torch_work import NanoGptWork, TorchWork, TransformersWork
    except ImportError as error:
        raise Absent(f"PyTorch cannot be imported: {error}") from None
    if not backend.peer:
        return TorchWork(backend, config, grids)
    return {"transformers": TransformersWork, "nanogpt": NanoGptWork}[backend.peer](backend, config)


def _presence(backends: dict[str, dict[str, Any]], config: RunConfig) -> dict[str, dict[str, str]]:
    """By label, the `device` on which a backend computes, the `reason` why it does not, or why it is `refused`."""
    found = {}
    for label, fields in backends.items():
        try:
            found[label] = {"device": open_work(Backend(**fields), config).device}
        except Absent as absent:
            found[label] = {"reason": str(absent)}
        except Refused as refused:
            found[label] = {"refused": str(refused)}
    return found


if __name__ == "__main__":
    main()
