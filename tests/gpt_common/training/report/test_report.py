"""The report of a run: a page that is complete, small, harmless and self-contained, at the end of every run."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest

from gpt_common.config import from_dict
from gpt_common.errors import UserError
from gpt_common.training.report.ending import report_at_end
from gpt_common.training.report.page import facts, render_report, sample_table, write_report
from gpt_common.training.report.past import Sample, read_run
from tests.gpt_common.training.made_up import CONFIG, SESSION, evaluation, make_run, step
from tests.twins import TWINS, train

REFERENCES = r"""https?://|<script|<link(?! rel="icon" href="data:,")|<img|@import|url\("""


def long_run(folder: Path, steps: int = 2000) -> Path:
    """Every step logged, with experts, a resume, a gap and samples."""
    noise = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number in range(1, steps + 1):
        loads = noise.uniform(0.5, 1.5, (4, 8)).tolist()
        timing = {"dt": None, "tps": None} if number == 700 else {}
        loss = 4 * number**-0.35 * noise.uniform(0.9, 1.1)
        rows.append(step(number, loss=loss, expert_load=loads, time=number / 10, **timing))
        if number == 1000:
            rows.append({"event": "resume", "step": 1000, "time": 0.0})
        if number % 100 == 0:
            rows.append(evaluation(number, loss, time=number / 10))
    samples = [
        {"step": at, "prompt": prompt, "text": f" and then {at} " + "word " * 100}
        for at in (0, 500, 1000, 1500, 2000)
        for prompt in ("Once", "Twice")
    ]
    config = from_dict({**CONFIG, "train": {**CONFIG["train"], "max_steps": steps}})
    sessions = [SESSION, {**SESSION, "first_step": 1000, "command": "python -m mlx_gpt.train --resume runs/x"}]
    return make_run(folder, rows, samples=samples, config=config, sessions=sessions)


@pytest.fixture(scope="module")
def long_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a long run."""
    folder = long_run(tmp_path_factory.mktemp("runs") / "long")
    return write_report(read_run(folder)).read_text(encoding="utf-8")


def test_a_long_run_makes_a_small_page(long_page: str) -> None:
    assert len(long_page.encode()) < 1_000_000


def test_the_page_needs_nothing_else(long_page: str) -> None:
    assert not re.search(REFERENCES, long_page)


def test_everything_is_on_the_page(long_page: str) -> None:
    text = html.unescape(long_page)
    assert "Done: 2,000 of 2,000 steps. Best validation loss" in text
    for heading in ("Loss", "Rate, gradient, speed, memory", "Experts", "What it says", "Configuration", "Environment"):
        assert f"<h2>{heading}</h2>" in text
    for title in ("learning rate", "gradient norm before clipping", "tokens per second", "peak memory, MiB", "router"):
        assert f">{title}</text>" in text
    assert "lowest possible loss, 0.100" in text
    assert "torch_gpt, mlx_gpt, stories-cpu, data: stories" in text
    assert "Dotted lines: where the run was taken up again" in text
    assert "Red: no step was timed there" in text
    assert "<code>model.n_embd</code>" in text
    assert "<code>model.dropout</code>" not in text, "it has its default"
    assert "--resume runs/x" in text
    assert text.count("before training") == 1


PROBE = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="page" srcdoc="{page}" style="width:{width}px;height:4000px;border:0"></iframe><pre id="found"></pre>
<script>
document.getElementById("page").onload = (event) => {{
  const page = event.target.contentDocument;
  const seen = (selector) => [...page.querySelectorAll(selector)].filter((e) => {{
    const box = e.getBoundingClientRect();
    return box.width > 0 && box.height > 0 && box.left >= -1 && box.right <= {width} + 1;
  }}).length;
  document.getElementById("found").textContent = [page.documentElement.scrollWidth, seen("h2"), seen("svg")].join(" ");
}};
</script>"""


@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it_without_sideways_scrolling(long_page: str, tmp_path: Path, width: int) -> None:
    browser = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := which(name))), None)
    if browser is None:
        pytest.skip("no chromium here: the page was not looked at in a browser")
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(page=html.escape(long_page), width=width), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,4000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", probe.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    match = re.search(r'<pre id="found">([\d ]+)</pre>', done.stdout)
    assert match, "the page did not load"
    scroll, headings, figures = (int(number) for number in match[1].split())
    assert scroll <= width, "the page is wider than the window"
    assert (headings, figures) == (6, 3)


def test_samples_stand_side_by_side() -> None:
    samples = [
        Sample(at, prompt, f"{prompt}{at}")
        for at in (0, 10, 20, 30, 40)
        for prompt in "ab"
        if prompt + str(at) != "b40"
    ]
    heads, rows = sample_table(samples)
    assert heads == ["before training", "step 20", "step 40"]
    assert [[sample and sample.text for sample in row] for row in rows] == [["a0", "a20", "a40"], ["b0", "b20", None]]


@pytest.mark.parametrize("rows", [[], [step(1)], [evaluation(0, 4.0)], [{"step": 0, "alarm": "odd"}]])
def test_the_page_of_a_run_that_has_hardly_begun(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    page = render_report(read_run(make_run(tmp_path / "run", rows)))
    assert ("No step was logged yet" in page) == (not rows or "alarm" in rows[0])
    assert "</html>" in page


HOSTILE = "</td><script>alert(1)</script><img src=x> {{ 7*7 }} $\\frac$ \x1b[31m _\u202e\ud800 中文"


def test_what_ranks_did_is_on_the_page(tmp_path: Path) -> None:
    """Who was last most often, and medians; a log that says nonsense makes a page all the same."""
    of_ranks: tuple[dict[str, Any], ...] = (
        {},
        {"slowest_rank": 1, "dt_behind": 0.004},
        {"slowest_rank": 1, "dt_behind": 0.002},
    )
    rows = [step(n, dt_ranks=0.02, efficiency=0.8, **more) for n, more in enumerate(of_ranks, start=1)]
    rows.append(step(4, dt_ranks=0.02, efficiency=0.6, slowest_rank=0, dt_behind=0.003))
    found = dict(facts(read_run(make_run(tmp_path / "run", rows))))
    assert found["in sums over ranks"] == "20.0%"
    assert found["slowest rank"] == "1, by 3.00 ms"
    assert found["efficiency of a rank"] == "80.0%"
    assert (
        not {"slowest rank", "in sums over ranks"} & dict(facts(read_run(make_run(tmp_path / "one", [step(1)])))).keys()
    )
    nonsense = step(1, dt=0.0, dt_ranks=0.0, slowest_rank=-1e300, dt_behind="x")
    render_report(read_run(make_run(tmp_path / "nonsense", [nonsense, step(2)])))


def test_names_and_samples_are_harmless(tmp_path: Path) -> None:
    samples = [{"step": at, "prompt": HOSTILE, "text": HOSTILE} for at in (0, 40)]
    session = {**SESSION, "command": HOSTILE, "device": HOSTILE, "versions": {HOSTILE: HOSTILE}, "git": None}
    rows = [step(1), evaluation(1, 3.0), {"step": 1, "alarm": HOSTILE}, {"step": 1, "alarm": ""}]
    folder = make_run(tmp_path / "<b>$x^2$&amp;", rows, samples=samples, sessions=[session, {}], dataset=HOSTILE)
    write_report(read_run(folder))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<script|<img|<b>\$", page)
    assert "&lt;script&gt;" in page
    assert "{{ 7*7 }}" in page
    assert "\x1b" not in page


def test_a_page_of_endless_texts_stays_small(tmp_path: Path) -> None:
    samples = [{"step": at, "prompt": f"{p} " * 5000, "text": "x" * 10**5} for at in (0, 1, 2) for p in range(50)]
    rows = [step(1), *({"step": 1, "alarm": "y" * 10**4} for _ in range(500))]
    sessions = [{**SESSION, "command": "z" * 10**5}] * 300
    page = write_report(read_run(make_run(tmp_path / "run", rows, samples=samples, sessions=sessions)))
    assert page.stat().st_size < 1_000_000
    assert "And 480 more alarms" in page.read_text(encoding="utf-8")


def test_torn_and_foreign_samples_are_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [step(1)], samples=[{"step": 0, "prompt": "a", "text": "b"}])
    with (folder / "samples.jsonl").open("a") as file:
        file.write('[]\n{"step": "0", "prompt": 1, "text": null}\n{"step": 2, "prompt": "c"')
    assert read_run(folder).samples == [Sample(0, "a", "b")]


def test_a_report_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "run", [step(1), step(2)])
    rows, problem = report_at_end(folder, "utf-8")
    assert rows == [("loss", "█▁ 4 to 2"), ("report", str(folder / "report.html"))]
    assert problem is None
    for package in ("jinja2", "matplotlib"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            rows, problem = report_at_end(folder, "utf-8")
            assert rows == [("loss", "█▁ 4 to 2")]
            assert problem is not None
            assert problem.endswith(f"pip install {package}")
    (folder / "metrics.jsonl").write_text("{}\n[]\n")
    rows, problem = report_at_end(folder, "utf-8")
    assert rows == []
    assert problem is not None
    assert "line 2" in problem


# ---- runs that were trained --------------------------------------------------------------------------------------


@pytest.mark.parametrize("twin", TWINS)
def test_a_run_ends_with_its_report(
    twin: str, tiny_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*tiny_run, "--report", "--max-steps", "6", "--log-interval", "1", "--sample-tokens", "5"]
    train(twin, *flags, "--out", tmp_path / "run")
    summary = capsys.readouterr().out
    assert re.search(r"\n  loss +[▁▂▃▄▅▆▇█]+ [\d.]+ to [\d.]+\n", summary)
    assert f"{tmp_path / 'run' / 'report.html'}\n" in summary
    found = read_run(tmp_path / "run")
    assert found.state == "done"
    assert (found.twin, found.origin, found.dataset) == (twin, "stories-cpu", "stories")
    (session,) = found.course.sessions
    assert session.start_up is not None
    assert session.first_step_seconds is not None
    assert 0 < session.first_step_seconds < found.course.seconds
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Done: 6 of 6 steps" in page


def test_a_report_that_fails_does_not_fail_the_run(
    tiny_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    train("torch_gpt", *tiny_run, "--report", "--max-steps", "2", "--out", tmp_path / "run")
    said = capsys.readouterr().out
    assert "no report was made: figures need matplotlib: pip install matplotlib\n" in said
    assert "\ndone\n" in said
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_run_that_goes_on_is_said_to(tmp_path: Path) -> None:
    import fcntl

    folder = make_run(tmp_path / "run", [step(1)])
    assert read_run(folder).state == "stopped"
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert read_run(folder).state == "running"
        assert "Still running: 1 of 40 steps" in render_report(read_run(folder))
    finally:
        os.close(descriptor)


def test_broken_about_files_are_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [step(1)])
    for content in ("[", "[]", json.dumps({"sessions": [1, {"started": 5, "command": ["x"]}], "dataset": 3})):
        (folder / "run.json").write_text(content)
        if content.startswith("{"):
            assert "No step" not in render_report(read_run(folder))
        else:
            with pytest.raises(UserError, match=r"run\.json is damaged"):
                read_run(folder)
