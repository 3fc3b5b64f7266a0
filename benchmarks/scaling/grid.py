"""A grid over width, depth and tokens, each cell a normal run of a sweep; and the points that its finished runs give.

    preset = "stories-cpu"
    widths = [32, 48, 64, 96, 128]
    depths = [2, 4]
    tokens = [0.5e6, 1e6, 2e6]      # of training: the schedule is as long as the run
    again = [2]                     # more seeds, on the diagonal of the grid
    again_longest = [2]             # more seeds of the runs with the most tokens: they foretell larger models
    [fixed]
    eval_interval = 1000

The learning rate is the preset's at its own width and depth, or `rate` at `rate_width` and `rate_depth`. It falls as
1 / width ^ `rate_power` (1, if it is left out) and as 1 / depth ^ `rate_depth_power` (0: all depths have one rate). Try
three rates at the narrowest, at the widest and at the deepest model before a grid is paid for: a rule that suits one
corner only bends the law.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.scaling.laws import Point
from gpt_common.config import DataConfig, ModelConfig, RunConfig, load_preset
from gpt_common.data.dataset import read_meta
from gpt_common.errors import UserError
from gpt_common.network.flops import flops_per_token_palm, parameter_table
from gpt_common.network.width import heads_for
from gpt_common.sweep.definition import Cell, Sweep, name_of, read_tables, table_of, twin_of, with_fields
from gpt_common.sweep.queue import run_of
from gpt_common.training.folder import RUNS
from gpt_common.training.report.past import PastRun

KEYS = (
    "name",
    "preset",
    "twin",
    "widths",
    "depths",
    "tokens",
    "seed",
    "again",
    "again_longest",
    "rate",
    "rate_width",
    "rate_power",
    "rate_depth",
    "rate_depth_power",
    "fixed",
)


DECIDED = {
    "n_embd": "widths",
    "n_layer": "depths",
    "n_head": "widths",
    "max_steps": "tokens",
    "decay_steps": "tokens",
    "max_minutes": "tokens",
    "patience": "tokens",
    "seed": "seed and again",
}
"""Fields that a grid sets itself, and by what."""


@dataclass(frozen=True)
class Grid:
    """What a grid's file says."""

    name: str
    twin: str
    base: RunConfig
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    tokens: tuple[int, ...]
    seed: int
    again: tuple[int, ...]
    again_longest: tuple[int, ...]
    rate: float
    """Peak learning rate at `rate_width` and `rate_depth`."""
    rate_width: int
    rate_power: float
    rate_depth: int
    rate_depth_power: float

    def rate_of(self, width: int, depth: int) -> float:
        """Peak learning rate of a shape, to three digits, as a person would write it."""
        by_width = (self.rate_width / width) ** self.rate_power
        return float(f"{self.rate * by_width * (self.rate_depth / depth) ** self.rate_depth_power:.2e}")

    def cell(self, width: int, depth: int, tokens: int, seed: int) -> Cell:
        """One run."""
        base, optim = self.base, self.base.optim
        per_step = base.train.batch_size * base.train.grad_accum_steps * base.model.block_size
        steps = max(1, round(tokens / per_step))
        rate = self.rate_of(width, depth)
        try:
            model = dataclasses.replace(base.model, n_embd=width, n_layer=depth, n_head=heads_for(width))
        except UserError as error:
            raise UserError(f"no model is {width} wide with {depth} layers: {error}") from None
        config = dataclasses.replace(
            base,
            model=model,
            optim=dataclasses.replace(
                optim,
                learning_rate=rate,
                decay_steps=0,  # the schedule is as long as the run, whatever the preset's is
                min_lr=min(optim.min_lr, rate / 10),
                warmup_steps=min(optim.warmup_steps, max(1, steps // 10)),
            ),
            train=dataclasses.replace(
                base.train,
                max_steps=steps,
                max_minutes=0.0,
                patience=0,
                seed=seed,
                eval_interval=min(base.train.eval_interval, steps),
                checkpoint_interval=min(base.train.checkpoint_interval, steps),
            ),
        )
        values = {"n_embd": width, "n_layer": depth, "tokens": _short(tokens), "seed": seed}
        return Cell(f"w{width}-d{depth}-t{_short(tokens)}-s{seed}", config, values)

    def asked(self, written: str) -> RunConfig:
        """The run that `width,depth,tokens` means, as `192,4,8M`; raises UserError where that means none."""
        try:
            width, depth, tokens = written.split(",")
            size = {"M": 1e6, "k": 1e3}.get(tokens[-1:], 1.0)
            return self.cell(int(width), int(depth), int(float(tokens.rstrip("Mk")) * size), self.seed).config
        except (ValueError, ArithmeticError):  # widths and depths of 0 have no rate, infinite tokens no steps
            raise UserError(f"'{written}' is no run: width,depth,tokens belong there, as 192,4,8M") from None

    def sweep(self, out: Path | None = None) -> Sweep:
        """All runs, the cheapest first, so that something can be fitted soon."""
        cells = [
            self.cell(width, depth, tokens, seed)
            for i, width in enumerate(self.widths)
            for depth in self.depths
            for j, tokens in enumerate(self.tokens)
            for seed in self._seeds(i, j)
        ]
        cells.sort(key=lambda cell: flops_of(cell.config))
        return Sweep(out or RUNS / self.name, self.twin, tuple(cells))

    def _seeds(self, i: int, j: int) -> dict[int, None]:
        """Of the i-th width and the j-th length, each once."""
        diagonal = round(i * (len(self.tokens) - 1) / max(1, len(self.widths) - 1)) == j
        longest = self.tokens[j] == max(self.tokens)
        return dict.fromkeys([self.seed, *(self.again if diagonal else ()), *(self.again_longest if longest else ())])


def read_grid(path: Path, *, twin: str | None = None) -> Grid:
    """The grid in a file.

    Raises:
        UserError: no such file, an unknown key or field, a value of another kind.
    """
    tables = read_tables(path, KEYS)
    fixed = table_of(path, tables, "fixed")
    for field in fixed:
        if field in DECIDED:
            raise UserError(f"{path}: {field} is no field for [fixed]: a grid sets it by {DECIDED[field]}")
    base = with_fields(load_preset(str(tables.get("preset", "stories-cpu"))), fixed, path)
    grid = Grid(
        name=name_of(path, tables),
        twin=twin_of(path, tables, twin),
        base=base,
        widths=_wholes(path, tables, "widths"),
        depths=_wholes(path, tables, "depths"),
        tokens=_wholes(path, tables, "tokens"),
        seed=_whole(path, tables, "seed", 1, least=0),
        again=_wholes(path, {"again": [], **tables}, "again", least=0),
        again_longest=_wholes(path, {"again_longest": [], **tables}, "again_longest", least=0),
        rate=_number(path, tables, "rate", base.optim.learning_rate, above=0),
        rate_width=_whole(path, tables, "rate_width", base.model.n_embd),
        rate_power=_number(path, tables, "rate_power", 1.0),
        rate_depth=_whole(path, tables, "rate_depth", base.model.n_layer),
        rate_depth_power=_number(path, tables, "rate_depth_power", 0.0),
    )
    if grid.seed in grid.again:
        raise UserError(f"{path}: again has seed {grid.seed}, with which every cell is trained already: name others")
    shapes = [grid.cell(width, depth, 1, grid.seed).config for width in grid.widths for depth in grid.depths]
    step = tokens_of(shapes[0])
    lengths = [round(tokens / step) for tokens in grid.tokens]
    if min(lengths) < 1 or len(set(lengths)) < len(lengths):
        raise UserError(f"{path}: tokens are too few or too near each other: a step is one of {step:,}")
    return grid


def _number(path: Path, tables: dict[str, Any], name: str, otherwise: float, above: float | None = None) -> float:
    found = tables.get(name, otherwise)
    fits = isinstance(found, int | float) and not isinstance(found, bool) and 0 <= found < math.inf
    if not fits or found == above:
        raise UserError(f"{path}: {name} is a number {'from 0' if above is None else 'above 0'}")
    return float(found)


def _whole(path: Path, tables: dict[str, Any], name: str, otherwise: int, least: int = 1) -> int:
    found = tables.get(name, otherwise)
    if not _is_whole(found, least):
        raise UserError(f"{path}: {name} is a whole number from {least}")
    return int(found)


def _wholes(path: Path, tables: dict[str, Any], name: str, least: int = 1) -> tuple[int, ...]:
    """Different ones; `again` alone may be empty, and have a seed of 0."""
    found = tables.get(name)
    if not isinstance(found, list) or not all(_is_whole(n, least) for n in found) or not (found or least == 0):
        raise UserError(f"{path}: {name} is a list of whole numbers from {least}")
    if len(set(found)) < len(found):
        raise UserError(f"{path}: a number stands twice in {name}")
    return tuple(int(n) for n in found)


def _is_whole(found: Any, least: int) -> bool:
    """`1e6` is one as well, which TOML takes for a float."""
    number = isinstance(found, int | float) and not isinstance(found, bool) and least <= found < math.inf
    return bool(number and found == int(found))


def _short(tokens: int) -> str:
    """`500k`, `1.5M`."""
    return f"{tokens / 1e6:g}M" if tokens >= 1e6 else f"{tokens / 1e3:g}k"


def tokens_of(config: RunConfig) -> int:
    """That a run trains on."""
    train = config.train
    return train.max_steps * train.batch_size * train.grad_accum_steps * config.model.block_size


def training_tokens(data: DataConfig) -> int | None:
    """Of the training split, where the corpus lies on this machine; a run on more tokens reads some of them again."""
    try:
        return None if data.follow else int(read_meta(Path(data.data_dir) / data.dataset)["splits"]["train"]["tokens"])
    except (UserError, KeyError, TypeError, ValueError):
        return None


def repeated(tokens: int, length: int | None) -> str | None:
    """What is to be said of a run on so many tokens of a split of this length, if it reads some of them again."""
    if length is None or tokens <= length:
        return None
    return f"{tokens / length:.1f} epochs: what is repeated counts less than the law says"


def flops_of(config: RunConfig, model: ModelConfig | None = None) -> float:
    """Of a run, by PaLM's formula; the vocabulary counts as 1 where it is not settled yet."""
    return flops_per_token(model or config.model) * tokens_of(config)


def flops_per_token(model: ModelConfig) -> float:
    """As `flops_of`."""
    return flops_per_token_palm(model if model.vocab_size else dataclasses.replace(model, vocab_size=1))


def sizes_of(model: ModelConfig) -> tuple[int, int]:
    """Parameters without embeddings, and with them: of a law the first is asked, and the second told beside it."""
    table = parameter_table(model)
    whole = sum(table.values())
    looked_up = table.get("position embedding", 0) + (0 if model.tied_head else table["token embedding"])
    # A tied embedding multiplies as the head: it is looked up for nothing, and computes once.
    return whole - looked_up - (table["token embedding"] if model.tied_head else table.get("head", 0)), whole


def finished_runs(sweep: Sweep) -> list[tuple[Cell, PastRun]]:
    """The runs of a sweep that have come to their end, each read once."""
    read = ((cell, run_of(sweep, cell)) for cell in sweep.cells)
    # What still goes may have made its last step, and not been evaluated.
    return [(cell, run) for cell, run in read if run is not None and run.finished and not run.going]


def loss_of(run: PastRun) -> float:
    """At its end: on the whole validation split, or the best evaluation; NaN where it was not evaluated there."""
    whole, best, evaluated = run.course.whole, run.course.best, run.course.evaluations.step
    if whole is not None:
        return whole[1]
    return best[1] if best is not None and evaluated[-1] == run.course.last_step else math.nan


def points_of(runs: Sequence[tuple[Cell, PastRun]], *, embeddings: bool = False) -> list[Point]:
    """Of every run that has a loss a point.

    Args:
        runs: as `finished_runs` gives them.
        embeddings: count them among the parameters.
    """
    found = []
    for cell, run in runs:
        if not math.isfinite(loss := loss_of(run)):
            continue
        without, with_them = sizes_of(run.config.model)
        tokens = tokens_of(cell.config)
        name = cell.name.rpartition("-s")[0]
        flops = flops_of(cell.config, run.config.model)
        shape = run.config.model.n_embd, run.config.model.n_layer
        found.append(Point(with_them if embeddings else without, tokens, flops, loss, name, shape))
    return found


def floor_of(runs: Sequence[tuple[Cell, PastRun]]) -> float | None:
    """The lowest possible loss, where the runs know it."""
    return next((run.course.floor for _, run in runs if run.course.floor is not None), None)


def vocabulary_of(runs: Sequence[tuple[Cell, PastRun]]) -> int:
    """Entries of the vocabulary that the runs have; 1 before there are any."""
    return next((run.config.model.vocab_size for _, run in runs), 1)


@dataclass(frozen=True)
class Pace:
    """How fast a run was, and what it took."""

    flops_per_token: float
    """Of its model: a larger one is computed faster."""
    flops_per_second: float
    """In its steps; evaluations and start-up are left out."""
    watts: float | None
    """On average, of all that the meter counts; None where nothing told."""
    meter: str
    """Who told; else nothing."""


def paces_of(runs: Sequence[tuple[Cell, PastRun]]) -> list[Pace]:
    """Of every run: how fast this machine computes such models."""
    found = []
    for _, run in runs:
        each, used = flops_per_token(run.config.model), run.course.used
        meters = [power.get("source") for one in run.sessions if isinstance(power := one.get("power"), dict)]
        if run.course.tokens_per_second > 0:
            power = used.joules / used.seconds if used is not None else None
            meter = str(meters[-1]) if meters and power is not None else ""
            found.append(Pace(each, each * run.course.tokens_per_second, power, meter))
    return found
