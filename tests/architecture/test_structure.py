"""The house in order: no circle of imports, rooms and files of a size that is read in one sitting, names that tell.

The graph is built from the files: imports inside functions and under TYPE_CHECKING count like any other.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TWINS = ("mlx_gpt", "torch_gpt")
SHIPPED = ("gpt_common", *TWINS, "convert", "benchmarks")
PACKAGES = (*SHIPPED, "tests")

FILES_IN_A_FOLDER = 16
FILES_IN_A_TWIN = 19
"""A twin is one folder whatever it learns to do, so that the same name means the same file in both."""
LINES_IN_A_FILE = 350
LONG: dict[str, str] = {
    "gpt_common/config.py": "every field with its docstring: one list to look a setting up in",
    "gpt_common/training/run.py": "one object, what the loop calls, in the order of a run",
}
"""Files that may be longer, with the reason: at most three, none of them a twin's."""
VAGUE = {"utils", "util", "helpers", "helper", "misc", "common_utils"}
TEST_TOOLS = {"unittest", "pytest"}


def code(root: Path, packages: tuple[str, ...] = PACKAGES) -> Iterator[Path]:
    """The Python files of `packages`."""
    for package in packages:
        yield from sorted((root / package).rglob("*.py"))


def modules(root: Path) -> dict[str, Path]:
    """Each module's file by its name; a package's is its __init__.py."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in code(root)
    }


def imported(path: Path, package: str) -> Iterator[tuple[str, str | None]]:
    """What a file of `package` imports, wherever in it: (module, name or None)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            yield from ((module, alias.name) for alias in node.names)


def import_graph(root: Path) -> dict[str, set[str]]:
    """Every module with the modules that it needs: what it names, and each package around that which it is not in."""
    known = modules(root)
    graph: dict[str, set[str]] = {}
    for module, path in known.items():
        needs = graph[module] = set()
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for source, name in imported(path, package):
            target = f"{source}.{name}" if f"{source}.{name}" in known else source
            needs.add(target)
            while target := target.rpartition(".")[0]:
                if not module.startswith(f"{target}."):
                    needs.add(target)
        needs &= known.keys() - {module}
    return graph


def circle(root: Path) -> list[str]:
    """Modules that import each other, round to the first again; nothing if there is no such circle."""
    try:
        TopologicalSorter(import_graph(root)).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def crowded(root: Path) -> list[str]:
    """Folders with more code files than anyone keeps in mind; an __init__.py says what the folder is."""
    folders = [path.parent.relative_to(root).as_posix() for path in code(root) if path.name != "__init__.py"]
    most = {folder: FILES_IN_A_TWIN if folder in TWINS else FILES_IN_A_FOLDER for folder in folders}
    return sorted(folder for folder, files in most.items() if folders.count(folder) > files)


def long_files(root: Path) -> list[str]:
    """Files that are not read in one sitting."""
    return [
        path.relative_to(root).as_posix()
        for path in code(root)
        if len(path.read_text(encoding="utf-8").splitlines()) > LINES_IN_A_FILE
    ]


def shipped_test_tools(root: Path) -> list[str]:
    """Shipped files that import what only tests may need."""
    return [
        path.relative_to(root).as_posix()
        for path in code(root, SHIPPED)
        if TEST_TOOLS & {module.partition(".")[0] for module, _ in imported(path, ".".join(path.parent.parts))}
    ]


def vague_names(root: Path) -> list[str]:
    """Files and folders whose names say nothing."""
    return [name for name in modules(root) if VAGUE & {*name.split(".")}]


@pytest.mark.parametrize("found", [circle, crowded, shipped_test_tools, vague_names])
def test_the_house_is_in_order(found: Callable[[Path], list[str]]) -> None:
    assert found(ROOT) == []


def test_long_files_have_their_reason() -> None:
    assert long_files(ROOT) == sorted(LONG)
    assert len(LONG) <= 3
    assert not [name for name in LONG if name.startswith(TWINS)]


# --- each check bites: made-up houses in disorder

IN_ORDER = {
    "gpt_common/__init__.py": "",
    "gpt_common/config.py": "import math\nimport numpy as np",
    "gpt_common/data/__init__.py": "from gpt_common.data.batches import batch",
    "gpt_common/data/batches.py": "from gpt_common import config",
    "mlx_gpt/__init__.py": "import gpt_common.data",
    "mlx_gpt/train.py": "def main(): from gpt_common.data import batch",
    "tests/test_batches.py": "import pytest\nfrom gpt_common.data import batches",
}


def house(root: Path, **changed: str) -> Path:
    """A small tree of packages; in the names of changed files `__` stands for a slash."""
    for name, text in {**IN_ORDER, **{f"{name.replace('__', '/')}.py": text for name, text in changed.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_house_in_order_passes(tmp_path: Path) -> None:
    root = house(tmp_path)
    assert [found(root) for found in (circle, crowded, long_files, shipped_test_tools, vague_names)] == [[]] * 5
    assert import_graph(root)["mlx_gpt.train"] == {"gpt_common", "gpt_common.data"}
    assert import_graph(root)["gpt_common.data.batches"] == {"gpt_common.config"}, "it lies in gpt_common"


GUARDED = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import mlx_gpt.train as t"
CIRCLES = {
    "two packages": {"gpt_common__config": "import mlx_gpt.train"},
    "in a function": {"gpt_common__config": "def f():\n    from mlx_gpt import train"},
    "under TYPE_CHECKING": {"gpt_common__config": GUARDED},
    "inside a folder": {"mlx_gpt__a": "from mlx_gpt.b import x", "mlx_gpt__b": "from . import a"},
    "its own package": {"gpt_common__data__batches": "from gpt_common.data import x"},
    "by an __init__": {"gpt_common__config": "import gpt_common.data.names", "gpt_common__data__names": ""},
}


@pytest.mark.parametrize("changed", CIRCLES.values(), ids=CIRCLES)
def test_a_circle_is_found(changed: dict[str, str], tmp_path: Path) -> None:
    found = circle(house(tmp_path, **changed))
    assert found[0] == found[-1]
    first_changed = next(iter(changed)).replace("__", ".")
    assert first_changed in found, "without what was changed there is none"


@pytest.mark.parametrize(
    ("found", "changed", "named"),
    [
        (crowded, {f"mlx_gpt__room__part{i}": "" for i in range(17)}, "mlx_gpt/room"),
        (long_files, {"torch_gpt__model": "x = 1\n" * 351}, "torch_gpt/model.py"),
        (shipped_test_tools, {"convert__mutants": "from unittest.mock import patch"}, "convert/mutants.py"),
        (shipped_test_tools, {"convert__check": "def f():\n    import pytest"}, "convert/check.py"),
        (vague_names, {"benchmarks__utils": ""}, "benchmarks.utils"),
        (vague_names, {"benchmarks__helpers__time": ""}, "benchmarks.helpers.time"),
    ],
)
def test_disorder_is_found(
    found: Callable[[Path], list[str]], changed: dict[str, str], named: str, tmp_path: Path
) -> None:
    assert found(house(tmp_path, **changed)) == [named]
