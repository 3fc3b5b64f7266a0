"""A fault in a function of a module that is loaded: for a while it does what the edited source says."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.plants.plant import Edit

ROOT = Path(__file__).parents[2]


@contextmanager
def planted(edit: Edit) -> Iterator[None]:
    """Within the block the function `edit.where`, whoever has imported it, has the fault.

    Raises:
        PlantError: the edit does not fit the source.
    """
    name = edit.file.removesuffix(".py").replace("/", ".")
    source = edit.applied((ROOT / edit.file).read_text(encoding="utf-8"))
    faulty: dict[str, Any] = {"__name__": name}
    exec(compile(source, edit.file, "exec"), faulty)
    wrong: Any = _found(faulty, edit.where)
    right: Any = _found(vars(importlib.import_module(name)), edit.where)
    before = right.__code__
    right.__code__ = wrong.__code__
    try:
        yield
    finally:
        right.__code__ = before


def _found(names: dict[str, Any], where: str) -> Any:
    first, *rest = where.split(".")
    found = names[first]
    for name in rest:
        found = vars(found)[name]
    return found.fget if isinstance(found, property) else getattr(found, "__wrapped__", found)
