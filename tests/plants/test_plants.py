"""The plants fit the source as it stands, and the runner tells who sees them. All: `python -m tests.plants.run`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from convert.parity.mutants.planted import Edit, PlantError
from tests.plants.asking import RECIPES, SOURCES, Checkout
from tests.plants.every import PLANTS
from tests.plants.plant import KINDS, Plant, apply, write
from tests.plants.run import ask, copy_of, prepare

ROOT = Path(__file__).parents[2]
BY_NAME = {plant.name: plant for plant in PLANTS}
SHOWN = ("every micro-step draws micro-batch 0", "best never moves again", "experts are gathered in reverse")
"""One of the loop, one of what it saves, one of conversion: seconds each."""


def test_there_are_enough_and_each_has_a_name_of_its_own() -> None:
    assert len(BY_NAME) == len(PLANTS) >= 60
    count = Counter(plant.kind for plant in PLANTS)
    assert count.keys() == KINDS.keys()
    assert min(count.values()) >= 8


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_every_edit_fits_exactly_once(plant: Plant, tmp_path: Path) -> None:
    for edit in plant.edits:
        (tmp_path / edit.file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / edit.file).write_text((ROOT / edit.file).read_text(encoding="utf-8"), encoding="utf-8")
    before = apply(plant, tmp_path)
    assert all(path.read_text(encoding="utf-8") != text for path, text in before.items())
    for path, text in before.items():
        write(path, text)
    assert all(path.read_text(encoding="utf-8") == (ROOT / path.relative_to(tmp_path)).read_text() for path in before)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_somebody_is_asked_about_every_plant(plant: Plant) -> None:
    known = {
        *RECIPES,
        *(f"{source} {target}" for source in SOURCES for target in ("transformers", "mlx-lm", "nanogpt")),
    }
    assert plant.asks in known or (not plant.asks and (plant.rungs or plant.tests))
    assert all((ROOT / test).is_file() for test in plant.tests if test.startswith("tests/"))
    assert plant.says or not plant.asks or plant.tests, "a user sees it, and nothing says what the words must be"


@pytest.mark.parametrize(
    ("where", "old"),
    [("f", "absent"), ("f", "x"), ("g", "x"), ("Nobody.f", "x")],
    ids=["not there", "there twice", "in another function", "no such class"],
)
def test_a_plant_that_does_not_fit_is_an_error(where: str, old: str) -> None:
    with pytest.raises(PlantError):
        Edit("a.py", where, old, "y").applied("def f():\n    return x + x\n\n\ndef g():\n    return 1\n")


def test_an_edit_stays_in_its_function() -> None:
    source = "class A:\n    def f(self):\n        return 1\n\n    def g(self):\n        return 1\n"
    assert Edit("a.py", "A.g", "return 1", "return 2").applied(source) == source[: source.rindex("1")] + "2\n"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    checkout = copy_of(ROOT, tmp_path_factory.mktemp("plants"))
    prepare(checkout, [BY_NAME[name] for name in SHOWN], twins=("mlx_gpt",))
    return checkout


@pytest.mark.parametrize("name", SHOWN)
def test_a_user_sees_it(name: str, checkout: Checkout) -> None:
    answer = ask(checkout, BY_NAME[name], "user", twins=("mlx_gpt",))
    assert answer.by_user, answer
    assert answer.cause, answer
