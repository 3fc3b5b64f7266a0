"""`python tests/architecture/walk_readme.py`: every command of the README, as written, in order, in a fresh clone.

Installs into an environment of its own, as the README says. What still runs after --limit seconds is sent a Ctrl-C and
must end by itself; a second one, minutes later, ends what is in a long evaluation. `--installed` takes this Python's
environment instead. Downloads what the README's commands download; a text in data/downloads and a vocabulary in
TIKTOKEN_CACHE_DIR are taken from there.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BY_CHECK = "python -m pytest -n auto"
"""The one command that is left out: ./check runs it."""
INTERRUPTED = (128 + signal.SIGINT, -signal.SIGINT)
"""Exit codes after a Ctrl-C: ended by the program, or by Python while it was still importing."""
WHOLE_SECONDS, STOP_SECONDS = 1800, 600


def commands() -> Iterator[str]:
    """The README's indented blocks that a person types: shell lines one by one, a Python block as one."""
    for block in re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", README.read_text(encoding="utf-8"), re.MULTILINE):
        lines = [line[4:].rstrip() for line in block.splitlines()]
        if lines[0].startswith(("from ", "import ")):
            yield "\n".join(lines)
        elif lines[0].startswith(("python", "pip ")):
            yield from (line for line in lines if line)


def walk(folder: Path, *, limit: float, installed: bool) -> None:
    """Run them all in a clone of the checkout.

    Raises:
        SystemExit: names the command that failed.
    """
    clone = folder / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    if (ROOT / "data" / "downloads").is_dir():
        shutil.copytree(ROOT / "data" / "downloads", clone / "data" / "downloads")
    _write_own_text(clone / "mine", seed=1)
    _write_own_text(clone / "more", seed=2)
    activate = "" if installed else "test -d .venv && . .venv/bin/activate; "
    for command in commands():
        if BY_CHECK in command:
            continue
        if installed:
            command = command.split(" && ")[-1]
            if command.startswith("pip "):
                continue
        shell = command if command.startswith(("python", "pip ")) else f"python - <<'END'\n{command}\nEND"
        # A block of Python is for a notebook, in which an interruption is an exception.
        whole = "pip install" in command or not command.startswith("python")
        print(f"$ {command}", flush=True)
        started = time.monotonic()
        code = _run(activate + shell, clone, WHOLE_SECONDS if whole else limit)
        print(f"-- exit code {code} after {time.monotonic() - started:.0f} s\n", flush=True)
        if code not in (0, *INTERRUPTED):
            sys.exit(f"this command of the README failed: {command}")


def _run(shell: str, folder: Path, limit: float) -> int:
    """Exit code of a shell line; one of INTERRUPTED if it had to be stopped and then ended as it should."""
    # A session of its own: Ctrl-C goes to all its processes, as from a terminal, and not to this one.
    with subprocess.Popen(["bash", "-c", shell], cwd=folder, start_new_session=True) as process:
        for patience in (limit, STOP_SECONDS, STOP_SECONDS):
            try:
                return process.wait(patience)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def _write_own_text(folder: Path, *, seed: int) -> None:
    """A text of one's own."""
    choose = random.Random(seed)
    words = ["the", "big", "small", "dog", "hen", "frog", "kite", "went", "to", "see", "and", "said", "hello"]
    lines = [" ".join(choose.choices(words, k=9)).capitalize() + "." for _ in range(4000)]
    folder.mkdir()
    for name, part in (("one.txt", lines[:2000]), ("two.txt", lines[2000:])):
        (folder / name).write_text("\n".join(part) + "\n", encoding="utf-8")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=120, help="seconds after which a command gets a Ctrl-C")
    parser.add_argument("--installed", action="store_true", help="use this environment; install nothing")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # or children that hear no Ctrl-C, where this one does not
    with tempfile.TemporaryDirectory() as folder:
        walk(Path(folder), limit=arguments.limit, installed=arguments.installed)


if __name__ == "__main__":
    main()
