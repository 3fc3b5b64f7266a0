"""Nothing changes on the way: every format that can hold the values gives back the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import convert.formats.names
import convert.storage.safetensors_file
import convert.storage.tensors
import convert.storage.torch_file
from gpt_common.config import RunConfig, to_dict, to_toml
from gpt_common.training.checkpoint import find_checkpoint, read_manifest
from gpt_common.training.manifest import MODEL_FILE, OPTIMIZER_FILE, tensor_hashes
from tests.convert.conftest import done, run_convert
from tests.convert.sources import (
    MODEL,
    Model,
    deepseeks,
    folder,
    gpt2_name,
    llamas,
    models,
    nanogpt_entries,
    raw,
)

EXAMPLES = settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PREFIXES = ("", "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 7 elements, so that small tensors have many, the last one short."""
    for module in (convert.storage.tensors, convert.storage.torch_file, convert.storage.safetensors_file):
        monkeypatch.setattr(module, "BLOCK", 7)


def assert_native(run: Path, weights: dict[str, torch.Tensor], moments: dict[str, torch.Tensor]) -> None:
    """The run's checkpoint is valid and holds exactly these bits."""
    checkpoint = find_checkpoint(run, prefer="best")
    # Any bits, so NaN too, which `validate` refuses.
    recorded = read_manifest(checkpoint).tensors
    assert {file: tensor_hashes(checkpoint / file) for file in recorded} == recorded
    found = load_file(checkpoint / MODEL_FILE)
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert raw(found[name]) == raw(tensor), name
    assert (checkpoint / OPTIMIZER_FILE).exists() == bool(moments)
    for name, tensor in load_file(checkpoint / OPTIMIZER_FILE).items() if moments else ():
        assert raw(tensor) == raw(moments[name]), name


def native(model: Model, place: Path) -> Path:
    """A native run with the model's bits, by way of a nanoGPT file or a state dict, whichever can hold it."""
    source = place / "source.pt"
    if model.config.norm == "rmsnorm":
        torch.save(model.weights(), source)
        (place / "model.toml").write_text(to_toml(RunConfig(model=model.config)))
        done("torch2mlx", source, "-o", place / "run", "--config", place / "model.toml")
    elif model.config.tied_head and model.config.feed_forward == "gelu":
        torch.save(nanogpt_entries(model), source)
        done("torch2mlx", source, "-o", place / "run")
    else:
        torch.save(model.weights(), source)
        (place / "model.toml").write_text(model_toml(model))
        done("torch2mlx", source, "-o", place / "run", "--config", place / "model.toml")
    return place / "run"


def model_toml(model: Model) -> str:
    """What no shape tells."""
    config = model.config
    # An untied head that happens to equal the embedding is only kept if the file says so.
    said = {"n_head": config.n_head, "dropout": config.dropout, "tied_head": str(config.tied_head).lower()}
    lines = [f"{key} = {value}" for key, value in said.items()]
    return "\n".join(["[model]", f'feed_forward = "{config.feed_forward}"', *lines])


@EXAMPLES
@given(models(tied_head=True, feed_forward="gelu"), st.sampled_from(PREFIXES))
def test_nanogpt(model: Model, prefix: str) -> None:
    with folder() as place:
        torch.save(nanogpt_entries(model, prefix), place / "ckpt.pt")
        done("torch2mlx", place / "ckpt.pt", "-o", place / "run")
        assert_native(place / "run", model.weights(), model.all_moments())
        manifest = read_manifest(find_checkpoint(place / "run", prefer="latest"))
        assert (manifest.step, manifest.best_val_loss) == (model.step, 1.5)
        config = manifest.run_config
        assert config.model == model.config
        assert (config.optim.beta2, config.optim.learning_rate, config.train.max_steps) == (0.95, 6e-4, 5000)

        done("mlx2torch", place / "run", "-o", place / "back")
        back = torch.load(place / "back" / "ckpt.pt", weights_only=True)
        expected = nanogpt_entries(model)
        assert back["model"].keys() == expected["model"].keys()
        for name, tensor in expected["model"].items():
            assert raw(back["model"][name]) == raw(tensor), name
        assert back["model_args"] == expected["model_args"]
        assert back["optimizer"]["state"].keys() == expected["optimizer"]["state"].keys()
        for index, entry in expected["optimizer"]["state"].items():
            for key, tensor in entry.items():
                assert raw(back["optimizer"]["state"][index][key]) == raw(tensor), (index, key)
        for group, wanted in zip(back["optimizer"]["param_groups"], expected["optimizer"]["param_groups"], strict=True):
            assert {**group, "lr": None} == {**wanted, "lr": None}

        # Converting twice equals converting once, to the last byte of the file.
        done("torch2mlx", place / "back", "-o", place / "run 2")
        done("mlx2torch", place / "run 2", "-o", place / "back 2")
        assert (place / "back 2" / "ckpt.pt").read_bytes() == (place / "back" / "ckpt.pt").read_bytes()
        assert done("diff", place / "ckpt.pt", place / "run 2")


GPT2_FOLDERS = {
    "transformers": models(head_bias=False),
    "mlx-lm": models(tied_head=True, feed_forward="gelu_tanh"),
}
FOLDERS = {
    "Llama in transformers": ("transformers", llamas()),
    "Llama in mlx-lm": ("mlx-lm", llamas()),
    "DeepSeek-V3 in transformers": ("transformers", deepseeks()),
    "DeepSeek-V3 in mlx-lm": ("mlx-lm", deepseeks(rope_layout="interleaved", experts_per_token=2)),
}


@pytest.mark.parametrize("to", GPT2_FOLDERS)
@EXAMPLES
@given(data=st.data())
def test_gpt2_folders(to: str, data: st.DataObject) -> None:
    there_and_back(data.draw(GPT2_FOLDERS[to]), to)


@pytest.mark.parametrize("kind", FOLDERS)
@settings(EXAMPLES, max_examples=12)
@given(data=st.data())
def test_folders_of_other_families(kind: str, data: st.DataObject) -> None:
    to, some = FOLDERS[kind]
    there_and_back(data.draw(some), to)


def there_and_back(model: Model, to: str) -> None:
    """A run into a library's folder, back, and into a folder again: the same bits, settings and files."""
    with folder() as place:
        run = native(model, place)
        done("mlx2torch", run, "-o", place / "out", "--to", to)
        done("torch2mlx", place / "out", "-o", place / "run 2")
        assert_native(place / "run 2", model.weights(), {})
        config = read_manifest(find_checkpoint(place / "run 2", prefer="latest")).run_config
        assert config.model == model.config
        done("mlx2torch", place / "run 2", "-o", place / "out 2", "--to", to)
        for file in ("model.safetensors", "config.json"):
            assert (place / "out 2" / file).read_bytes() == (place / "out" / file).read_bytes(), file


@EXAMPLES
@given(models(), st.sampled_from(PREFIXES), st.sampled_from(["ours", "gpt2"]), st.sampled_from(["pt", "safetensors"]))
def test_bare_state_dicts(model: Model, prefix: str, names: str, kind: str) -> None:
    rename = gpt2_name if names == "gpt2" else str
    weights = {prefix + rename(name): tensor for name, tensor in model.weights().items()}
    with folder() as place:
        source = place / f"weights.{kind}"
        torch.save(weights, source) if kind == "pt" else save_file(weights, source)
        (place / "model.toml").write_text(model_toml(model))
        done("torch2mlx", source, "-o", place / "run", "--config", place / "model.toml")
        assert_native(place / "run", model.weights(), {})
        config = read_manifest(find_checkpoint(place / "run", prefer="latest")).run_config
        assert config.model == model.config


@EXAMPLES
@given(models(tied_head=True, feed_forward="gelu"), st.data())
def test_views(model: Model, data: st.DataObject) -> None:
    """Transposed, sliced and shared storages mean the values that PyTorch sees."""
    entries = nanogpt_entries(model)
    for name, tensor in entries["model"].items():
        kind = data.draw(st.sampled_from(["plain", "transposed", "slice", "shared", "strided"]))
        if kind == "transposed" and tensor.dim() == 2:
            entries["model"][name] = tensor.t().contiguous().t()
        if kind == "slice":
            entries["model"][name] = torch.cat([tensor, tensor])[tensor.shape[0] :]
        if kind == "shared":
            entries["model"][name], entries[f"more {name}"] = (both := torch.stack([tensor, tensor]))[0], both
        if kind == "strided":
            entries["model"][name] = torch.stack([tensor, tensor], dim=-1)[..., 1]
    entries["model"]["lm_head.weight"] = entries["model"]["transformer.wte.weight"]
    with folder() as place:
        torch.save(entries, place / "ckpt.pt")
        done("torch2mlx", place / "ckpt.pt", "-o", place / "run")
        assert_native(place / "run", model.weights(), model.all_moments())


def test_shards_and_pickled_folders_are_the_same(tmp_path: Path) -> None:
    model = MODEL
    run = native(model, tmp_path)
    done("mlx2torch", run, "-o", tmp_path / "one", "--to", "transformers")
    tensors = load_file(tmp_path / "one" / "model.safetensors")
    names = sorted(tensors)
    for kind in ("safetensors", "bin"):
        place = tmp_path / kind
        place.mkdir()
        (place / "config.json").write_bytes((tmp_path / "one" / "config.json").read_bytes())
        stem = "model" if kind == "safetensors" else "pytorch_model"
        save = save_file if kind == "safetensors" else torch.save
        shards = {f"{stem}-{i}-of-3.{kind}": names[i::3] for i in range(3)}
        for file, held in shards.items():
            save({name: tensors[name] for name in held}, place / file)
        index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
        (place / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
        assert "tensors are equal" in done("diff", place, run)


def test_mask_buffers_and_copied_heads_are_left_out_aloud(tmp_path: Path) -> None:
    model = MODEL
    entries = nanogpt_entries(model)
    for i in range(model.config.n_layer):
        entries["model"][f"transformer.h.{i}.attn.bias"] = torch.ones(4, 4).tril().view(1, 1, 4, 4)
        entries["model"][f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    entries["model"]["lm_head.weight"] = entries["model"]["lm_head.weight"].clone()
    torch.save(entries, tmp_path / "ckpt.pt")
    said = done("torch2mlx", tmp_path / "ckpt.pt", "-o", tmp_path / "run")
    assert f"{2 * model.config.n_layer} causal mask buffers left out" in said
    assert_native(tmp_path / "run", model.weights(), model.all_moments())


class TestOfTheTest:
    """One wrong bit, one wrong transpose and one wrong order are seen."""

    def test_a_bit(self, tmp_path: Path) -> None:
        model = MODEL
        run = native(model, tmp_path)
        weights = model.weights()
        weights["final_norm.bias"] = weights["final_norm.bias"].clone()
        weights["final_norm.bias"].view(torch.int32)[3] ^= 1
        with pytest.raises(AssertionError, match=r"final_norm\.bias"):
            assert_native(run, weights, model.all_moments())

    def test_a_transpose(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from convert.formats import transformers_gpt2

        run = native(MODEL, tmp_path)
        done("mlx2torch", run, "-o", tmp_path / "out", "--to", "transformers")
        # out_proj is square: only its bits can tell.
        monkeypatch.setattr(transformers_gpt2, "CONV1D", ("qkv_proj.weight", "up_proj.weight", "down_proj.weight"))
        done("torch2mlx", tmp_path / "out", "-o", tmp_path / "run 2")
        with pytest.raises(AssertionError, match="out_proj"):
            assert_native(tmp_path / "run 2", MODEL.weights(), {})

    def test_the_order_of_moments(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from convert.formats import nanogpt

        model = MODEL
        groups = nanogpt._groups
        torch.save(nanogpt_entries(model), tmp_path / "ckpt.pt")
        monkeypatch.setattr(nanogpt, "_groups", lambda m: (groups(m)[0], sorted(groups(m)[1])))
        outcome = run_convert("torch2mlx", tmp_path / "ckpt.pt", "-o", tmp_path / "run")
        if outcome.code == 0:
            with pytest.raises(AssertionError, match="exp_avg"):
                assert_native(tmp_path / "run", model.weights(), model.all_moments())


def test_configuration_survives_the_native_format(tmp_path: Path) -> None:
    run = native(MODEL, tmp_path)
    from gpt_common.config import load_toml

    assert to_dict(load_toml(run / "config.toml")) == read_manifest(find_checkpoint(run, prefer="best")).config
