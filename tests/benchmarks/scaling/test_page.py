"""The page and the commands around it, over runs that a law made."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import scale
from benchmarks.scaling.grid import sizes_of, tokens_of
from benchmarks.scaling.page import PAGE
from benchmarks.scaling.pictures import levels
from gpt_common.errors import UserError
from tests.benchmarks.report.test_report import Links
from tests.benchmarks.scaling.made_up import TRUTH, make_grid, make_trained, small_grid
from tests.browser import browser


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The file of a grid and the folder of its runs."""
    folder = tmp_path_factory.mktemp("scaling")
    return folder / "small.toml", make_grid(small_grid(folder), folder / "runs", metered=True)


@pytest.fixture(scope="module")
def later(made: tuple[Path, Path]) -> Path:
    """A run that was trained since, a hundredth of its loss above the law."""
    config = small_grid(made[0].parent).asked("192,2,8M").with_vocabulary(54)
    loss = 1.01 * float(TRUTH.loss(sizes_of(config.model)[0], tokens_of(config)))
    return make_trained(made[0].parent / "later", config, loss)


@pytest.fixture(scope="module")
def page(made: tuple[Path, Path], later: Path) -> str:
    flags = ["--predict", "192,2,8M", "256,2,8M", "--trained", str(later)]
    scale.main(["page", str(made[0]), "--out", str(made[1]), *flags, "--picture", str(made[0].parent / "p.svg")])
    return (made[1] / PAGE).read_text(encoding="utf-8")


def test_the_page_stands_alone_and_has_all_of_it(page: str, made: tuple[Path, Path]) -> None:
    links = Links()
    links.feed(page)
    assert links.found == []
    assert "url(" not in page
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "Loss against compute", "Foretold", "Lines of equal loss",
        "Loss against size and depth", "Width and depth", "What the law leaves over",
        "The law", "The largest runs, from the others", "Published, not ours", "Where and how",
    ]  # fmt: skip
    assert len(re.findall(r'<figure class="drawing"', page)) == 4
    for word in ("w32-d1-t1M: ", "After 4M tokens", "floor known", "floor fitted", "2: parabolas", "645M on 25.8B"):
        assert word in page
    names = re.findall(r"<td>(\d+ x 2 on [\d.]+M)</td>", page)
    assert names == ["256 x 2 on 8M", "192 x 2 on 8M"], "what was trained since stands once"
    picture = (made[0].parent / "p.svg").read_text(encoding="utf-8")
    assert picture.startswith("<?xml")
    assert "lines of equal loss" in picture


def test_what_came_of_a_run_stands_beside_what_was_foretold(
    made: tuple[Path, Path], later: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--out", str(made[1]), "--trained", str(later)]
    scale.main(["fit", str(made[0]), *flags])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    came = re.search(r"came: ([\d.]+)\n +(in|outside of) the interval by size and tokens; ([+-][\d.]+)% of its", out)
    assert came
    foretold = re.search(r"foretold for 192 x 2 on 8M:\n    by size and tokens:\n      ([\d.]+) ", out)
    assert foretold
    floor, loss, said = 0.0769, float(came[1]), float(foretold[1])
    assert float(came[3]) == pytest.approx(100 * (said - loss) / (loss - floor), abs=0.1)
    assert -6 < float(came[3]) < 2, "a hundredth of a loss that is a third excess"
    assert "256 x 2" not in out


def test_a_run_as_long_as_the_longest_is_foretold_by_size_too_and_its_seeds_are_one(
    made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = made
    config = small_grid(file.parent).asked("192,2,4M").with_vocabulary(54)
    loss = float(TRUTH.loss(sizes_of(config.model)[0], tokens_of(config)))
    seeds = [
        make_trained(file.parent / f"seed{seed}", replace(config, train=replace(config.train, seed=seed)), loss * by)
        for seed, by in ((1, 0.99), (2, 1.01))
    ]
    picture = file.parent / "size.svg"
    flags = ["--out", str(folder), "--picture", str(picture)]
    scale.main(["page", str(file), *flags, "--predict", "192,2,4M", "--trained", *map(str, seeds)])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 or str(folder) in out.splitlines()[-1]
    assert f"came: {loss:.4f}, the mean of 2 seeds" in out
    assert re.search(r"by size and depth:\n +[\d.]+ ", out)
    assert re.search(r"interval by size and depth; [+-][\d.]+% of its excess off", out)
    assert out.count("foretold for 192 x 2 on 4M") == 1
    assert "loss against size, 4M tokens" in picture.read_text(encoding="utf-8")


def test_what_was_not_foretold_is_refused_or_named(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    file, folder = made
    with pytest.raises(UserError, match="is a run of the grid"):
        scale.main(["fit", str(file), "--out", str(folder), "--trained", str(folder / "w32-d1-t1M-s1")])
    for written in ("192,4", "0,4,8M", "192,0,8M", "192,4,inf", "192,4,nan"):
        with pytest.raises(UserError, match=f"'{written}' is no run|n_layer|n_embd"):
            scale.main(["page", str(file), "--out", str(folder), "--predict", written])
    with pytest.raises(UserError, match=r"cannot write .*not-there"):
        scale.main(["fit", str(file), "--out", str(folder), "--json", str(file.parent / "not-there" / "f.json")])
    with pytest.raises(UserError, match=r"a picture is a \.png or an \.svg"):
        scale.main(["page", str(file), "--out", str(folder), "--picture", str(file.parent / "p.pdf")])
    config = small_grid(file.parent, "rate = 1e-3\n" + file.read_text()).asked("192,2,4M").with_vocabulary(54)
    file.write_text(file.read_text().removeprefix("rate = 1e-3\n"))
    other = make_trained(file.parent / "other", config, 0.5)
    capsys.readouterr()
    scale.main(["fit", str(file), "--out", str(folder), "--trained", str(other)])
    assert "not a run of this grid: optim.learning_rate is" in capsys.readouterr().out


def test_a_plan_by_what_was_measured(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    scale.main(["plan", str(made[0]), "--out", str(made[1]), "--joules", "1e6"])
    assert "power: 12.0 W, as measured by a meter" in capsys.readouterr().out
    for flags, said in ((["--hours", "1", "--joules", "1"], "two budgets"), (["--joules", "0"], "must be above 0")):
        with pytest.raises(UserError, match=said):
            scale.main(["plan", str(made[0]), *flags])


def test_a_plan_is_a_file_that_the_trainer_reads(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.scaling.planning import PLAN
    from gpt_common.config import load_toml

    scale.main(["plan", str(made[0]), "--out", str(made[1]), "--hours", "0.2"])
    out = capsys.readouterr().out
    assert f"python -m torch_gpt.train --config {made[1] / PLAN}" in out
    config = load_toml(made[1] / PLAN)
    assert f"{config.model.n_layer} layers x {config.model.n_embd}" in out
    assert f"{config.train.max_steps:,} steps" in out
    assert config.model.vocab_size == 0, "the text's, as for the grid"


def test_runs_that_are_missing_are_counted(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = small_grid(tmp_path)
    folder = make_grid(grid, tmp_path / "runs", missing=["w32-d1-t1M-s1", "w64-d2-t2M-s1"])
    scale.main(["fit", str(tmp_path / "small.toml"), "--out", str(folder)])
    assert capsys.readouterr().out.startswith("22 of the grid's 24 runs have ended with a loss")
    scale.main(["fit", str(made[0]), "--out", str(made[1])])
    assert "runs have ended" not in capsys.readouterr().out


def test_a_flag_that_stands_twice_loses_nothing() -> None:
    def words(line: str) -> list[str]:
        return line.split(" ")

    twice = words("fit g.toml --predict 1,2,3 --json f --predict 4,5,6 7,8,9 --trained a --out o --trained b")
    assert scale.gathered(twice) == words("fit g.toml --predict 1,2,3 4,5,6 7,8,9 --json f --trained a b --out o")
    once = words("fit g.toml --predict 1,2,3 4,5,6")
    assert scale.gathered(once) == once


def test_twins_are_called_as_people_call_them(made: tuple[Path, Path], tmp_path: Path) -> None:
    from gpt_common.cli import parse
    from gpt_common.sweep.command import Which

    assert [small_grid(tmp_path, f'twin = "{name}"\n' + made[0].read_text()).twin for name in ("mlx", "mlx_gpt")] == [
        "mlx_gpt"
    ] * 2
    for name in ("torch", "mlx", "torch_gpt", "mlx_gpt"):
        assert parse(Which, ["a.toml", "--twin", name], prog="sweep").twin == name
    with pytest.raises(UserError, match="twin"):
        parse(Which, ["a.toml", "--twin", "jax"], prog="sweep")


@pytest.mark.parametrize(("low", "high"), [(0.1, 4.0), (0.17, 0.65), (0.301, 0.302), (2.2, 11.0)])
def test_contours_are_at_round_losses_a_few_of_them(low: float, high: float) -> None:
    found = levels(low, high)
    assert 5 <= len(found) <= 10
    assert low < min(found) <= max(found) < high
    assert found == sorted(found)


@pytest.mark.parametrize(("width", "dark"), [(360, True), (1400, False)])
def test_a_browser_shows_it_without_sideways_scrolling(
    page: str, made: tuple[Path, Path], tmp_path: Path, width: int, *, dark: bool
) -> None:
    assert page
    with browser(tmp_path) as window:
        window.show((made[1] / PAGE).as_uri(), width=width, dark=dark)
        assert window.run("document.documentElement.scrollWidth") <= width
        shown = "[...document.querySelectorAll('svg')].filter(one => one.getClientRects().length)"
        assert window.run(f"{shown}.map(one => one.getAttribute('class')).join()") == ",".join(
            ["narrow" if width == 360 else "wide"] * 4
        )
        paper, ink = ("#15171a", "#e7e8ea") if dark else ("#fdfdfb", "#1c1d1f")
        style = "getComputedStyle(document.documentElement).getPropertyValue"
        assert [window.run(f"{style}('--{name}').trim()") for name in ("paper", "ink")] == [paper, ink]
        assert window.problems == []
