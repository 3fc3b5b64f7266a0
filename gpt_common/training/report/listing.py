"""What `python -m gpt_common.runs` prints."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt_common.errors import UserError
from gpt_common.files import cannot_write
from gpt_common.training.checkpoint import find_checkpoint, read_manifest
from gpt_common.training.report.curves import loss_line
from gpt_common.training.report.page import (
    alarm_in_words,
    comparison,
    loss,
    seconds,
    sentence,
    write_comparison,
    write_report,
)
from gpt_common.training.report.past import PastRun, chosen_run, find_run, read_run
from gpt_common.words import WIDTH, duration, in_memory, one_line, parameters_in_words, printable, rate

PNG_SIZE = (640, 330)
HEADS = ("name", "from", "data", "best loss", "above floor", "steps", "tokens/s", "when")


def print_runs(runs_dir: Path) -> None:
    """The table of `list`, newest first; a folder that is no sound run is one line of it.

    Raises:
        UserError: there is no such folder, or it is empty.
    """
    folders = [path for path in runs_dir.iterdir() if path.is_dir()] if runs_dir.is_dir() else []
    if not folders:
        raise UserError(f"no run in {runs_dir} yet: python -m mlx_gpt.train makes one")
    rows = sorted((_row(folder) for folder in folders), key=lambda row: -row[0])
    print_table(HEADS, [cells for _, cells in rows], left=3)


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> None:
    """A table within the terminal's width, or 80 columns where there is none.

    Args:
        left: how many of the first columns hold words.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="")
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i < left else "right", overflow="fold", no_wrap=i >= left)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)


def _row(folder: Path) -> tuple[float, list[str]]:
    """When a run was last at work, for sorting, and its cells."""
    modified = _modified(folder)
    when = _ago(modified)
    try:
        run = read_run(folder)
    except UserError as error:
        if (folder / "checkpoints").is_dir() and not (folder / "config.toml").exists():
            return modified, _imported(folder, when)
        damaged = "damaged" if any((folder / name).exists() for name in ("config.toml", "run.json")) else "no run"
        return modified, [folder.name, damaged, "", "", "", "", "", when] if error else []
    course = run.course
    if run.made is not None:
        best = math.nan if run.made.best_val_loss is None else run.made.best_val_loss
        return modified, [folder.name, run.origin, run.dataset, loss(best), "-", str(run.made.step), "-", when]
    cells = [
        folder.name,
        run.origin,
        run.dataset,
        loss(course.best[1]) if course.best else "-",
        loss(course.excess) if course.excess is not None else "-",
        f"{course.last_step}/{run.max_steps}",
        rate(course.tokens_per_second),
        "now" if run.going else when,
    ]
    return (math.inf if run.going else modified), cells


def _imported(folder: Path, when: str) -> list[str]:
    """The cells of a folder that holds checkpoints and no log: what `convert` writes."""
    try:
        manifest = read_manifest(find_checkpoint(folder, prefer="latest"))
    except UserError:
        return [folder.name, "damaged", "", "", "", "", "", when]
    best = math.nan if manifest.best_val_loss is None else manifest.best_val_loss
    data = manifest.dataset["name"] if manifest.dataset else ""
    return [folder.name, "imported", data, loss(best), "-", str(manifest.step), "-", when]


def _modified(folder: Path) -> float:
    for path in (folder / "metrics.jsonl", folder / "checkpoints" / "latest", folder):
        try:
            return path.stat().st_mtime
        except OSError:
            continue
    return 0.0


def _ago(when: float) -> str:
    past = max(time.time() - when, 0)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if past >= size:
            return f"{past / size:.0f} {unit}"
    return f"{past:.0f} s"


def print_run(run: Path | None, runs_dir: Path) -> None:
    """What `show` prints of a run.

    Raises:
        UserError: there is none, or it is damaged.
    """
    found = read_run(chosen_run(run, runs_dir))
    course, last = found.course, found.sessions[-1] if found.sessions else {}
    model = found.config.model
    rows = [
        ("folder", str(found.folder)),
        ("made from" if found.made else "trained by", ", ".join(filter(None, (found.twin, found.origin)))),
        (
            "model",
            f"{parameters_in_words(*found.parameters)}, {model.n_layer} layers x {model.n_embd}, "
            f"block {model.block_size}",
        ),
        ("data", found.dataset),
        ("device", _device(last)),
        ("started", f"{found.started:%Y-%m-%d %H:%M}" if found.started else ""),
        ("time", "" if found.made else _times(found)),
        ("speed", f"{rate(course.tokens_per_second)} tokens/s" if not math.isnan(course.tokens_per_second) else ""),
        ("peak memory", in_memory(course.memory) if course.memory is not None else ""),
        ("loss", loss_line(course, getattr(sys.stdout, "encoding", None))),
    ]
    print(f"{one_line(found.name)}\n{printable(sentence(found))}\n")
    for name, value in rows:
        if value:
            print(f"  {name:<12} {printable(value)}")
    for alarm in course.alarms[-5:]:
        print(f"  warning: {printable(alarm_in_words(*alarm))}")
    if found.samples:
        sample = found.samples[-1]
        text = " ".join((sample.prompt + sample.text).split())
        print(f"  {'sample':<12} {printable(text)[: WIDTH - 15]}")
    print(f"\n  python -m gpt_common.runs report {one_line(str(found.folder))}")


def _device(session: Mapping[str, Any]) -> str:
    """What a session computed on, and by how many ranks; of both twins where it was begun by hand so."""
    ranks, engines = session.get("ranks"), session.get("rank_engines")
    if not isinstance(ranks, int) or ranks < 2:
        return str(session.get("device", ""))
    each = dict.fromkeys(map(str, engines)) if isinstance(engines, list) and engines else [session.get("device", "")]
    return f"{ranks} ranks: {'; '.join(map(str, each))}"


def _times(run: PastRun) -> str:
    session = run.course.sessions[-1]
    said = [duration(run.course.seconds)]
    if session.start_up is not None:
        said.append(f"start-up {seconds(session.start_up)}, first step {seconds(session.first_step_seconds)}")
    return ", ".join(said)


def make_report(run: Path | None, runs_dir: Path, out: Path | None) -> Path:
    """Write a run's page; returns where.

    Raises:
        UserError: there is no such run, it is damaged, or the page cannot be written.
    """
    return write_report(read_run(chosen_run(run, runs_dir)), out)


def compare(runs: Sequence[Path], runs_dir: Path, out: Path | None, png: Path | None) -> Path:
    """Print the table of several runs and write their page, or the picture `png`; returns where.

    Raises:
        UserError: fewer than two runs, one that is damaged or has logged nothing, or a file that cannot be written.
    """
    if not runs:
        raise UserError("missing arguments: RUN RUN..., folders or names of runs")
    folders = list(dict.fromkeys(find_run(run, runs_dir) for run in runs))
    if len(folders) < 2:
        raise UserError(f"only one run, {folders[0]}: name another to compare it with, or show it alone")
    read = [read_run(folder) for folder in folders]
    alike = len({run.name for run in read}) < len(read)
    named = {str(run.folder) if alike else run.name: run for run in read}
    for name, run in named.items():
        if not len(run.course.steps.finite("loss")):
            raise UserError(f"{name} has no logged losses yet")
    heads, rows = comparison(named)
    kept = [heads.index(head) for head in ("run", "data", "best loss", "above floor", "steps", "time", "tokens/s")]
    print_table([heads[i] for i in kept], [[row[i] for i in kept] for row in rows], left=2)
    if png is None:
        return write_comparison(named, out or (runs_dir if runs_dir.is_dir() else Path()) / "compare.html")
    from gpt_common.drawing import write_png
    from gpt_common.training.report.figures import compared

    try:
        write_png(compared(named, ("step",)), png, PNG_SIZE)
    except OSError as error:
        raise cannot_write(png, error) from None
    return png
