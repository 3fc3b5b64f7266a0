"""The bench for recipes: every change is one, and words that mean nothing are refused."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from benchmarks.studies.recipes import Recipe, changed, loss, main, splits, train
from gpt_common.data.prepare import prepare_texts
from gpt_common.errors import UserError

CHANGES = (
    "learning_rate=1e-2", "batch=6", "warmup=1", "momentum=0.8", "momentum_warmup=2", "newton_schulz=3", "polar=1",
    "clip=1e-6", "decay=5", "decay=5 cautious=1", "beta1=0.5", "beta2=0.9", "embedding_rate=3", "theta=100",
    "rms_norm=1", "qk_norm=0", "zero_projections=1", "untied=1", "embedding_norm=1", "value_embeddings=1",
    "residual_mixing=1", "smear=1", "bigrams=1", "soft_cap=5", "short_context=16", "small_batch=6",
)  # fmt: skip


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    words = [f"{one} {other}" for one in ("red", "old", "wet", "odd") for other in ("hen", "fox", "ox", "owl")]
    (folder / "text").write_text(" and ".join(words[i * 7 % 16] for i in range(1000)))
    prepare_texts(
        [folder / "text"], "shakespeare_char", folder / "data", "char", val_fraction=0.1, on_progress=lambda *_: None
    )
    return folder / "data"


def test_every_field_is_tried() -> None:
    tried = {word.partition("=")[0] for change in CHANGES for word in change.split()}
    assert tried | {"steps", "short_share", "small_share"} == {field.name for field in dataclasses.fields(Recipe)}


def test_every_change_changes_what_is_learnt(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["steps=4", "decay=5 steps=4", *(f"{change} steps=4" for change in CHANGES)]
    main(["--data-dir", str(data_dir), "--changes", *changes])
    rows = capsys.readouterr().out.splitlines()[1:]
    losses = {row.split("  ")[-1]: float(row.split()[0]) for row in rows}
    assert list(losses) == list(dict.fromkeys(changes))
    assert all(math.isfinite(value) and value < 4 for value in losses.values())
    without = losses["steps=4"], losses["decay=5 steps=4"]
    assert [change for change in CHANGES if losses[f"{change} steps=4"] in without] == ["decay=5"]
    assert without[0] != without[1]


def test_it_learns(data_dir: Path) -> None:
    text, val, vocab_size = splits(data_dir)
    short, long = (loss(train(changed(f"steps={steps}"), text, vocab_size, 1)[0], val) for steps in (2, 30))
    assert long < short - 0.3


@pytest.mark.parametrize(
    ("words", "message"), [("momentums=0.8", "no 'momentums' in a recipe"), ("steps=many", "steps is a number")]
)
def test_words_that_mean_nothing_are_refused(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        changed(words)
