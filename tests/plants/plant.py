"""A plant: a small fault in the source, as a replacement inside one function, and where it should be seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from convert.parity.mutants.planted import Edit

TWINS = ("torch_gpt", "mlx_gpt")
KINDS = {
    1: "gates ask a path that does not train",
    2: "relations of losses",
    3: "invariants of a step",
    4: "which data is which",
    5: "what was saved",
    6: "sizes and positions beyond the small",
    7: "measurement",
    8: "conversion",
}


@dataclass(frozen=True)
class Plant:
    """A fault, and who is asked about it."""

    name: str
    kind: int
    edits: tuple[Edit, ...]
    says: str = ""
    """A pattern of words that name the cause; what the user sees must hold it, whatever the case of letters."""
    asks: str = "run"
    """What a user does: a name in RECIPES of asking.py; empty: nothing that shows it."""
    rungs: str = ""
    """Rungs of `convert parity --mode quick` that are climbed, separated by commas."""
    tests: tuple[str, ...] = ()
    """Arguments of pytest: quick tests that must see it."""
    told: bool = False
    """Of those that issue 11 tells: the trainer itself must say it, in both twins."""

    @property
    def twins(self) -> tuple[str, ...]:
        """The twins in which it stands: those that are edited, and both where none is."""
        edited = {edit.file.split("/")[0] for edit in self.edits}
        return tuple(twin for twin in TWINS if twin in edited) or TWINS


def apply(plant: Plant, root: Path) -> dict[Path, str]:
    """Write the fault into a checkout; returns what stood in the files before, to be put back.

    Raises:
        PlantError: an edit does not fit.
    """
    before: dict[Path, str] = {}
    planted: dict[Path, str] = {}
    for edit in plant.edits:
        path = root / edit.file
        before.setdefault(path, path.read_text(encoding="utf-8"))
        planted[path] = edit.applied(planted.get(path, before[path]))
    for path, text in planted.items():
        write(path, text)
    return before


def write(path: Path, text: str) -> None:
    """Write a source file, and forget what was compiled of it: two edits within a second may be of one size."""
    path.write_text(text, encoding="utf-8")
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()


def both(where: str, file: str, torch: tuple[str, str], mlx: tuple[str, str] | None = None) -> tuple[Edit, ...]:
    """The same fault in both twins.

    Args:
        where: the function, called alike in both; `forward` is `__call__` in MLX.
        file: within the twin's folder.
        torch: old and new text.
        mlx: the same in MLX, if it is another.
    """
    return (
        Edit(f"torch_gpt/{file}", where, *torch),
        Edit(f"mlx_gpt/{file}", where.replace("forward", "__call__"), *(mlx or torch)),
    )
