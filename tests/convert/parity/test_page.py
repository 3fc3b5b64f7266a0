"""The page of a climb: complete, self-contained, and readable in a real browser, wide and narrow."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from convert.parity.ladder import NAMES, climb_ladder
from convert.parity.mutants.climb import mutant_climb
from convert.parity.mutants.every import MUTANTS
from convert.parity.quality import QualityPlan, summary
from convert.parity.report.console import as_dict
from convert.parity.report.page import render, short
from gpt_common.machine.backends import BACKENDS

pytestmark = [pytest.mark.parity, pytest.mark.timeout(900)]  # processes of rung R, on a busy machine

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """A whole climb of a small model, with mutants and L9 beside it."""
    found = as_dict(
        climb_ladder(mutant_climb()),
        command="python -m convert parity --mode quick --html page.html",
        missing={"mps": "PyTorch finds no MPS"},
        failure=None,
        mutants={mutant.name: (mutant.rung, mutant.rung) for mutant in MUTANTS},
    )
    plan = QualityPlan(
        preset="shakespeare-char-cpu",
        backends=[BACKENDS["cpu"], BACKENDS["mlx-cpu"]],
        seeds=range(1, 11),
        steps=1000,
        data_dir="data",
        folder=Path("runs"),
    )
    losses = {"cpu": {s: 2.1 + s / 100 for s in plan.seeds}, "mlx-cpu": {s: 2.1005 + s / 99 for s in plan.seeds}}
    found["L9"] = summary(plan, losses)
    return found


def test_everything_is_on_the_page_and_nothing_comes_from_elsewhere(report: dict[str, Any]) -> None:
    page = render(report)
    text = html.unescape(page)
    assert "All 15 rungs hold" in text
    for name in NAMES:
        assert f'<strong class="good">{name}</strong>' in page
    for mutant in MUTANTS:
        assert mutant.name in text
    for rung in report["rungs"]:
        assert text.count(f"Errors of rung {rung['name']} ") == 1
        for tensor in {m["tensor"] for m in rung["measurements"]}:
            assert f"<title>{tensor} (" in text
    assert "mps (PyTorch finds no MPS)" in text
    assert report["command"] in text
    assert not re.search(r"https?://|<script|<link|<img|@import|url\(", page), "no network, no script"


def gates(page: str) -> set[float]:
    """Where the gate's line stands in the figures of rungs, as they are drawn for a window."""
    return {float(x) for x in re.findall(r'<g id="\w+-wide-gate">\s*<path d="M ([\d.]+) ', page)}


def points(page: str) -> list[tuple[float, bool]]:
    """Of every dot of these figures: where it stands, and whether it failed."""
    found = re.findall(r'<use class="(dot|failed)" href="#\w+-wide-\w+" x="([\d.]+)"', page)
    return [(float(x), kind == "failed") for kind, x in found]


def test_dots_stand_where_their_errors_are(report: dict[str, Any]) -> None:
    """The gate is the same line in every plot: what passes is left of it, what fails is right of it and red."""
    page = render(report)
    (gate,) = gates(page)
    dots = points(page)
    assert len(dots) > 200
    assert all(x <= gate and not failed for x, failed in dots[:200])
    broken = {
        **report,
        "passed": False,
        "failure": "Parity of mlx-cpu breaks <here>",
        "rungs": report["rungs"][:4],
        "curves": {},
    }
    worst = {**broken["rungs"][3]["measurements"][0], "error": 1e-3, "passed": False}
    broken["rungs"] = [
        *broken["rungs"][:3],
        {**broken["rungs"][3], "passed": False, "worst": worst, "measurements": [worst]},
    ]
    page = render(broken)
    (x,) = [x for x, failed in points(page) if failed]
    (gate,) = gates(page)
    assert x > gate
    assert "Parity breaks at rung L3" in page
    assert "breaks &lt;here&gt;" in page


def test_l9_alone_makes_a_page(report: dict[str, Any]) -> None:
    page = render({k: report[k] for k in ("command", "date", "versions", "os", "chip", "L9")})
    assert "the same final quality" in page
    assert "Error against gate" not in page


def test_figures_are_short() -> None:
    assert [short(x) for x in (0, 1.5, 3.14159e-7, None, 0.005, 12345.0)] == [
        "0",
        "1.5",
        "3.1e-07",
        "∞",
        "0.005",
        "1.2e+04",
    ]


@pytest.fixture(scope="module")
def browser() -> str:
    """Chromium, which CI installs."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        if os.environ.get("CI") == "true" and not os.environ.get("GITHUB_ACTIONS"):
            pytest.fail("CI must provide chromium")
        pytest.skip("no chromium here: the page was not looked at in a browser")
    return found


PROBE = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="page" srcdoc="{page}" style="width:{width}px;height:4000px;border:0"></iframe>
<pre id="found"></pre>
<script>
document.getElementById("page").onload = (event) => {{
  const page = event.target.contentDocument;
  const visible = (selector) => [...page.querySelectorAll(selector)].filter((e) => {{
    const box = e.getBoundingClientRect();
    return box.width > 0 && box.height > 0 && box.left >= -1 && box.right <= {width} + 1;
  }}).length;
  const spread = [...page.querySelectorAll("g[id*='-curve'] path")]
    .map((e) => e.getBoundingClientRect().width).filter((width) => width > 0);
  document.getElementById("found").textContent = [
    page.documentElement.scrollWidth, visible("#ladder tbody tr"), visible("use.dot"), visible("#mutants tbody tr"),
    page.querySelectorAll("svg.wide use.dot").length, Math.round(Math.min(...spread)), visible("h2"),
  ].join(" ");
}};
</script>"""


@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it_without_sideways_scrolling(
    report: dict[str, Any], browser: str, tmp_path: Path, width: int
) -> None:
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(page=html.escape(render(report)), width=width), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,4000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", probe.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    match = re.search(r'<pre id="found">([\d ]+)</pre>', done.stdout)
    assert match, "the page did not load"
    scroll, ladder, dots, mutants, all_dots, narrowest, headings = (int(n) for n in match[1].split())
    assert scroll <= width, "the page is wider than the window"
    assert ladder == len(NAMES)
    assert dots == all_dots > 200, "a dot lies outside the window"
    assert mutants == len(MUTANTS)
    # Those of rung R have 20 steps, and begin a twentieth of the width further in.
    assert narrowest > 0.7 * min(width, 1080), f"curves fill the width, one has {narrowest}"
    assert headings == 7
