"""`python -m tests.plants.run`: plant faults into a copy of this checkout, one at a time, and report who sees them.

Who is asked, in this order, until somebody sees it: the trainer or `convert` as a user runs them (a gate, an alarm, a
refusal), rungs of `convert parity --mode quick`, quick tests.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.plants import warm
from tests.plants.asking import RECIPES, SOURCES, Checkout, Seen, ask_ladder, ask_tests, ask_training, ask_user
from tests.plants.every import PLANTS
from tests.plants.plant import TWINS, Plant, apply, write
from tests.plants.table import Answer, table

ROOT = Path(__file__).parents[2]
COPIED = ("gpt_common", "mlx_gpt", "torch_gpt", "convert", "benchmarks", "tests", "docs")
FILES = ("pyproject.toml", "constraints.txt", "README.md")
BY = ("user", "ladder", "tests")


def main(argv: Sequence[str]) -> int:
    """The command; returns 1 if a plant was seen by nobody, or one that issue 11 tells not by the trainer."""
    parser = argparse.ArgumentParser(prog="python -m tests.plants.run", description=__doc__)
    parser.add_argument("--plant", action="append", default=[], help="only those whose names hold this")
    parser.add_argument("--kind", type=int, action="append", default=[], help="only this kind, 1 to 8")
    parser.add_argument("--by", choices=BY, help="ask only this one")
    parser.add_argument("--table", type=Path, help="write the table here")
    parser.add_argument("--json", type=Path, help="write all answers here")
    command = parser.parse_args(argv)
    chosen = [
        plant
        for plant in PLANTS
        if (not command.plant or any(part in plant.name for part in command.plant))
        and (not command.kind or plant.kind in command.kind)
    ]
    warm.load()
    with tempfile.TemporaryDirectory(prefix="plants-") as folder:
        checkout = copy_of(ROOT, Path(folder))
        prepare(checkout, chosen)
        began = time.monotonic()
        answers = []
        for plant in chosen:
            answers.append(ask(checkout, plant, command.by))
            print(answers[-1].line(), flush=True)
        seconds = time.monotonic() - began
    if command.json:
        command.json.write_text(json.dumps([asdict(answer) for answer in answers], indent=1) + "\n", encoding="utf-8")
    if command.table:
        command.table.write_text(table(answers, seconds), encoding="utf-8")
    missed = [answer for answer in answers if not answer.good]
    print(f"{len(answers) - len(missed)} of {len(answers)} plants are seen as they should be, in {seconds:.0f} s")
    return 1 if missed else 0


def copy_of(root: Path, folder: Path) -> Checkout:
    """A copy of the checkout, without what git ignores."""
    place, work = folder / "checkout", folder / "work"
    work.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "*.png", "*.svg")
    for name in COPIED:
        shutil.copytree(root / name, place / name, ignore=ignored)
    for name in FILES:
        shutil.copy(root / name, place / name)
    return Checkout(place, work)


def prepare(checkout: Checkout, plants: Sequence[Plant], twins: Sequence[str] = TWINS) -> None:
    """Make corpus and sources, and see that without a fault nothing is said: what speaks then says nothing later.

    Raises:
        RuntimeError: a command fails or an alarm rings without a fault.
    """
    sources = {plant.asks.split()[0] for plant in plants if plant.asks and plant.asks.split()[0] in SOURCES}
    for source in sorted(sources):
        done = checkout.train(twins[-1], SOURCES[source], checkout.work / f"source-{source}")
        if done.returncode:
            raise RuntimeError(f"{source} cannot be trained: {done.stderr}")
    for recipe in sorted({plant.asks for plant in plants} & RECIPES.keys()):
        for twin in sorted({twin for plant in plants if plant.asks == recipe for twin in plant.twins} & {*twins}):
            if seen := ask_training(checkout, recipe, twin):
                raise RuntimeError(f"'{recipe}' in {twin} is not silent without a fault: {seen.text}")
    for conversion in sorted({plant.asks for plant in plants if plant.kind == 8}):
        if seen := ask_user(checkout, next(plant for plant in plants if plant.asks == conversion), ""):
            raise RuntimeError(f"'{conversion}' is not silent without a fault: {seen.text}")


def ask(checkout: Checkout, plant: Plant, by: str | None, twins: Sequence[str] = TWINS) -> Answer:
    """Plant it, ask who sees it, and take it out again."""
    began = time.monotonic()
    before = apply(plant, checkout.root)
    seen: dict[str, Seen | None] = {}
    asked: dict[str, Callable[[], Seen | None]] = {
        "ladder": lambda: ask_ladder(checkout, plant.rungs),
        "tests": lambda: ask_tests(checkout, plant.tests),
    }
    try:
        if plant.asks and by in (None, "user"):
            for twin in [twin for twin in plant.twins if twin in twins] if plant.kind != 8 else ["convert"]:
                seen[twin] = ask_user(checkout, plant, twin)
        for name, asks in asked.items():
            # A fault that one twin's user sees and the other's does not is asked on.
            if by in (None, name) and not (seen and all(seen.values())):
                seen[name] = asks()
                if seen[name]:
                    break
    finally:
        for path, text in before.items():
            write(path, text)
    return Answer.of(plant, seen, time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
