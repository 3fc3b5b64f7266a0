"""What a library cannot hold is refused by the name of the field; what is added or not read is said aloud."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from convert.formats import transformers_llama
from convert.options import ReadOptions
from gpt_common.config import ModelConfig, RunConfig, load_preset, to_toml
from tests.convert.conftest import done, refused, run_convert
from tests.convert.hostile import corpus_families
from tests.convert.hostile.corpus_families import deepseek, llama
from tests.convert.sources import Model, folder

LLAMA = ModelConfig(
    vocab_size=11,
    block_size=6,
    n_layer=2,
    n_head=2,
    n_embd=8,
    norm="rmsnorm",
    positions="rope",
    attention="grouped_query",
    feed_forward="swiglu",
    feed_forward_width=5,
    tied_head=False,
)
DEEPSEEK = dataclasses.replace(
    LLAMA,
    attention="latent",
    rope_layout="interleaved",
    kv_latent=3,
    nope_size=2,
    rope_size=2,
    value_size=3,
    feed_forward="moe",
    n_expert=4,
    n_shared_expert=1,
    experts_per_token=2,
    expert_width=3,
    router="sigmoid",
    balancing="bias",
)
CUSTOM = dataclasses.replace(DEEPSEEK, attention="latent_per_head", q_latent=3, positions="both", final_norm=False)
NOT_MOE: dict[str, Any] = {"n_expert": 0, "n_shared_expert": 0, "experts_per_token": 0, "expert_width": 0}
NOT_MOE |= {"feed_forward": "swiglu", "balancing": "none"}
ONE_GATE: dict[str, Any] = {"experts_per_token": 1}
BOTH = ("transformers", "mlx-lm")


def run_of(config: ModelConfig, place: Path) -> Path:
    """A run with random weights."""
    torch.save(Model(config=config, dtype="F32", seed=1, moments=False, step=0).weights(), place / "weights.pt")
    (place / "model.toml").write_text(to_toml(RunConfig(model=config)))
    done("torch2mlx", place / "weights.pt", "-o", place / "run", "--config", place / "model.toml")
    return place / "run"


REFUSED: list[tuple[ModelConfig, dict[str, Any], tuple[str, ...], str]] = [
    (LLAMA, {"norm": "layernorm"}, BOTH, "norm is layernorm, and Llama has only rmsnorm"),
    (LLAMA, {"final_norm": False}, BOTH, "final_norm is False"),
    (LLAMA, {"positions": "learned"}, BOTH, "positions is learned"),
    (LLAMA, {"positions": "both"}, BOTH, "positions is both"),
    (LLAMA, {"rope_layout": "interleaved"}, BOTH, "rope_layout is interleaved"),
    (LLAMA, {"qk_norm": True}, BOTH, "qk_norm is True"),
    (LLAMA, {"feed_forward": "relu2"}, BOTH, "feed_forward is relu2"),
    (LLAMA, {"head_bias": True}, BOTH, "head_bias is True"),
    (LLAMA, {"n_head": 3, "head_size": 4}, ("transformers",), "n_head 3"),
    (LLAMA, {"attention": "multi_head"}, BOTH, "norm is rmsnorm, and"),
    (LLAMA, {}, ("nanogpt",), "attention is grouped_query"),
    (DEEPSEEK, {"router": "softmax"}, BOTH, "router is softmax"),
    (DEEPSEEK, {"positions": "both"}, BOTH, "positions is both"),
    (DEEPSEEK, {"bias": True}, BOTH, "bias is True"),
    (DEEPSEEK, {"final_norm": False}, BOTH, "final_norm is False"),
    (DEEPSEEK, {"head_bias": True}, BOTH, "head_bias is True"),
    (DEEPSEEK, NOT_MOE, BOTH, "feed_forward is swiglu"),
    (DEEPSEEK, {"n_shared_expert": 0}, ("transformers",), "n_shared_expert is 0"),
    (DEEPSEEK, {"n_expert": 1, "experts_per_token": 1}, ("transformers",), "n_expert is 1"),
    (DEEPSEEK, {"rope_layout": "halves"}, ("mlx-lm",), "rope_layout is halves"),
    (DEEPSEEK, ONE_GATE, ("mlx-lm",), "experts_per_token 1 with router_normalise"),
    (DEEPSEEK, {"n_layer": 62}, ("mlx-lm",), "n_layer is 62"),
    (DEEPSEEK, {}, ("nanogpt",), "attention is latent"),
    (CUSTOM, {}, (*BOTH, "nanogpt"), "attention is latent_per_head"),
]


@pytest.mark.parametrize(("base", "changes", "targets", "says"), REFUSED, ids=[case[3] for case in REFUSED])
def test_refused_by_the_name_of_the_field(
    base: ModelConfig, changes: dict[str, Any], targets: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    run = run_of(dataclasses.replace(base, **changes), tmp_path)
    for to in targets:
        said = refused("mlx2torch", run, "-o", tmp_path / "out", "--to", to)
        assert says in said
        assert "--to" in said or "keep the run as it is" in said
        assert not (tmp_path / "out").exists()


def test_what_the_other_library_holds_is_written(tmp_path: Path) -> None:
    """The refusals above are of one library where only that one cannot."""
    for number, (config, to) in enumerate(
        [
            (dataclasses.replace(LLAMA, n_head=3, head_size=4), "mlx-lm"),
            (dataclasses.replace(DEEPSEEK, n_shared_expert=0), "mlx-lm"),
            (dataclasses.replace(DEEPSEEK, rope_layout="halves"), "transformers"),
            (dataclasses.replace(DEEPSEEK, **ONE_GATE), "transformers"),
            (dataclasses.replace(DEEPSEEK, **ONE_GATE, router_normalise=False), "mlx-lm"),
        ]
    ):
        place = tmp_path / str(number)
        place.mkdir()
        done("mlx2torch", run_of(config, place), "-o", place / "out", "--to", to)
        assert "tensors are equal" in done("diff", place / "run", place / "out")


@pytest.mark.parametrize("balancing", ["none", "loss"])
@pytest.mark.parametrize("to", BOTH)
def test_routing_biases_of_zero_are_written_aloud(balancing: Literal["none", "loss"], to: str, tmp_path: Path) -> None:
    run = run_of(dataclasses.replace(DEEPSEEK, balancing=balancing), tmp_path)
    said = done("mlx2torch", run, "-o", tmp_path / "out", "--to", to)
    assert f"note: the model's balancing is {balancing}: routing biases of zero were written" in said
    bias = load_file(tmp_path / "out" / "model.safetensors")["model.layers.1.mlp.gate.e_score_correction_bias"]
    assert bias.shape == (4,)
    assert not bias.any()


@pytest.mark.parametrize("make", [llama, deepseek])
def test_settings_that_nobody_reads_are_said(make: Any, tmp_path: Path) -> None:
    more = {"is_llama_config": True, "tie_break": None, "use_mup": False, "torch_dtype": "float32", "seq_aux": True}
    source = make(config=lambda settings: settings.update(more))(tmp_path)
    said = done("torch2mlx", source, "-o", tmp_path / "run")
    assert "note: not read in config.json: is_llama_config\n" in said
    other = tmp_path / "other"
    other.mkdir()
    assert "not read" not in done("torch2mlx", make()(other), "-o", other / "run")


def test_a_published_configuration(tmp_path: Path) -> None:
    """SmolLM-135M's config.json (huggingface.co/HuggingFaceTB/SmolLM-135M) is our preset, to the last field."""
    published = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": 576,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 2048,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": 49152,
    }
    (tmp_path / "config.json").write_text(json.dumps(published))
    save_file({"model.norm.weight": torch.ones(576)}, tmp_path / "model.safetensors")
    contents = transformers_llama.read(tmp_path, ReadOptions())
    assert contents.config is not None
    assert contents.config.model == load_preset("smollm-135m").model


@pytest.mark.parametrize(("theta", "expected"), [(5 * 10**7, 5e7), (1e6, 1e6), (None, 1e4)])
def test_bases_are_whole_numbers_too(theta: float | None, expected: float, tmp_path: Path) -> None:
    source = llama(config=lambda settings: settings.update(rope_theta=theta))(tmp_path)
    contents = transformers_llama.read(source, ReadOptions())
    assert contents.config is not None
    assert contents.config.model.rope_theta == expected


SETTINGS = sorted({*corpus_families.LLAMA, *corpus_families.DEEPSEEK, "rope_theta", "rope_scaling", "layer_types"})
VALUES = [
    None,
    -1,
    0,
    1,
    3,
    10**400,
    "x",
    "8",
    [],
    [1],
    {},
    {"type": 1},
    math.nan,
    math.inf,
    -1.5,
    2.5,
    True,
    False,
    1e300,
]


@hypothesis.settings(max_examples=80, deadline=None, derandomize=True)
@hypothesis.given(st.sampled_from([llama, deepseek]), st.sampled_from(SETTINGS), st.sampled_from(VALUES))
def test_any_setting_is_taken_or_refused_in_a_sentence(make: Any, key: str, value: Any) -> None:
    with folder() as place:
        outcome = run_convert("torch2mlx", make(config=lambda s: s.update({key: value}))(place), "-o", place / "out")
        assert outcome.code == (0 if (place / "out").exists() else 2)
        assert outcome.code == 0 or outcome.stderr.startswith("error: ")
        assert len(outcome.stderr) < 1000
        assert len(outcome.stderr.splitlines()) <= 2


@pytest.mark.parametrize("make", [llama, deepseek])
def test_straight_to_mlx_lm(make: Any, tmp_path: Path) -> None:
    """A folder of transformers becomes one of mlx-lm in one command, and is known for what it is."""
    source = make()(tmp_path)
    done("torch2mlx", source, "--to", "mlx-lm")
    made = tmp_path / f"{source.name}-mlx-lm"
    assert ": mlx-lm " in run_convert("inspect", made).stdout.splitlines()[0]
    assert "tensors are equal" in done("diff", source, made)
    assert json.loads((made / "config.json").read_text())["rope_theta"] == 1e4
