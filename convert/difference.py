"""Compare two checkpoints of any format, tensor by tensor, in blocks."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from tyro.conf import Positional, arg

from convert.contents import Contents
from convert.formats import registry
from convert.options import ReadOptions
from convert.storage.tensors import Array, Tensor, same, values
from gpt_common.errors import UserError, WorkFailed
from gpt_common.network.changes import CHANGES
from gpt_common.words import one_line, say

COMPUTED = CHANGES["logits"]
"""What decides a model's logits besides its tensors."""
TRAINING_ALONE = ("adapter_dropout",)
"""Of an adapter's settings, what decides nothing of what it computes."""


@dataclass(frozen=True, kw_only=True)
class Diff:
    """Compare two checkpoints of any format under our tensor names, worst first; exit 1 if they differ."""

    a: Annotated[Positional[Path], arg(metavar="A")]
    """One checkpoint."""
    b: Annotated[Positional[Path], arg(metavar="B")]
    """The other."""
    tolerance: float = 0.0
    """Largest relative L2 error per tensor that still counts as equal; 0 wants equal values."""
    latest: bool = False
    """Of run folders, take the latest checkpoint and not the best."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One tensor's comparison."""

    name: str
    what: str
    relative: float
    """|a - b| / |a| in the L2 norm; infinite if they cannot be compared."""


def diff(command: Diff) -> None:
    """Print the comparison.

    Raises:
        UserError: a source is unknown or damaged, or the tolerance makes no sense.
        WorkFailed: they differ beyond the tolerance.
    """
    if not command.tolerance >= 0:
        raise UserError(f"tolerance is {command.tolerance}: it must not be negative")
    options = ReadOptions(latest=command.latest, adapter=True)
    a, b = registry.read(command.a, options), registry.read(command.b, options)
    if (a.base is None) != (b.base is None):
        adapter = command.b if a.base is None else command.a
        raise UserError(
            f"{adapter} is an adapter and the other a whole model: merge it first (python -m convert fuse {adapter})"
        )
    settings = _settings(a, b)
    rows = sorted((compare(name, x, y) for name, x, y in _pairs(a, b)), key=lambda row: (-row.relative, row.name))
    a.verify()
    b.verify()
    beyond = [row for row in rows if row.relative > command.tolerance]
    for line in settings:
        say(line)
    width = max([len(row.name) for row in rows] + [6])
    for row in rows:
        if row.what != "equal":
            say(f"{row.name:<{width}}  {row.what}")
    equal = sum(row.what == "equal" for row in rows)
    say(f"{equal} of {len(rows)} tensors are equal")
    if beyond or settings:
        reasons = [f"{len(beyond)} tensors beyond tolerance {command.tolerance:g}"] if beyond else []
        reasons += [f"{len(settings)} settings"] if settings else []
        raise WorkFailed(f"{command.a} and {command.b} differ: " + " and ".join(reasons))


def _settings(a: Contents, b: Contents) -> list[str]:
    lines = []
    if a.config is not None and b.config is not None:
        for key in COMPUTED:
            x, y = getattr(a.config.model, key), getattr(b.config.model, key)
            if x != y:
                lines.append(f"{key}: {x} and {y}")
        if a.base is not None:
            for field in dataclasses.fields(a.config.adapter):
                x, y = (getattr(each.config.adapter, field.name) for each in (a, b) if each.config is not None)
                lines += [f"{field.name}: {x} and {y}"] if x != y and field.name not in TRAINING_ALONE else []
            if a.base != b.base:
                say(f"note: they stand beside {one_line(str(a.base))} and {one_line(str(b.base))}")
    if a.moments and b.moments and a.step != b.step:
        lines.append(f"step: {a.step} and {b.step}")
    if bool(a.moments) != bool(b.moments):
        say(f"note: only {(a if a.moments else b).path} has optimiser state: it is not compared")
    return lines


def _pairs(a: Contents, b: Contents) -> list[tuple[str, Tensor | None, Tensor | None]]:
    x, y = a.tensors | a.unknown, b.tensors | b.unknown
    if a.moments and b.moments:
        x, y = x | a.moments, y | b.moments
    return [(name, x.get(name), y.get(name)) for name in dict.fromkeys((*x, *y))]


def compare(name: str, a: Tensor | None, b: Tensor | None) -> Row:
    """Bit for bit if dtypes are equal, by value otherwise; NaN equals NaN."""
    if a is None or b is None:
        return Row(name=name, what=f"missing in {'A' if a is None else 'B'}", relative=math.inf)
    if a.shape != b.shape:
        return Row(name=name, what=f"shape {list(a.shape)} and {list(b.shape)}", relative=math.inf)
    if same(a, b):
        return Row(name=name, what="equal", relative=0.0)
    largest = squares = norm = 0.0
    for x, y in zip(a.blocks(), b.blocks(), strict=True):
        u, v = _wide(values(x, a.dtype)), _wide(values(y, b.dtype))
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.where((u == v) | (np.isnan(u) & np.isnan(v)), 0.0, np.abs(u - v))
        error[np.isnan(error)] = math.inf  # a NaN or an infinity against a number
        largest = max(largest, float(error.max(initial=0.0)))
        squares += float(np.square(error).sum())
        norm += float(np.square(np.abs(u[np.isfinite(u)])).sum())
    if not largest:
        kinds = a.dtype if a.dtype == b.dtype else f"{a.dtype} and {b.dtype}"
        return Row(name=name, what=f"equal values, different bits ({kinds})", relative=0.0)
    relative = math.inf if not norm or math.isinf(squares) else math.sqrt(squares / norm)
    return Row(name=name, what=f"max abs {largest:.3e}, relative L2 {relative:.3e}", relative=relative)


def _wide(numbers: Array) -> Array:
    """As float64, or complex128."""
    return numbers.astype("<c16" if np.iscomplexobj(numbers) else "<f8")
