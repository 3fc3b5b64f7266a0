"""Pairs of processes that want one run's folder at one moment.

    python -m tests.gpt_common.training.hostile.racing KIND PAIRS FOLDER

KIND is `next` (a new run, or the next free name), `named` (a new run in this folder), `failed` (the same, where each
start fails at once and takes its folder away) or `resume`. A line of JSON comes out for each pair.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from gpt_common.errors import UserError
from gpt_common.training.folder import RunFolder, claim_new, is_held, take_up


def want(kind: str, folder: Path) -> RunFolder:
    """Ask for the folder of a run."""
    if kind == "resume":
        return take_up(folder)
    return claim_new(folder, or_next=kind == "next")


def one(kind: str, folder: Path, start: float, said: int, until: int) -> None:
    """What one process of a pair does; it holds what it gets until the pair's pipe is closed."""
    signal.alarm(60)
    while time.monotonic() < start:
        pass
    try:
        held = want(kind, folder)
    except UserError as error:
        os.write(said, json.dumps(["error", str(error)]).encode() + b"\n")
        return
    written = held.path / "config.toml"
    mine = f"{os.getpid()}"
    with written.open("a") as file:
        file.write(mine)
    os.write(said, json.dumps(["held", held.path.name, str(is_held(held.path))]).encode() + b"\n")
    if kind != "failed":
        os.read(until, 1)
    alone = not written.exists() or written.read_text() == mine
    if kind == "failed":
        held.discard_unused()
    held.release()
    os._exit(0 if alone else 3)


def pair(kind: str, folder: Path) -> dict[str, object]:
    """Two processes, and a third that keeps looking whether the run is going, as `runs list` does."""
    if kind == "resume":
        folder.mkdir(parents=True)
    (said, says), (until, ends) = os.pipe(), os.pipe()
    start = time.monotonic() + 0.01
    children = []
    for number in range(3):
        child = os.fork()
        if child == 0:
            os.close(ends)
            code = 1
            try:
                if number < 2:
                    one(kind, folder, start, says, until)
                while number == 2 and time.monotonic() < start + 0.05:
                    if folder.exists():
                        is_held(folder)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    os.close(says)
    os.close(until)
    lines: list[list[str]] = []
    with os.fdopen(said) as file:
        while len(lines) < 2 and (line := file.readline()):
            lines.append(json.loads(line))
        os.close(ends)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return {"said": sorted(lines), "codes": codes, "left": sorted(path.name for path in folder.parent.glob("*"))}


if __name__ == "__main__":
    for number in range(int(sys.argv[2])):
        print(json.dumps(pair(sys.argv[1], Path(sys.argv[3]) / f"{number:03}" / "run")), flush=True)
