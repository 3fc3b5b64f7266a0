"""Configuration: presets, TOML, precedence, and one line for every mistake."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_common.cli import flag_names, parse
from gpt_common.commands import SampleCommand, TrainCommand
from gpt_common.config import (
    PRESETS_FOLDER,
    ModelConfig,
    RunConfig,
    TrainConfig,
    differences,
    from_dict,
    load_preset,
    load_toml,
    preset_names,
    to_dict,
    to_toml,
)
from gpt_common.errors import UserError
from gpt_common.network.flops import parameter_count
from gpt_common.training.command_line import parse_training


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_says_how_to_run_it(name: str) -> None:
    config = load_preset(name)
    first = (PRESETS_FOLDER / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(f"# python -m mlx_gpt.train --preset {name}")
    assert config.train.max_steps > 0
    assert from_dict(to_dict(config)) == config


def test_the_presets_that_were_promised_are_there() -> None:
    named = ["stories", "stories-cpu", "shakespeare-char", "shakespeare-char-cpu", "shakespeare-bpe"]
    assert {*named, "tinystories", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"} <= set(preset_names())


def test_gpt2_has_its_published_size() -> None:
    counts = {
        name: parameter_count(load_preset(name).model) for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
    }
    # Counted from the published weights: 124,439,808 and so on, with the tied head once.
    assert counts == {"gpt2": 124439808, "gpt2-medium": 354823168, "gpt2-large": 774030080, "gpt2-xl": 1557611200}


def test_shakespeare_char_is_nanogpts_baby() -> None:
    model = dataclasses.replace(load_preset("shakespeare-char").model, vocab_size=65)
    # nanoGPT reports 10.65 M, without position embeddings.
    assert parameter_count(model) - 256 * 384 == 10646784


def test_field_names_are_unique_over_all_tables() -> None:
    names = flag_names(TrainCommand)
    assert len(names) == len(set(names))


text = st.text(st.characters(codec="utf-8"), max_size=20)


@given(
    prompts=st.lists(text, max_size=3),
    seed=st.integers(0, 2**63 - 1),
    rate=st.floats(1e-12, 1e6),
    layers=st.integers(1, 100),
    tied=st.booleans(),
    name=text,
)
def test_toml_gives_back_what_it_was_given(
    prompts: list[str],
    seed: int,
    rate: float,
    layers: int,
    tied: bool,
    name: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    config = from_dict(
        {
            "model": {"n_layer": layers, "tied_head": tied},
            "optim": {"learning_rate": rate},
            "data": {"dataset": name},
            "train": {"seed": seed, "prompts": prompts},
        }
    )
    path = tmp_path_factory.mktemp("toml") / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert load_toml(path) == config


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("[modle]\nn_layer = 2", "unknown table [modle]: did you mean 'model'?"),
        ("[model]\nn_layr = 2", "unknown key 'n_layr' in [model]: did you mean 'n_layer'?"),
        ("[model]\nmax_steps = 2", "unknown key 'max_steps' in [model]: it belongs in [train]"),
        ("[model]\nn_layer = 'two'", "n_layer in [model]: expected int, found 'two'"),
        ("[model]\nn_layer = true", "expected int, found True"),
        ("[model]\ntied_head = 1", "expected bool, found 1"),
        ("[optim]\nschedule = 'cosin'", "did you mean 'cosine'?"),
        ("[model]\nn_head = 5", "n_head 5 does not divide n_embd 128: try n_head 4"),
        ("[model]\nhead_bias = true", "head_bias needs an untied head"),
        ("[train]\nprompts = 'text'", "expected a list"),
        ("[optim]\nlearning_rate = nan", "nan is not a finite number"),
        ("[optim]\nbeta2 = 1.0", "beta2 is 1.0"),
        ("[train]\nmax_steps = 0", "max_steps is 0"),
        ("model = 3", "[model] must be a table"),
        ("[model", "cannot read configuration"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_place(toml: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(toml, encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_toml(path)
    assert says in str(error.value)
    assert str(path) in str(error.value)


def test_integers_are_good_floats_and_not_the_reverse() -> None:
    assert from_dict({"optim": {"learning_rate": 1}}).optim.learning_rate == 1.0
    with pytest.raises(UserError, match="expected int"):
        from_dict({"model": {"n_layer": 2.0}})


def test_precedence_is_defaults_preset_file_flags(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[model]\nn_layer = 3\nn_embd = 64\n", encoding="utf-8")
    argv = ["--preset", "shakespeare-char-cpu", "--config", str(path), "--n_embd", "32", "--bias"]
    command, why = parse_training(argv, prog="train", has_gpu=False)
    model = command.run.model
    assert (model.block_size, model.n_layer, model.n_embd, model.bias) == (64, 3, 32, True)
    assert model.feed_forward == ModelConfig().feed_forward
    assert why is None


@pytest.mark.parametrize(("has_gpu", "preset"), [(True, "stories"), (False, "stories-cpu")])
def test_without_a_preset_the_machine_decides_and_says_why(has_gpu: bool, preset: str) -> None:
    command, why = parse_training([], prog="train", has_gpu=has_gpu)
    assert command.run == load_preset(preset)
    assert why is not None
    assert preset in why
    assert "GPU" in why


def test_lists_booleans_and_optional_paths_parse() -> None:
    command = parse(TrainCommand, ["--prompts", "one", "two words", "--no-tied-head", "--out", "x"], prog="train")
    assert command.run.train.prompts == ("one", "two words")
    assert command.run.model.tied_head is False
    assert command.out == Path("x")
    assert parse(SampleCommand, ["--top_k", "5"], prog="sample").top_k == 5


def test_differences_name_fields() -> None:
    old, new = RunConfig(), RunConfig(model=ModelConfig(n_layer=6), train=TrainConfig(prompts=("a",)))
    expected: dict[str, tuple[Any, Any]] = {"model.n_layer": (4, 6), "train.prompts": ([], ["a"])}
    assert differences(old, new) == expected


def test_vocabulary_is_taken_from_the_tokenizer_or_must_hold_it() -> None:
    assert RunConfig().with_vocabulary(65).model.vocab_size == 65
    padded = RunConfig(model=ModelConfig(vocab_size=128))
    assert padded.with_vocabulary(65) == padded
    with pytest.raises(UserError, match="smaller than the tokenizer's 65"):
        RunConfig(model=ModelConfig(vocab_size=64)).with_vocabulary(65)
