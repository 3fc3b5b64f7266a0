"""A sweep as a TOML file says it: what all its runs have, what differs, and where they lie.

preset = "stories-cpu"          # or config = "base.toml"
twin = "torch"                  # or mlx, or nothing: the one that is asked for on the command line

[fixed]
max_steps = 400

[grid]                          # every combination
learning_rate = [1e-3, 3e-3]
seed = [1, 2]

[[run]]                         # and single ones besides
learning_rate = 1e-2
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_common.config import RunConfig, from_dict, load_preset, load_toml, to_toml
from gpt_common.errors import UserError, nearest
from gpt_common.files import require_file
from gpt_common.training.folder import RUNS

TWINS = {"torch": "torch_gpt", "mlx": "mlx_gpt"}
"""Packages by the names that people give them; the packages' own are understood as well."""
KEYS = ("name", "preset", "config", "twin", "fixed", "grid", "run")
MOST = 10_000
"""Runs of a sweep."""
LONGEST_NAME, LONGEST_VALUE = 180, 60
"""Characters of a run's name and of a value in it: a file system has room for 255, and files are called after it."""
SECTIONS = tuple(section.name for section in dataclasses.fields(RunConfig))
SECTION_OF = {
    field.name: section.name
    for section in dataclasses.fields(RunConfig)
    for field in dataclasses.fields(section.default_factory)  # type: ignore[arg-type]
}
"""In which table of a configuration a field stands; every name is there once."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    name: str
    """Of its folder: what differs from the others."""
    config: RunConfig
    values: Mapping[str, Any]
    """What differs, by field."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the configuration: a run with it is this one, wherever and by whichever queue it was trained."""
        return hashlib.sha256(to_toml(self.config).encode()).hexdigest()


@dataclass(frozen=True)
class Sweep:
    """All runs, in the order in which they are trained."""

    folder: Path
    twin: str
    """Its package."""
    cells: tuple[Cell, ...]

    def folder_of(self, cell: Cell) -> Path:
        """Where a run lies."""
        return self.folder / cell.name


def read_sweep(path: Path, *, twin: str | None = None, out: Path | None = None) -> Sweep:
    """The sweep in a file.

    Args:
        twin: which one trains; None: what the file says, else PyTorch's.
        out: folder of the runs, if not `runs/NAME`, where NAME is the file's.

    Raises:
        UserError: no such file, a key or field that is none, a value of another kind, two runs that are one.
    """
    tables = read_tables(path, KEYS)
    base = _base(path, tables)
    chosen = twin_of(path, tables, twin)
    base = with_fields(base, table_of(path, tables, "fixed"), path)
    cells = [cell for values in _values(path, tables) for cell in [_cell(base, values, path)]]
    if not cells:
        raise UserError(f"{path} has no runs: give a [grid] of lists, or [[run]]")
    names: dict[str, Cell] = {}
    for cell in cells:
        if cell.name in names:
            raise UserError(f"{path}: two runs are {cell.name}: a value stands twice")
        names[cell.name] = cell
    return Sweep(out or RUNS / name_of(path, tables), chosen, tuple(cells))


def read_tables(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """What a TOML file holds, whose keys are known.

    Raises:
        UserError: no such file, no TOML, or an unknown key.
    """
    try:
        require_file(path)
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # a number of 5000 digits is one too
        raise UserError(f"{path} is not TOML: {error}") from None
    for key in tables:
        if key in SECTIONS:
            raise UserError(f"{path}: [{key}] is of a configuration: here its fields stand in [fixed], without a table")
        if key not in keys:
            where = "; a field stands in [fixed], for all runs" if key in SECTION_OF else ""
            raise UserError(f"{path}: unknown key '{key}'{where}: {nearest(key, keys)}")
    return tables


def name_of(path: Path, tables: Mapping[str, Any]) -> str:
    """Of the folder in which the runs lie: what the file says, else its own; raises UserError if it is none."""
    if "name" not in tables:
        return path.stem
    name = tables["name"]
    if not isinstance(name, str) or not re.fullmatch(r"[\w+-][\w.+ -]*", name):
        raise UserError(f"{path}: name is {name!r}: it is that of a folder, of letters, digits, - and _")
    return name


def twin_of(path: Path, tables: Mapping[str, Any], asked: str | None) -> str:
    """The package of the twin that trains: the one that is asked for, else the file's, else PyTorch's; raises UserError
    if it is none."""
    chosen = asked or str(tables.get("twin", "torch"))
    package = TWINS.get(chosen, chosen)
    if package not in TWINS.values():
        raise UserError(f"{path}: twin is {chosen!r}: {nearest(chosen, tuple(TWINS))}")
    return package


def _base(path: Path, tables: Mapping[str, Any]) -> RunConfig:
    preset, config = tables.get("preset"), tables.get("config")
    base = load_preset(str(preset)) if preset is not None else RunConfig()
    return base if config is None else load_toml(path.parent / str(config), base)


def table_of(path: Path, tables: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A table of a file, empty where there is none; raises UserError where something else has its name."""
    found = tables.get(name, {})
    if not isinstance(found, dict):
        raise UserError(f"{path}: {name} is a table: [{name}]")
    return found


def _values(path: Path, tables: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    grid = table_of(path, tables, "grid")
    for field, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{path}: grid.{field} is a list of values")
    size = 1
    for values in grid.values():
        size *= len(values)
    if size > MOST:
        raise UserError(f"{path}: {size:,} runs, and a sweep has {MOST:,} at most")
    found = [dict(zip(grid, combination, strict=True)) for combination in itertools.product(*grid.values())]
    single = tables.get("run", [])
    if not isinstance(single, list) or not all(isinstance(each, dict) for each in single):
        raise UserError(f"{path}: single runs are tables: [[run]]")
    return [*(found if grid else []), *single]


def _cell(base: RunConfig, values: Mapping[str, Any], path: Path) -> Cell:
    config = with_fields(base, values, path)
    name = "_".join(f"{field}-{_short(value)}" for field, value in values.items())
    if len(name.encode()) > LONGEST_NAME:
        name = f"{name.encode()[:LONGEST_NAME].decode(errors='ignore')}_{_digest(name)}"
    return Cell(name or "base", config, values)


def _short(value: Any) -> str:
    """A value as part of a folder's name."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, float) and float(text) != value:
        text = repr(value)
    safe = re.sub(r"[^\w.+-]", "-", text)
    return safe if len(safe) <= LONGEST_VALUE else f"{safe[:LONGEST_VALUE]}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def with_fields(base: RunConfig, values: Mapping[str, Any], path: Path) -> RunConfig:
    """A configuration with other values in some fields, by their names alone; raises UserError for what is no field."""
    changed: dict[str, dict[str, Any]] = {}
    for field, value in values.items():
        if field not in SECTION_OF:
            # "train.seed", as messages call it, is written without its table.
            raise UserError(f"{path}: unknown field '{field}': {nearest(field.rpartition('.')[2], SECTION_OF)}")
        changed.setdefault(SECTION_OF[field], {})[field] = value
    return from_dict(changed, base=base, where=str(path))
