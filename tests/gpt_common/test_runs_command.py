"""`python -m gpt_common.runs`: list, show, report and compare, on sound, damaged and foreign folders."""

from __future__ import annotations

import html
import os
import re
from pathlib import Path
from typing import Any

import pytest

from gpt_common.config import from_dict
from gpt_common.errors import UserError
from gpt_common.runs import main
from gpt_common.training.report.past import find_run, read_run
from tests.gpt_common.training.made_up import CONFIG, SESSION, evaluation, make_run, step

Capture = pytest.CaptureFixture[str]


def rows(steps: int = 9, **values: Any) -> list[dict[str, Any]]:
    return [evaluation(0, 4.0), *(step(number, **values) for number in range(1, steps + 1)), evaluation(steps, 0.5)]


def said(capsys: Capture, *argv: str | Path) -> str:
    main([str(word) for word in argv])
    return capsys.readouterr().out


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sound runs, and all else that can lie there."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs")
    make_run(folder / "torch", rows())
    other = {**SESSION, "command": "python -m mlx_gpt.train --init-from=runs/base/checkpoints/step-000010 --lr 1"}
    config = from_dict({**CONFIG, "optim": {"learning_rate": 5e-3}})
    make_run(folder / "mlx", rows(), sessions=[{**other, "preset": None}], config=config)
    make_run(folder / "torn", rows())
    (folder / "torn" / "metrics.jsonl").write_text('{"step": 1}\n[]\n{"step": 3}\n')
    make_run(folder / "newer", rows())
    (folder / "newer" / "config.toml").write_text("[model]\nunheard_of = 1\n")
    make_run(folder / "new", [])
    (folder / "foreign\x1b[31m").mkdir()
    (folder / "imported" / "checkpoints").mkdir(parents=True)
    (folder / "compare.html").touch()
    for age, name in enumerate(("mlx", "torch", "torn", "newer", "new")):
        os.utime(folder / name / "metrics.jsonl", (10**9 - age * 1000, 10**9 - age * 1000))
    for name in ("foreign\x1b[31m", "imported"):
        os.utime(folder / name, (10**8, 10**8))
    return folder


def test_list_shows_every_folder_within_80_columns(runs: Path, capsys: Capture) -> None:
    lines = said(capsys, "list").splitlines()
    assert max(map(len, lines)) <= 80
    table = [line.split() for line in lines]
    assert table[0] == ["name", "from", "data", "best", "loss", "above", "floor", "steps", "tokens/s", "when"]
    by_name = {row[0]: row for row in table[1:]}
    assert list(by_name) == ["mlx", "torch", "torn", "newer", "new", "foreign\\x1b[31m", "imported"], "newest first"
    assert by_name["mlx"][1:7] == ["base", "stories", "0.5000", "0.4000", "9/40", "1.28k"]
    assert by_name["torch"][1] == "stories-cpu"
    assert by_name["new"][3:7] == ["-", "-", "0/40", "-"]
    assert [by_name[name][1] for name in ("torn", "newer", "imported")] == ["damaged"] * 3
    assert by_name["foreign\\x1b[31m"][1:3] == ["no", "run"]
    assert runs.is_dir()


def test_list_elsewhere_and_of_nothing(tmp_path: Path, capsys: Capture) -> None:
    make_run(tmp_path / "a" / "x", rows())
    assert "x " in said(capsys, "list", "--runs-dir", tmp_path / "a")
    for empty in ("a/x", "nowhere"):
        with pytest.raises(UserError, match=r"no run in .* yet"):
            main(["list", "--runs-dir", str(tmp_path / empty)])


def test_show(runs: Path, capsys: Capture) -> None:
    text = said(capsys, "show", "torch")
    assert text.startswith(
        "torch\nStopped: 9 of 40 steps. Best validation loss 0.5000 nats per token, at step 9: 0.4000"
    )
    assert re.search(r"  loss +█▆▅▄▃▂▂▁▁ 4 to 0\.444\n", text)
    assert "  trained by   torch_gpt, stories-cpu\n" in text
    assert text.rstrip().endswith("python -m gpt_common.runs report runs/torch")
    assert said(capsys, "show", runs / "torch") == text
    assert "not evaluated yet" in said(capsys, "show", "new")


@pytest.mark.parametrize(
    ("more", "device"),
    [
        ({"ranks": 1, "rank_engines": None}, "CPU"),
        ({"ranks": 2, "rank_engines": None}, "2 ranks: CPU"),
        ({"ranks": 3, "rank_engines": ["torch on A", "mlx on B", "torch on A"]}, "3 ranks: torch on A; mlx on B"),
        ({"ranks": "many", "rank_engines": 7}, "CPU"),
    ],
)
def test_show_says_by_how_many_ranks(more: dict[str, object], device: str, tmp_path: Path, capsys: Capture) -> None:
    make_run(tmp_path / "run", rows(), sessions=[{**SESSION, "device": "CPU", **more}])
    assert f"  device       {device}\n" in said(capsys, "show", tmp_path / "run")


def test_the_newest_run_is_meant_if_none_is_named(runs: Path, capsys: Capture) -> None:
    with pytest.raises(UserError, match="no run in runs yet"):
        main(["show"])
    for name in ("torch", "mlx"):
        (runs / name / "checkpoints").mkdir()
        (runs / name / "checkpoints" / "latest").touch()
    os.utime(runs / "torch" / "checkpoints" / "latest", (10**8, 10**8))
    assert said(capsys, "show").startswith("mlx\n")


def test_report_lies_in_the_run_or_where_it_is_asked_for(runs: Path, tmp_path: Path, capsys: Capture) -> None:
    assert said(capsys, "report", "torch") == "runs/torch/report.html\n"
    assert "Stopped: 9 of 40 steps" in (runs / "torch" / "report.html").read_text(encoding="utf-8")
    out = tmp_path / "page.html"
    assert said(capsys, "report", runs / "torch", "--out", out) == f"{out}\n"
    assert out.read_bytes() == (runs / "torch" / "report.html").read_bytes(), "equal runs make equal pages"
    with pytest.raises(UserError, match=r"cannot write .*nowhere/page\.html"):
        main(["report", "torch", "--out", "nowhere/page.html"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torn", r"metrics\.jsonl, line 2 is not a JSON object"),
        ("newer", "unknown key 'unheard_of'"),
        ("foreign\x1b[31m", "is not the folder of a run"),
        ("imported", "holds checkpoints and no log"),
        ("nothing", "no run nothing: python -m gpt_common.runs list shows"),
        ("compare.html", r"no run compare\.html"),
    ],
)
@pytest.mark.parametrize("command", ["show", "report", "compare"])
def test_what_is_no_sound_run_is_one_line(runs: Path, command: str, name: str, message: str) -> None:
    assert runs.is_dir()
    with pytest.raises(UserError, match=message) as error:
        main([command, name, *(["torch"] if command == "compare" else [])])
    assert "\n" not in str(error.value)


def test_compare_lays_runs_of_both_twins_over_each_other(runs: Path, capsys: Capture) -> None:
    lines = said(capsys, "compare", "torch", "mlx").splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["torch", "stories", "0.5000", "0.4000", "9/40", "0:01", "1.28k"]
    assert lines[-1] == "runs/compare.html"
    text = html.unescape((runs / "compare.html").read_text(encoding="utf-8"))
    assert not re.search(r"""https?://|<script|<link(?! rel="icon" href="data:,")|<img|url\(""", text)
    assert '<code>optim.learning_rate</code></td><td class="value">0.001</td><td class="value">0.005</td>' in text
    assert "model.n_layer" not in text
    for axis in ("step", "tokens", "time"):
        assert f">{axis}</text>" in text
    assert curves(text)[0] == curves(text)[1], "equal losses lie on each other"


def curves(page: str) -> list[str]:
    """The paths of the first panel's curves of training losses, drawn for a window."""
    panel = page[page.index('<svg class="wide"') :]
    panel = panel[panel.index("compared-wide-axes_1") if "compared-wide-axes_1" in panel else 0 :]
    return re.findall(r'<path d="(M [^"]*L [^"]*)" style="fill: none; stroke: var\(--c[01]\)', panel)[:2]


def test_one_picture_for_a_document(runs: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "curves.png"
    assert said(capsys, "compare", "torch", "mlx", "--png", out).splitlines()[-1] == str(out)
    assert out.read_bytes().startswith(b"\x89PNG")
    assert not (runs / "compare.html").read_bytes()
    with pytest.raises(UserError, match=r"cannot write nowhere/a\.png"):
        main(["compare", "torch", "mlx", "--png", "nowhere/a.png"])


def test_a_run_that_is_still_going_can_be_compared(runs: Path, capsys: Capture) -> None:
    with (runs / "torch" / "metrics.jsonl").open("a") as file:
        file.write('{"step": ')
    assert "runs/compare.html" in said(capsys, "compare", "torch", "mlx")


def test_names_that_are_alike_or_strange(runs: Path, tmp_path: Path, capsys: Capture) -> None:
    make_run(tmp_path / "elsewhere" / "torch", rows())
    make_run(runs / "_$x^$<b>", rows())
    text = said(capsys, "compare", "torch", tmp_path / "elsewhere" / "torch", "_$x^$<b>", "--out", "page.html")
    assert str(tmp_path / "elsewhere") in text.replace("\n", "").replace(" ", "") or "elsewhere" in text
    page = Path("page.html").read_text(encoding="utf-8")
    assert "<b>" not in page.replace("<b></b>", "")
    assert "_$x^$&lt;b&gt;</text>" in page


def test_what_cannot_be_compared_is_named(runs: Path) -> None:
    assert runs.is_dir()
    with pytest.raises(UserError, match="missing arguments: RUN RUN"):
        main(["compare"])
    for names in (["torch"], ["torch", "runs/torch"]):
        with pytest.raises(UserError, match="only one run, runs/torch"):
            main(["compare", *names])
    with pytest.raises(UserError, match="new has no logged losses yet"):
        main(["compare", "torch", "new"])


def test_a_checkpoint_means_its_run(runs: Path) -> None:
    checkpoint = runs / "torch" / "checkpoints" / "step-000009"
    checkpoint.mkdir(parents=True)
    assert find_run(checkpoint) == runs / "torch"


@pytest.mark.parametrize(
    ("flags", "origin"),
    [
        ("--preset llama-tiny", "llama-tiny"),
        ("--preset=llama-tiny --n-layer 2", "llama-tiny"),
        ("--config my/settings.toml --preset gpt2", "settings"),
        ("--init-from runs/base", "base"),
        ("--init_from=runs/base/checkpoints/step-000005", "base"),
        ("--name 'it's", ""),
        ("", ""),
    ],
)
def test_where_a_run_began(tmp_path: Path, flags: str, origin: str) -> None:
    session = {**SESSION, "command": f"python -m mlx_gpt.train {flags}", "preset": None}
    assert read_run(make_run(tmp_path / "run", rows(), sessions=[session])).origin == origin


def test_commands_are_listed_and_unknown_ones_named(capsys: Capture) -> None:
    for argv in ([], ["--help"]):
        text = said(capsys, *argv)
        assert [line.split()[0] for line in text.splitlines() if line.startswith("  ")] == [
            "list",
            "show",
            "report",
            "compare",
        ]
    with pytest.raises(UserError, match="unknown command 'lst': did you mean 'list'"):
        main(["lst"])
