"""Figures of a page and of a document: equal drawings are equal bytes, nothing is fetched, colours are the page's."""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gpt_common.drawing import COLOURS, colour, css, logarithmic, svg, write_picture, write_png
from gpt_common.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(figure: Figure) -> None:
    axes = figure.subplots()
    axes.plot([0.001234, 2], [1, 300], color=colour(0), label="a line")
    axes.scatter([1, 2], [3, 4], color=colour(1)).set_gid("dot")
    axes.set_xlabel("steps < 0.00123")
    logarithmic(axes.yaxis)
    axes.legend()


def picture(name: str = "one") -> str:
    return svg(draw, name, 'what "it" shows', height=200, titles={"dot": ["first <b>", "second"]})


def test_equal_drawings_are_equal_bytes(tmp_path: Path) -> None:
    assert picture() == picture()
    for name in ("a.png", "b.png"):
        write_png(draw, tmp_path / name, (300, 200))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert struct.unpack(">II", (tmp_path / "a.png").read_bytes()[16:24]) == (600, 400)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_a_picture_is_what_the_end_of_its_name_says(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg", "a.png"):
        write_picture(draw, tmp_path / name, (300, 200))
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    drawn = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert drawn.startswith("<?xml")
    assert COLOURS["paper"][0] in drawn, "it stands on paper of its own, light or dark"
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"b\.pdf: a picture is a \.png or an \.svg"):
        write_picture(draw, tmp_path / "b.pdf", (300, 200))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg", "b.svg"]


def test_a_page_is_left_alone() -> None:
    """No style of its own, nothing from elsewhere, ids that no other figure has."""
    page = picture("one") + picture("two")
    assert not re.search(r"https?:|url\(|<style|<script|xmlns|clip-path|DejaVu", page)
    ids = re.findall(r'id="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 0
    assert {reference[1:] for reference in re.findall(r'href="([^"]+)"', page)} <= set(ids)


def test_colours_are_variables_of_the_style_sheet() -> None:
    page = picture()
    used = set(re.findall(r"var\(--(\w+)\)", page))
    assert {"ink", "soft", "line", "c0", "c1"} <= used <= set(COLOURS)
    assert not any(light in page for light, _ in COLOURS.values())
    light, dark = css().split("prefers-color-scheme: dark")
    for name, pair in COLOURS.items():
        assert f"--{name}: {pair[0]};" in light
        assert f"--{name}: {pair[1]};" in dark


def test_text_is_text_and_points_say_what_they_are() -> None:
    page = picture()
    assert page.count("steps &lt; 0.00123</text>") == 2, "for a window and for a telephone"
    assert page.count('aria-label="what &quot;it&quot; shows"') == 1
    titles = re.findall(r'<use class="dot" [^>]*><title>([^<]*)</title></use>', page)
    assert titles == ["first &lt;b&gt;", "second"] * 2


def test_round_numbers_on_a_logarithmic_axis() -> None:
    def ticks(low: float, high: float) -> list[str]:
        found: list[str] = []

        def narrow_range(figure: Figure) -> None:
            axes = figure.subplots()
            axes.plot([0, 1], [low, high])
            logarithmic(axes.yaxis)
            found.extend(label.get_text() for label in axes.get_yticklabels())

        svg(narrow_range, "ticks", "ticks", height=100)
        return found[: len(found) // 2]

    assert ticks(1, 100) == ["1", "3", "10", "30", "100"]
    assert 2 <= len(ticks(100, 101)) <= 7
    assert all(99 < float(tick) < 102 for tick in ticks(100, 101))


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="pip install"):
        picture()
