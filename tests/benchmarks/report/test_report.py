"""Table, plots and page: a person sees at once what is fastest, by how much, and how sure that is."""

from __future__ import annotations

import html
import re
import shutil
import struct
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report.compare import compare_cases, pair_cases, print_comparison
from benchmarks.report.findings import headline
from benchmarks.report.page import render_page
from benchmarks.report.published import RUNS, same_work
from benchmarks.report.table import print_result
from benchmarks.report.writing import write_report
from benchmarks.results import Result, Settings, write_result
from gpt_common.config import load_preset
from gpt_common.errors import UserError
from gpt_common.network.flops import A100_BF16_PEAK, active_parameter_count, flops_per_token_palm, parameter_count
from tests.benchmarks.recipes import CONFIG, SPEEDS, changed, make_result, worker

CREATED = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
SHORT = Settings(rounds=6, cooldown=0.0)


@pytest.fixture(scope="module")
def result() -> Result:
    settings = SHORT.model_copy(update={"sustained": 1.0, "generation": True, "overhead": True})
    return make_result(settings=settings)


@pytest.fixture(scope="module")
def close_call() -> Result:
    speeds = {**SPEEDS, "mps": 0.0081}
    return make_result(run=worker(speeds), settings=SHORT)


@pytest.fixture(scope="module")
def swept() -> Result:
    return make_result(sweep="n_layer=1,2,4", settings=Settings(rounds=1, seconds=0.3, cooldown=0.0))


@pytest.fixture(scope="module")
def nothing() -> Result:
    return make_result(run=lambda *_, **__: {"event": "failed", "reason": "<b>no & nothing</b>"})


def test_the_headline_names_the_fastest_and_how_sure(result: Result, close_call: Result) -> None:
    sentence = headline(result.cases[0])
    assert re.fullmatch(
        r"mlx is fastest: mps takes 1\.3\d times as long \(95 % interval 1\.2\d to 1\.3\d\)\.", sentence
    )
    assert headline(close_call.cases[0]).startswith("mlx and mps are too close to call: ratio 1.0")


def test_too_few_rounds_claim_nothing(swept: Result, nothing: Result) -> None:
    assert "too few rounds (1)" in headline(swept.cases[0])
    assert headline(nothing.cases[0]) == "Nothing was measured."


@pytest.mark.parametrize("kind", ["result", "close_call", "swept", "nothing"])
def test_the_table_fits_80_columns(
    kind: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    print_result(request.getfixturevalue(kind))
    out = capsys.readouterr().out
    assert out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_the_table_says_why_rows_are_missing(nothing: Result, capsys: pytest.CaptureFixture[str]) -> None:
    print_result(nothing)
    out = capsys.readouterr().out
    assert "mps: failed: <b>no & nothing</b>" in out
    assert "transformers-cpu: absent: not here" in out


class Links(HTMLParser):
    """Everything that a browser would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed", "img"):
            self.found.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action") and not (value or "").startswith(("#", "data:")):
                self.found.append(f"{tag} {name}={value}")


@pytest.mark.parametrize("kind", ["result", "close_call", "swept", "nothing"])
def test_the_page_needs_no_network(kind: str, request: pytest.FixtureRequest) -> None:
    page = render_page(request.getfixturevalue(kind))
    links = Links()
    links.feed(page)
    assert links.found == []
    assert "url(" not in page
    assert "@import" not in page


def test_the_page_shows_what_was_measured(result: Result) -> None:
    page = render_page(result)
    assert headline(result.cases[0]) in page
    for row in result.cases[0].rows:
        assert row.label in page or row.control
    for title in (
        "How sure is that?",
        "Every step",
        "Over the session",
        "Sustained",
        "Generation",
        "Published, not ours",
    ):
        assert f"<h2>{title}</h2>" in page
    assert "221.0" in page
    assert "kept" in page
    assert "mps measured against itself" in page


def test_what_workers_say_is_no_markup(nothing: Result) -> None:
    page = render_page(nothing)
    assert "<b>no & nothing</b>" not in page
    assert "&lt;b&gt;no &amp; nothing&lt;/b&gt;" in page


def test_a_machine_that_was_not_at_its_best_is_said_to_be(result: Result, capsys: pytest.CaptureFixture[str]) -> None:

    def worsen(plain: Any) -> None:
        plain["environment"]["hardware"] |= {"power_source": "battery", "low_power_mode": True}
        plain["environment"]["before"] = {"load": 9.0, "thermal_pressure": "heavy"}

    worse = changed(result, worsen)
    print_result(result)
    assert "warning" not in capsys.readouterr().out
    print_result(worse)
    out, page = capsys.readouterr().out, render_page(worse)
    for words in ("on battery", "low-power mode", "thermal pressure heavy", "load 9.0 on 16"):
        assert words in " ".join(out.split())
        assert words in page or words.capitalize() in page


def test_bars_are_as_long_as_speeds_are_high(result: Result) -> None:
    widths = [float(w) for w in re.findall(r'<i style="width:([\d.]+)%">', render_page(result))]
    assert widths[0] == 100
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == pytest.approx(100 * SPEEDS["mlx"] / SPEEDS["cpu"], rel=0.05)


CHROMIUM = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)


PROBE = """<script>addEventListener("load", () => {
  const fetched = performance.getEntriesByType("resource").length
  parent.document.title = [document.documentElement.scrollWidth, innerWidth, fetched].join(" ")
})</script></body>"""


def open_in_browser(page: str, folder: Path, width: int) -> tuple[int, int, int, list[str]]:
    """Width of the content, width of the window, resources fetched, messages on the console."""
    path = folder / "page.html"
    # A browser's window is at least 500 pixels wide; a frame may be as narrow as a telephone.
    framed = html.escape(page.replace("</body>", PROBE))
    path.write_text(
        f'<iframe srcdoc="{framed}" style="width:{width}px;height:900px;border:0"></iframe>', encoding="utf-8"
    )
    command = [
        str(CHROMIUM),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1400,1000",
        "--dump-dom",
        path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(\d+) (\d+) (\d+)</title>", done.stdout)
    assert title is not None, done.stderr
    content, window, fetched = map(int, title.groups())
    return content, window, fetched, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_opens_in_a_browser(result: Result, tmp_path: Path, width: int) -> None:
    """Without network: nothing fetched, no console message, nothing wider than the window."""
    content, window, fetched, messages = open_in_browser(render_page(result), tmp_path, width)
    assert window == width
    assert content <= window
    assert fetched == 0
    assert messages == []


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_mutants_of_the_page_are_caught(result: Result, tmp_path: Path) -> None:
    worse = (
        '<img src="http://example.invalid/logo.png"><div style="width:3000px">wide</div>'
        "<script>nonsense()</script></main>"
    )
    content, window, fetched, messages = open_in_browser(render_page(result).replace("</main>", worse), tmp_path, 1280)
    assert content > window
    assert fetched == 1
    assert len(messages) == 1


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_all_files_are_written(swept: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write_report(tmp_path / "results", CREATED, swept, {"ab" * 32: '{"class": "strict"}'})
    host = swept.environment.host
    names = [path.name.removeprefix(f"{host}-2026-11-20-120000") for path in paths]
    assert names == [
        ".json",
        ".html",
        "-parity-abababab.json",
        "-speed.png",
        "-steps.png",
        "-session.png",
        "-sweep.png",
    ]
    assert all(min(png_size(path)) > 200 for path in paths if path.suffix == ".png")
    assert str(paths[0]) in capsys.readouterr().out


def test_nothing_to_draw_is_no_error(nothing: Result, tmp_path: Path) -> None:
    assert [path.suffix for path in write_report(tmp_path, CREATED, nothing, {})] == [".json", ".html"]


# --- published runs


def test_published_mfu_is_the_reference_logs() -> None:
    """The log that the runs come from says 1.69 % of an A100 at 220.5 ms; 221 ms make 1.69 % too."""
    rows = {run.label: run for run in RUNS}
    assert 100 * rows["nanoGPT on MPS"].mfu_a100 == pytest.approx(1.69, abs=0.005)
    assert rows["nanoGPT on MPS"].mfu_published == pytest.approx(0.372, abs=0.002)
    assert rows["nanoGPT on the CPU"].mfu_published is None


def test_the_published_work_is_recognised() -> None:
    config = load_preset("shakespeare-char").with_vocabulary(65)
    assert same_work(config)
    assert not same_work(replace(config, train=replace(config.train, batch_size=12)))


# --- two results


def test_two_results_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = make_result(settings=SHORT)
    after = make_result(run=worker({**SPEEDS, "mlx": 0.0064}, seed=2), settings=SHORT)
    after = changed(after, lambda plain: plain["environment"]["versions"].update(mlx="9.9"))
    rows = {row.backend: row for row in compare_cases(before.cases[0], after.cases[0])}
    assert rows["mlx"].ratio.value == pytest.approx(1.25, rel=0.05)
    assert rows["mlx"].verdict == "B is faster"
    assert rows["cpu"].verdict == "no difference shown"
    for name, result in (("a", before), ("b", after)):
        write_result(tmp_path / f"{name}.json", result)
    print_comparison(tmp_path / "a.json", tmp_path / "b.json")
    out = capsys.readouterr().out
    assert "versions.mlx" in out
    assert "9.9 (B)" in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_different_work_is_not_compared(swept: Result, result: Result) -> None:
    assert [b.changes for _, b in pair_cases(result, swept)] == [{"n_layer": 4}]
    other = make_result(sweep="n_embd=64", settings=Settings(rounds=1, seconds=0.3, cooldown=0.0))
    with pytest.raises(UserError, match=r"model.n_embd is 128 in the one and 64 in the other"):
        pair_cases(result, other)


def test_experts_are_told_by_active_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    model = replace(load_preset("custom-llm-tiny").model, vocab_size=65)
    result = make_result(config=replace(CONFIG, model=model), settings=Settings(rounds=1, seconds=0.3, cooldown=0.0))
    case = result.cases[0]
    work, found = case.work, next(row.summary for row in case.rows if row.summary)
    active = active_parameter_count(model)
    assert (work.parameters, work.active_parameters) == (parameter_count(model), active)
    assert active < parameter_count(model)
    # FLOPs, and with them MFU, count what a token meets.
    assert work.flops_per_step == flops_per_token_palm(model) * work.tokens_per_step
    assert work.flops_per_step < 6 * parameter_count(model) * work.tokens_per_step
    seconds = found.seconds_per_step
    assert found.mfu.a100 == pytest.approx(work.flops_per_step / seconds / A100_BF16_PEAK)

    print_result(result)
    assert f"{parameter_count(model):,} parameters ({active:,} active)" in capsys.readouterr().out
    assert f"parameters, {active:,} active</li>" in render_page(result)
    # A result that was written before knew none.
    result = changed(result, lambda plain: plain["cases"][0]["work"].pop("active_parameters"))
    print_result(result)
    assert "active" not in capsys.readouterr().out
    assert " active</li>" not in render_page(result)
