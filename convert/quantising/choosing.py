"""Which matrices of a model are quantised, and in how many bits each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpt_common.adapting.quantisation import BITS, Grid, Grids, Shapes, quantisable
from gpt_common.errors import UserError, nearest


@dataclass(frozen=True)
class Choice:
    """Layers by name."""

    grids: Grids
    """Those that are quantised."""
    floats: Mapping[str, str]
    """Why each of the others stays as it is."""


def choose(shapes: Shapes, grid: Grid, keep: Sequence[str] = (), layer_bits: Sequence[str] = ()) -> Choice:
    """Every matrix on one grid but for what is said of some of them.

    Args:
        shapes: of the model's parameters.
        grid: of all.
        keep: layers that stay float, by name or a part of it.
        layer_bits: other bits for some layers, NAME=BITS.

    Raises:
        UserError: a name that no matrix has, bits that there are not, or nothing left to quantise.
    """
    matrices = [name.removesuffix(".weight") for name, s in shapes.items() if name.endswith(".weight") and len(s) > 1]
    bits = dict.fromkeys(quantisable(shapes), grid.bits)
    floats = {name: "small, but it counts" for name in matrices if name not in bits}
    for entry in layer_bits:
        name, equals, number = entry.partition("=")
        if not equals or number not in map(str, BITS):
            raise UserError(f"layer_bits: {entry!r:.80} is not NAME=BITS with BITS of {', '.join(map(str, BITS))}")
        for meant in _meant(name, matrices, "layer_bits"):
            bits[meant] = int(number)
            floats.pop(meant, None)
    for name in keep:
        for meant in _meant(name, matrices, "keep"):
            bits.pop(meant, None)
            floats[meant] = "asked for"
    grids = {}
    for name, width in bits.items():
        inputs = shapes[f"{name}.weight"][-1]
        if grid.fits(inputs):
            grids[name] = Grid(width, grid.group_size)
        else:
            floats[name] = "no whole groups"
    if not grids:
        why = next(iter(floats.values()))
        raise UserError(
            f"nothing would be quantised in groups of {grid.group_size}: {why}; take another --group-size, keep less"
        )
    return Choice(grids, {name: floats[name] for name in matrices if name in floats})


def lines_of(choice: Choice) -> list[str]:
    """Layer by layer, those of all blocks together that are alike."""
    said = {name: f"{grid.bits} bits, groups of {grid.group_size}" for name, grid in choice.grids.items()}
    said |= {name: f"float: {why}" for name, why in choice.floats.items()}
    together: dict[tuple[str, str], list[int]] = {}
    for name, words in said.items():
        found = re.match(r"blocks\.(\d+)\.", name)
        template = f"blocks.{{}}.{name[found.end() :]}" if found else name
        together.setdefault((template, words), []).append(int(found[1]) if found else -1)
    names = [template.format(_ranges(numbers)) for (template, _), numbers in together.items()]
    width = max(map(len, names))
    return [f"  {name:<{width}}  {words}" for name, (_, words) in zip(names, together, strict=True)]


def _ranges(numbers: list[int]) -> str:
    """0, 1, 2, 5 -> 0-2,5."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _meant(target: str, matrices: Sequence[str], field: str) -> list[str]:
    found = [name for name in matrices if target and f".{target}." in f".{name}."]
    if not found:
        parts = {part for name in matrices for part in name.split(".") if not part.isdecimal()}
        # All names of a deep model are no help; one that is nearly this is.
        near = nearest(target, {*matrices, *parts})
        hint = near if near.startswith("did you mean") else nearest(target, parts)
        raise UserError(f"{field}: no matrix of this model is called {target!r:.80}: {hint}")
    return found
