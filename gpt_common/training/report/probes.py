"""What probes found of a run, for its page: evaluation/probes.json, as `evaluate --probes` left it there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_common.drawing import SOFT, Draw, colour, narrow
from gpt_common.errors import UserError
from gpt_common.files import read_json
from gpt_common.training.folder import LARGEST_ABOUT
from gpt_common.words import share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PROBES = Path("evaluation") / "probes.json"
"""In the folder of a run."""


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What of the file is shown."""

    checkpoint: str
    note: str | None
    agreement: Sequence[tuple[str, float, float, float]]
    """Kind of fact, share right, its standard error, chance."""
    reliability: Sequence[tuple[float, float]]
    """Probability that the model says, and the true one."""
    in_words: str | None
    """Whether it is as sure as it may be."""
    figures: Sequence[tuple[str, str]]
    """(what, figure)."""


def read_probes(folder: Path) -> Probed | None:
    """What probes found of the run in a folder; None if it was not asked.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / PROBES
    try:
        return _probed(read_json(path, LARGEST_ABOUT))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it, or repeat evaluate --probes") from None


def _probed(found: Mapping[str, Any]) -> Probed:
    calibration = found["calibration"]
    figures = []
    if loss := found["loss"]:
        above = float(loss["loss"]) - float(loss["lowest"])
        figures.append(("above the lowest loss", f"{above:.4f} nats/character"))
    if calibration:
        low, high = map(float, calibration["scale_interval"])
        figures += [
            ("divergence", f"{float(calibration['divergence']):.4f} nats/character"),
            ("calibration error", f"{float(calibration['expected_calibration_error']):.4f}"),
            ("scale of logits", f"{float(calibration['scale']):.2f} ({low:.2f} to {high:.2f})"),
        ]
    for pairs in found["pairs"]:
        if pairs["group"] != "even":
            figures.append((f"pairs, one {pairs['group']}", share(float(pairs["right"]))))
    for group, (right, of) in sorted((found["questions"] or {}).items()):
        figures.append((str(group), f"{int(right)} of {int(of)}"))
    return Probed(
        checkpoint=str(found["checkpoint"]),
        note=None if found["note"] is None else str(found["note"]),
        agreement=[
            (str(kind["kind"]), float(kind["right"]), float(kind["error"]), float(kind["chance"]))
            for kind in found["agreement"]
            if kind["right"] is not None
        ],
        reliability=[(float(each["predicted"]), float(each["true"])) for each in calibration["bins"]]
        if calibration
        else [],
        in_words=str(calibration["in_words"]) if calibration else None,
        figures=figures,
    )


def reliability(axes: Axes, points: Sequence[tuple[float, float]], *, shade: str, label: str | None = None) -> None:
    """What a model says beside what is true, over the diagonal on which both are the same."""
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle="--")
    axes.plot([said for said, _ in points], [true for _, true in points], "o-", color=shade, markersize=5, label=label)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)


def drawing(found: Probed) -> Draw:
    """The reliability curve, and how often facts are repeated rightly."""

    def draw(figure: Figure) -> None:
        panels = [bool(found.reliability), bool(found.agreement)]
        count = sum(panels)
        grid = figure.subplots(count, 1) if narrow(figure) else figure.subplots(1, count)
        axes = iter([grid] if count == 1 else grid.flat)
        if found.reliability:
            curve = next(axes)
            reliability(curve, found.reliability, shade=colour(0))
            curve.set_title("true probability, by what it says")
            curve.set_xlabel("probability that it says")
        if found.agreement:
            bars = next(axes)
            rows = range(len(found.agreement), 0, -1)
            kinds, right, error, chance = zip(*found.agreement, strict=True)
            bars.barh(rows, right, xerr=error, color=colour(0), ecolor=SOFT, height=0.6)
            bars.plot(chance, rows, "|", color=colour(1), markersize=14, markeredgewidth=2)
            bars.set_yticks(list(rows), kinds)
            bars.set_xlim(0, 1.02)
            bars.set_title("facts repeated (mark: chance)")
            bars.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")

    return draw
