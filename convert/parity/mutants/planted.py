"""A fault in a function of a module: a replacement in its source, written to a file or made where it is loaded."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
"""Where the packages are."""


class PlantError(Exception):
    """A fault that does not fit the source any more: it must be written anew, not skipped."""


@dataclass(frozen=True)
class Edit:
    """One replacement."""

    file: str
    """From the root of the checkout."""
    where: str
    """Function or Class.method; a name assigned at the top of the file; empty for the whole file."""
    old: str
    """Must stand there exactly once."""
    new: str

    def applied(self, source: str) -> str:
        """The source with the fault in it.

        Raises:
            PlantError: the function is not there, or the old text does not stand in it exactly once.
        """
        begin, end = _span(source, self.where)
        found = source[begin:end].count(self.old)
        if found != 1:
            raise PlantError(f"{self.file}, {self.where}: {self.old!r} stands there {found} times, not once")
        planted = source[:begin] + source[begin:end].replace(self.old, self.new) + source[end:]
        ast.parse(planted)
        return planted


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


def _span(source: str, where: str) -> tuple[int, int]:
    """Begin and end of a function, method or assigned name in the source, decorators and all."""
    if not where:
        return 0, len(source)
    node: ast.AST = ast.parse(source)
    for name in where.split("."):
        body = getattr(node, "body", [])
        found = [child for child in body if name in _names(child)]
        if len(found) != 1:
            raise PlantError(f"{where}: there are {len(found)} of {name}, not one")
        node = found[0]
    assert isinstance(node, ast.stmt)
    lines = source.splitlines(keepends=True)
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
    return sum(map(len, lines[: first - 1])), sum(map(len, lines[: node.end_lineno]))


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []
