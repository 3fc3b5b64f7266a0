"""Adapters from strangers: each refused in a line that names what is wrong, with nothing left and nothing run."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert.__main__ import main
from convert.adapters.adapter import Adapter
from convert.adapters.exchange import LIBRARIES
from convert.contents import Contents
from convert.formats import native
from convert.options import WriteOptions
from convert.storage.tensors import from_array
from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.adapting.placement import adapter_shapes
from gpt_common.config import ModelConfig, RunConfig
from gpt_common.errors import UserError
from gpt_common.keyed import keyed_generator
from gpt_common.network.parameters import parameter_shapes, tensor_shapes
from tests.convert.adapters.judges import LLAMA, SIZE

MODEL = ModelConfig(**SIZE, **LLAMA)
ADAPTER = AdapterConfig(adapter="lora", adapter_rank=4, adapter_targets=("q_proj", "up_proj"))
CANARY = "CANARY"


class Attack:
    """Leaves the canary where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (CANARY,)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of random weights."""
    folder = tmp_path_factory.mktemp("base")
    tensors = {name: from_array(value, "F32") for name, value in drawn(tensor_shapes(MODEL)).items()}
    native.write(Contents(path=folder, config=RunConfig(model=MODEL), tensors=tensors), folder / "run", WriteOptions())
    return folder / "run"


def drawn(shapes: Any) -> dict[str, Any]:
    return {name: keyed_generator(5, name).standard_normal(shape, np.float32) for name, shape in shapes.items()}


def written(library: str, folder: Path) -> Path:
    """A sound adapter for the base."""
    tensors = drawn(adapter_shapes(parameter_shapes(MODEL), ADAPTER))
    LIBRARIES[library].write(Adapter(model=MODEL, config=ADAPTER, tensors=tensors), folder / "theirs", "base")
    return folder / "theirs"


def settings(**changes: Any) -> Callable[[Path], Any]:
    """With other entries in the configuration; of mlx-lm's lora_parameters those that stand there."""

    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        found = json.loads(path.read_text())
        inner = found.get("lora_parameters", {})
        for key, value in changes.items():
            (inner if key in inner else found)[key] = value
        path.write_text(json.dumps(found))

    return change


def configured(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "adapter_config.json").write_text(text)


def weights(change: Callable[[str, Any], Any]) -> Callable[[Path], Any]:
    """With every tensor as `change` makes it of its name and value; None leaves it out."""

    def rewrite(folder: Path) -> None:
        (path,) = folder.glob("*.safetensors")
        found = {name: change(name, value) for name, value in load_file(path).items()}
        save_file({name: np.ascontiguousarray(value) for name, value in found.items() if value is not None}, path)

    return rewrite


def pickled(file: str) -> Callable[[Path], Any]:
    """Its tensors in a pickle of this name, which attacks."""

    def change(folder: Path) -> None:
        (path,) = folder.glob("*.safetensors")
        path.unlink()
        (folder / file).write_bytes(pickle.dumps(Attack()))

    return change


def archived(folder: Path) -> None:
    """Its tensors in an archive of numpy with an object, which attacks."""
    (folder / "adapters.safetensors").unlink()
    np.savez(folder / "adapters.npz", a=np.array([Attack()], object))


HOSTILE: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "no JSON": ("peft", configured("{"), "cannot be read"),
    "a list": ("peft", configured("[]"), "not an object"),
    "nested deeply": ("peft", configured("[" * 200_000), "cannot be read"),
    "alpha is NaN": ("peft", configured('{"peft_type": "LORA", "r": 4, "lora_alpha": NaN}'), "lora_alpha is nan"),
    "alpha is endless": ("peft", configured('{"peft_type": "LORA", "r": 4, "lora_alpha": 1e999}'), "lora_alpha is inf"),
    "no rank": ("peft", settings(r=0), "its rank is 0"),
    "a rank below 0": ("peft", settings(r=-4), "r is -4"),
    "targets of another layer": (
        "peft",
        settings(target_modules=["q_proj"]),
        "does not name model.layers.0.mlp",
    ),
    "targets that are letters": ("peft", settings(target_modules=["_proj"]), "target_modules does not name"),
    "targets that are a number": ("peft", settings(target_modules=7), "target_modules is 7"),
    "targets that are numbers": ("peft", settings(target_modules=[1, 2]), "target_modules is"),
    "a pattern of NaN": ("peft", settings(alpha_pattern={"q_proj": float("nan")}), "q_proj is nan"),
    "tensors of whole numbers": ("peft", weights(lambda _, value: value.astype(np.int64)), "is I64"),
    "tensors without a dimension": ("peft", weights(lambda _, value: value.reshape(-1)[0]), "has shape ["),
    "tensors of one more": ("peft", weights(lambda _, value: value[None]), "has shape [1, 4, 32]"),
    "tensors of nothing": ("peft", weights(lambda _, value: value[:0]), "has shape [0, 32]"),
    "tensors of another width": ("peft", weights(lambda _, value: np.repeat(value, 2, axis=1)), "the base asks for"),
    "a pickle in their place": ("peft", pickled("adapter_model.bin"), "a pickle is not read"),
    "a pickle by their name": ("peft", pickled("adapter_model.safetensors"), "adapter_model.safetensors"),
    "another kind, mlx-lm": ("mlx-lm", settings(fine_tune_type="full"), "plain weights"),
    "a kind that is a list": ("mlx-lm", settings(fine_tune_type=["lora"]), "fine_tune_type is a list"),
    "a scale below 0": ("mlx-lm", settings(scale=-20.0), "scale is -20.0"),
    "a scale of 0": ("mlx-lm", settings(scale=0), "adapter_alpha"),
    "a scale that is text": ("mlx-lm", settings(scale="20"), "scale is '20'"),
    "a dropout of all": ("mlx-lm", settings(dropout=1.0), "adapter_dropout"),
    "parameters that are a list": ("mlx-lm", settings(lora_parameters=[1]), "lora_parameters is a list"),
    "both matrices swapped": ("mlx-lm", weights(lambda _, value: value.T), "belongs|has shape|asks for"),
    "tensors without a dimension, mlx-lm": ("mlx-lm", weights(lambda _, value: value.reshape(-1)[0]), "has shape"),
    "one of NaN": ("mlx-lm", weights(lambda _, value: value * np.float32("nan")), "NaN or infinity"),
    "no A": (
        "mlx-lm",
        weights(lambda name, value: None if name.endswith("lora_a") else value),
        "holds no adapter",
    ),
    "a pickle by mlx-lm's name": ("mlx-lm", pickled("adapters.safetensors"), "adapters.safetensors"),
    "an archive with a pickle": ("mlx-lm", archived, "an archive of numpy is not read"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_it_is_refused_in_a_line_with_nothing_left_and_nothing_run(
    what: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, spoil, said = HOSTILE[what]
    monkeypatch.chdir(tmp_path)
    source = written(library, tmp_path)
    spoil(source)
    with pytest.raises(UserError) as error:
        main(["import", str(source), "--base", str(base), "-o", "run"])
    message = str(error.value)
    assert any(words in message for words in said.split("|")), message
    assert "\n" not in message
    assert len(message) < 500
    assert "theirs" in message, "the file is named"
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_they_are_made_of_is_sound(library: str, base: Path, tmp_path: Path) -> None:
    main(["import", str(written(library, tmp_path)), "--base", str(base), "-o", str(tmp_path / "run")])
    found = load_file(next((tmp_path / "run").rglob("model.safetensors")))
    expected = drawn(adapter_shapes(parameter_shapes(MODEL), ADAPTER))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], value) for name, value in expected.items())


def test_the_pickles_would_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Attack()))
    Path(CANARY).rmdir()
    archive = written("mlx-lm", tmp_path) / "adapters.npz"
    archived(archive.parent)
    assert not Path(CANARY).exists()
    np.load(archive, allow_pickle=True)["a"]
    assert Path(CANARY).is_dir()
