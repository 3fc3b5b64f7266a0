"""How figures look: matplotlib, as SVG inside a page (light or dark, wide or narrow) and as PNG beside a document.

A figure is a function that draws on an empty matplotlib figure, with the colours below. In a page every colour is a
variable of the page's style sheet (`css`), text is text, and nothing is fetched; equal drawings give equal bytes.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_common.errors import UserError
from gpt_common.files import discard_on_error, temporary_beside

if TYPE_CHECKING:
    from matplotlib.axis import XAxis, YAxis
    from matplotlib.figure import Figure

Draw = Callable[["Figure"], None]
Size = tuple[float, float]
"""Width and height in pixels of a page."""

COLOURS = {
    "ink": ("#1c1d1f", "#e7e8ea"),
    "soft": ("#5d6168", "#9da3ab"),
    "line": ("#dfe1e3", "#33373d"),
    "card": ("#f4f5f4", "#1d2024"),
    "paper": ("#fdfdfb", "#15171a"),
    "good": ("#1a6e3c", "#7bd69b"),
    "bad": ("#b3261e", "#ff8a80"),
    "c0": ("#2f6fd0", "#6ea3f5"),
    "c1": ("#c4681b", "#f0a35c"),
    "c2": ("#2c8a57", "#6cc596"),
    "c3": ("#8a4fbf", "#bd93e8"),
    "c4": ("#b83a6b", "#ee7fa8"),
    "c5": ("#6b7280", "#a2a8b2"),
}
"""By name, on light and on dark paper. Figures are drawn in the first; a page's style sheet decides."""
INK, SOFT, LINE, CARD, PAPER, GOOD, BAD, *SERIES = (light for light, _ in COLOURS.values())
WIDE, NARROW = 940, 360
"""Widths of a figure in a window and on a telephone."""


def colour(index: int) -> str:
    """The colour of the line, row or bar of this number."""
    return SERIES[index % len(SERIES)]


def page_colour(drawn: str) -> str:
    """A colour of a figure as a page calls it."""
    return next(f"var(--{name})" for name, (light, _) in COLOURS.items() if light == drawn)


def narrow(figure: Figure) -> bool:
    """Whether a figure is drawn for a telephone."""
    return bool(72 * figure.get_figwidth() < (WIDE + NARROW) / 2)


def css() -> str:
    """The style that a page needs: colours for light and dark, and figures as wide as the window allows."""
    light, dark = ("".join(f" --{name}: {pair[side]};" for name, pair in COLOURS.items()) for side in (0, 1))
    return f""":root {{ color-scheme: light dark;{light} }}
@media (prefers-color-scheme: dark) {{ :root {{{dark} }} }}
.drawing {{ margin: 0.8rem 0; }}
.drawing svg {{ display: block; width: 100%; height: auto; overflow: visible; }}
.drawing svg.narrow {{ display: none; }}
@media (max-width: 640px) {{ .drawing svg.wide {{ display: none; }} .drawing svg.narrow {{ display: block; }} }}"""


def logarithmic(axis: XAxis | YAxis, text: Callable[[float], str] = "{:.6g}".format, most: int = 6) -> None:
    """Make the x or y axis of what was drawn logarithmic, with at most so many round numbers on it."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    name = axis.axis_name
    getattr(axis.axes, f"set_{name}scale")("log")
    low, high = getattr(axis.axes, f"get_{name}lim")()
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if 2 <= len(ticks) <= most:
            break
    else:
        ticks = [tick for tick in MaxNLocator(most).tick_values(low, high) if low <= tick <= high]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def svg(
    draw: Draw,
    name: str,
    label: str,
    *,
    height: float,
    narrow_height: float | None = None,
    titles: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """A figure for a page: drawn twice, for a window and for a telephone, of which the style sheet shows one.

    Args:
        name: begins the ids of this figure; no other on the page has it.
        label: says to those who cannot see it what it shows.
        height: in pixels of the page.
        titles: by gid of a scatter, what each of its points says when it is pointed at.
    """
    sizes = {"wide": (WIDE, height), "narrow": (NARROW, narrow_height or height)}
    drawn = [_clean(_draw(draw, size, "svg"), f"{name}-{kind}", kind, titles or {}) for kind, size in sizes.items()]
    return f'<figure class="drawing" role="img" aria-label="{html.escape(label)}">\n{"".join(drawn)}</figure>'


def write_png(draw: Draw, path: Path, size: Size) -> None:
    """A figure for a document, on light paper."""
    _write(_draw(draw, size, "png", dpi=144, facecolor=PAPER), path)


def write_picture(draw: Draw, path: Path, size: Size) -> None:
    """As `write_png`, or as SVG, by the end of the file's name; raises UserError where it is neither."""
    if path.suffix.lower() == ".svg":
        _write(_draw(draw, size, "svg", facecolor=PAPER), path)
    elif path.suffix.lower() == ".png":
        write_png(draw, path, size)
    else:
        raise UserError(f"{path}: a picture is a .png or an .svg")


def _write(picture: bytes, path: Path) -> None:
    temporary = temporary_beside(path)
    with discard_on_error(temporary):
        temporary.write_bytes(picture)
        temporary.replace(path)


def _draw(draw: Draw, size: Size, kind: str, **options: Any) -> bytes:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("figures need matplotlib: pip install matplotlib") from None
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "mlx-torch-gpt",
        "font.size": 13,
        "axes.titlesize": 13,
        "axes.titlelocation": "left",
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "figure.constrained_layout.hspace": 0.06,
        "legend.frameon": False,
        "text.parse_math": False,  # labels are names, and a name may have a $ in it
        "text.color": INK,
        "axes.titlecolor": INK,
        "axes.labelcolor": SOFT,
        "axes.edgecolor": LINE,
        "grid.color": LINE,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
    }
    buffer = io.BytesIO()
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # Letters that its font lacks (a page has fonts of its own), labels too long: it draws all the same.
        warnings.simplefilter("ignore", UserWarning)
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72, layout="constrained", facecolor="none")
        draw(figure)
        # Found here, the layout costs no drawing of the whole figure for nothing.
        if engine := figure.get_layout_engine():
            engine.execute(figure)
            figure.set_layout_engine("none")
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None} if kind == "svg" else {}
        figure.savefig(buffer, format=kind, metadata=metadata, **options)
    return buffer.getvalue()


def _clean(drawn: bytes, prefix: str, kind: str, titles: Mapping[str, Sequence[str]]) -> str:
    """An SVG file as a part of a page: no names of other files, ids of its own, colours and letters of the page."""
    text = drawn.decode()
    text = text[text.index("<svg") :]
    # A style sheet inside would hold for the whole page, and clipping would need references.
    text = re.sub(r"<(metadata|style|clipPath)\b.*?</\1>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:(?:xmlns(?::\w+)?|clip-path)="[^"]*"|transform="rotate\(-0 [^"]*")', "", text)
    text = re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'<svg class="{kind}" \1 stroke-linejoin="round">', text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r' (?:d|x|y)="[^"]*"', lambda numbers: re.sub(r"(\.\d\d)\d+", r"\1", numbers[0]), text)
    for gid, labels in titles.items():
        text = _with_titles(text, gid, labels)
    # Only what is referred to keeps its name, and what the caller named.
    text = re.sub(
        r' id="(?:figure|patch|axes|matplotlib|[xy]tick|line2d|text|legend|\w+Collection)[\w.]*_\d+"', "", text
    )
    text = re.sub(r'\b(id="|href="#)', rf"\g<1>{prefix}-", text.replace("xlink:href", "href"))
    text = re.sub("|".join(light for light, _ in COLOURS.values()), lambda found: page_colour(found[0]), text)
    text = re.sub(r'<path d="[^"]*" style="fill: none"/>|<defs>\s*</defs>', "", text)
    while (shorter := re.sub(r"<g[^>]*/>|<g>\s*</g>", "", text)) != text:
        text = shorter
    return re.sub(r"\s*\n\s*", "\n", text)


def _with_titles(text: str, gid: str, labels: Sequence[str]) -> str:
    """Every point of a scatter with its own title, and of the class that its scatter is called."""
    start = text.find(f'<g id="{gid}">')
    if start < 0:
        return text
    remaining = iter(labels)
    points = re.compile(r"<use ([^>]*)/>")
    head, rest = text[:start], text[start:]
    # The points of the scatter are the next ones, as many as there are labels.
    found = points.sub(
        lambda point: f'<use class="{gid}" {point[1]}><title>{html.escape(next(remaining))}</title></use>',
        rest,
        count=len(labels),
    )
    return head + found
