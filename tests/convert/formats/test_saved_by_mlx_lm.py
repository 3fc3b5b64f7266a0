"""Folders that mlx-lm saved itself come in: as runs they compute its own logits, and hold the bits that it was given.

mlx-lm turns what it reads into its own layout and saves that. For GPT-2 the square output projection of attention would
pass every check of shapes the wrong way round.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.convert.conftest import done, refused
from tests.convert.formats import families, nanogpt
from tests.convert.formats.continuation import TWINS, load_model, logits, relative_error
from tests.convert.formats.families import Published

# isort: split
import mlx.core as mx
import mlx_lm.utils
import numpy as np
import pytest
import transformers
from mlx.utils import tree_map_with_path
from safetensors.numpy import load_file, save_file

TOLERANCE = 5e-6
"""Relative L2 of float32 logits."""

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers|torch|mlx")]


def gpt2(folder: Path) -> Published:
    """As GPT-2's own repository has it: names without `transformer.`, and n_ctx."""
    config = transformers.GPT2Config(
        vocab_size=280, n_positions=96, n_layer=2, n_head=2, n_embd=48, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    nanogpt.randomise(model, seed=3, std=0.2)
    found = families.save(model, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({n.removeprefix("transformer."): w for n, w in weights.items()}, folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"n_ctx": 96}))
    return found


def llama(name: str) -> Callable[[Path], Published]:
    return lambda folder: families.save(families.llama(families.LLAMAS[name]), folder)


def deepseek(name: str) -> Callable[[Path], Published]:
    """With the base of the wavelengths where mlx-lm looks for it too."""

    def make(folder: Path) -> Published:
        found = families.save(families.deepseek(families.DEEPSEEKS[name]), folder)
        settings = json.loads((folder / "config.json").read_text())
        theta = settings["rope_parameters"]["rope_theta"]
        (folder / "config.json").write_text(json.dumps(settings | {"rope_theta": theta}))
        return found

    return make


DEEPSEEK = "DeepSeek-V3, as published"
LLAMAS = ("one key head", "two key heads, tied", "biases everywhere")
DEEPSEEKS = ("as published", "queries without a latent", "dense alone", "one group, biases")
MODELS: dict[str, Callable[[Path], Published]] = {
    "GPT-2": gpt2,
    **{f"Llama, {name}": llama(name) for name in LLAMAS},
    **{f"DeepSeek-V3, {name}": deepseek(name) for name in DEEPSEEKS},
}


def saved_by_mlx_lm(source: Path, folder: Path) -> Any:
    """What mlx-lm makes of a folder, saved as `mlx_lm.convert` and `mlx_lm.fuse` do."""
    model, config = mlx_lm.utils.load_model(source)
    folder.mkdir()
    mlx_lm.utils.save_model(folder, model)
    mlx_lm.utils.save_config(config, folder / "config.json")
    shutil.copy(source / "tokenizer.json", folder)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_it_computes_what_mlx_lm_computes(name: str, tmp_path: Path) -> None:
    published = MODELS[name](tmp_path / "published")
    model = saved_by_mlx_lm(tmp_path / "published", tmp_path / "saved")
    said = done("import", tmp_path / "saved", "-o", tmp_path / "run")
    assert f"from mlx-lm {name.partition(',')[0]} folder" in said
    tokens = np.random.default_rng(0).integers(0, 280, (2, 90))
    expected = {"mlx-lm": np.array(model(mx.array(tokens))), "transformers": published.logits(tokens)}
    for twin in TWINS:
        found = logits(twin, load_model(twin, tmp_path / "run"), tokens)
        for library, wanted in expected.items():
            error = relative_error(found, wanted)
            print(f"{name}: {twin} against {library} {error:.2e}")
            assert error <= TOLERANCE, (twin, library)
    # By either way the same bits come in.
    assert "tensors are equal" in done("diff", tmp_path / "published", tmp_path / "saved")


@pytest.mark.parametrize("name", ["GPT-2", DEEPSEEK])
def test_in_several_files_and_in_half_precision(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MODELS[name](tmp_path / "published")
    monkeypatch.setattr(mlx_lm.utils, "make_shards", lambda weights: [{name: w} for name, w in weights.items()])
    model, config = mlx_lm.utils.load_model(tmp_path / "published")
    is_cast = getattr(model, "cast_predicate", lambda _: True)
    half = tree_map_with_path(lambda name, w: w.astype(mx.bfloat16) if is_cast(name) else w, model.parameters())
    model.update(half)
    mlx_lm.utils.save_model(tmp_path / "saved", model)
    mlx_lm.utils.save_config(config, tmp_path / "saved" / "config.json")
    assert len(list((tmp_path / "saved").glob("model-*.safetensors"))) > 1
    done("import", tmp_path / "published", "-o", tmp_path / "one", "--dtype", "bfloat16", "--tokenizer", "none")
    done("import", tmp_path / "saved", "-o", tmp_path / "two", "--dtype", "bfloat16", "--tokenizer", "none")
    assert "tensors are equal" in done("diff", tmp_path / "one", tmp_path / "two")


def _rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    weights: dict[str, Any] = load_file(folder / "model.safetensors")
    change(weights)
    save_file(
        {name: np.ascontiguousarray(w) for name, w in weights.items()}, folder / "model.safetensors", {"format": "mlx"}
    )


def _transpose(weights: dict[str, Any]) -> None:
    weights |= {name: w.T for name, w in weights.items() if ".attn.c_" in name or ".mlp.c_" in name}


def _rename(weights: dict[str, Any]) -> None:
    weights["h.0.ln_1.weight"] = weights.pop("model.h.0.ln_1.weight")


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda weights: weights.pop(name)


def _with(name: str, change: Callable[[Any], Any], to: str = "") -> Callable[[dict[str, Any]], None]:
    return lambda weights: weights.update({to or name: change(weights[name])})


KEYS, VALUES = "model.layers.1.self_attn.embed_q.weight", "model.layers.1.self_attn.unembed_out.weight"
EXPERTS, EXPERT = "model.layers.1.mlp.switch_mlp.up_proj.weight", "model.layers.1.mlp.experts.0.up_proj.weight"
C_PROJ = "model.h.1.mlp.c_proj.weight"
DAMAGED: dict[str, tuple[str, Callable[[dict[str, Any]], None], tuple[str, ...]]] = {
    "matrices (in, out) under mlx-lm's names": ("GPT-2", _transpose, ("model.h.0.attn.c_attn.weight", "[48, 144]")),
    "a layer without its projection": ("GPT-2", _without(C_PROJ), (C_PROJ, "missing")),
    "names of two layouts": ("GPT-2", _rename, ("unexpected tensor model.h.0",)),
    "keys without values": (DEEPSEEK, _without(VALUES), (KEYS, "unembed_out")),
    "values without keys": (DEEPSEEK, _without(KEYS), ("kv_b_proj", "missing")),
    "values of another latent": (DEEPSEEK, _with(VALUES, lambda w: w[:, :, :-1]), (KEYS, "do not go together")),
    "keys that are a matrix": (DEEPSEEK, _with(KEYS, lambda w: w[0]), (KEYS, "do not go together")),
    "experts twice": (DEEPSEEK, _with(EXPERTS, lambda w: w[0], EXPERT), (EXPERTS, "remove one of the two")),
    "an expert too few": (DEEPSEEK, _with(EXPERTS, lambda w: w[1:]), ("up_proj", "[7, 24, 48]")),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_does_not_fit_is_refused_by_its_name(case: str, tmp_path: Path) -> None:
    name, change, words = DAMAGED[case]
    MODELS[name](tmp_path / "published")
    saved_by_mlx_lm(tmp_path / "published", tmp_path / "saved")
    _rewrite(tmp_path / "saved", change)
    said = refused("import", tmp_path / "saved", "-o", tmp_path / "run")
    assert all(word in said for word in words), said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()
