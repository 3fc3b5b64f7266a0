"""An adapter computes the same in peft, in both twins and in mlx-lm, and comes back from each bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from convert.__main__ import main
from gpt_common.errors import UserError
from tests.convert.adapters.judges import CASES, FAMILIES, TOKENS, Case, adapted, base_run, mlx_lm_logits, peft_logits
from tests.twins.adapting.test_adapters import apart

pytest.importorskip("peft")
pytestmark = [
    pytest.mark.parity,
    # peft 0.21 asks transformers 5 by a name that is to go, and says so where an embedding is saved whole.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
Bases = Callable[[str], Path]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """A folder for every family: base, a run; hf and mlx, the same for transformers and mlx-lm."""
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            base_run(family, made[family])
        return made[family]

    return of


def twins(run: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Logits of a run, in both twins."""
    import mlx.core as mx
    import torch

    from gpt_common.training.checkpoint import find_checkpoint, read_manifest
    from mlx_gpt.checkpoint import build_model as mlx_model
    from torch_gpt.checkpoint import build_model as torch_model

    checkpoint = find_checkpoint(run, prefer="best")
    model = read_manifest(checkpoint).run_config.model
    with torch.no_grad():
        found = {"torch": torch_model(checkpoint, model, torch.float32)(torch.from_numpy(TOKENS).long()).numpy()}
    with mx.stream(mx.cpu):
        return found | {"mlx": np.array(mlx_model(checkpoint, model, mx.float32)(mx.array(TOKENS)))}


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    (file,) = folder.rglob("*adapter*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_peft_the_twins_and_mlx_lm_agree(case: Case, bases: Bases, tmp_path: Path) -> None:
    folder = bases(case.family)
    adapted(case, folder / "hf", tmp_path / "peft")
    expected = peft_logits(folder / "hf", tmp_path / "peft")
    main(["import", str(tmp_path / "peft"), "--base", str(folder / "base"), "-o", str(tmp_path / "run")])
    for twin, logits in twins(tmp_path / "run").items():
        assert apart(logits, expected) <= 2e-6, twin
    plain = twins(folder / "base")["torch"]
    assert apart(expected, plain) > 1e-2, "the adapter does something"

    main(["export", str(tmp_path / "run"), "--to", "peft", "-o", str(tmp_path / "again")])
    first, again = tensors(tmp_path / "peft"), tensors(tmp_path / "again")
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert apart(peft_logits(folder / "hf", tmp_path / "again"), expected) == 0

    main(["fuse", str(tmp_path / "run"), "-o", str(tmp_path / "fused")])
    for twin, logits in twins(tmp_path / "fused").items():
        assert apart(logits, expected) <= 2e-6, twin

    if not case.for_mlx_lm:
        with pytest.raises(UserError, match="mlx-lm has n"):
            main(["export", str(tmp_path / "run"), "--to", "mlx-lm", "-o", str(tmp_path / "mlx")])
        return
    main(["export", str(tmp_path / "run"), "--to", "mlx-lm", "-o", str(tmp_path / "mlx")])
    assert apart(mlx_lm_logits(folder / "mlx", tmp_path / "mlx"), expected) <= 2e-6
    main(["import", str(tmp_path / "mlx"), "--base", str(folder / "base"), "-o", str(tmp_path / "back")])
    main(["export", str(tmp_path / "back"), "--to", "mlx-lm", "-o", str(tmp_path / "once more")])
    first, again = tensors(tmp_path / "mlx"), tensors(tmp_path / "once more")
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    for twin, logits in twins(tmp_path / "back").items():
        assert apart(logits, expected) <= 2e-6, twin


def saved_whole(folder: Path, **tables: npt.NDArray[np.float32]) -> None:
    """An adapter of peft's with whole tables beside it, by transformers' names."""
    from safetensors.numpy import save_file

    paths = {"wte": "transformer.wte", "lm_head": "lm_head"}
    whole = {f"base_model.model.{paths[name]}.weight": value for name, value in tables.items()}
    save_file({**tensors(folder), **whole}, folder / "adapter_model.safetensors")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"modules_to_save": [*tables]}))


def test_an_embedding_that_is_the_head_is_both_in_peft(bases: Bases, tmp_path: Path) -> None:
    folder = bases("gpt2")
    adapted(next(case for case in CASES if case.name == "gpt2-lora"), folder / "hf", tmp_path / "peft")
    table = np.random.default_rng(3).standard_normal((40, 32), np.float32) * np.float32(0.1)
    saved_whole(tmp_path / "peft", wte=table, lm_head=table.copy())
    expected = peft_logits(folder / "hf", tmp_path / "peft")
    main(["import", str(tmp_path / "peft"), "--base", str(folder / "base"), "-o", str(tmp_path / "run")])
    for twin, logits in twins(tmp_path / "run").items():
        assert apart(logits, expected) <= 2e-6, twin
    main(["export", str(tmp_path / "run"), "--to", "peft", "-o", str(tmp_path / "again")])
    assert apart(peft_logits(folder / "hf", tmp_path / "again"), expected) == 0
    assert all(
        np.array_equal(value, tensors(tmp_path / "again")[name]) for name, value in tensors(tmp_path / "peft").items()
    )


@pytest.mark.parametrize("what", ["wte", "lm_head", "both"])
def test_an_embedding_that_peft_trained_apart_from_its_head_is_refused(what: str, bases: Bases, tmp_path: Path) -> None:
    folder, table = bases("gpt2"), np.ones((40, 32), np.float32)
    adapted(next(case for case in CASES if case.name == "gpt2-lora"), folder / "hf", tmp_path / "peft")
    saved_whole(tmp_path / "peft", **({"wte": table, "lm_head": 2 * table} if what == "both" else {what: table}))
    with pytest.raises(UserError, match="trained them apart"):
        main(["import", str(tmp_path / "peft"), "--base", str(folder / "base"), "-o", str(tmp_path / "run")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["peft"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "no kind": ({"peft_type": None}, "peft_type"),
    "a list for a kind": ({"peft_type": ["LORA"]}, "peft_type"),
    "biases": ({"bias": "all"}, "bias is 'all'"),
    "biases of B": ({"lora_bias": True}, "lora_bias"),
    "activated": ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    "qalora": ({"use_qalora": True}, "use_qalora"),
    "layers twice": ({"layer_replication": [[0, 1]]}, "layer_replication"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    "parameters": ({"target_parameters": ["experts"]}, "target_parameters"),
    "another base": ({"init_lora_weights": "pissa"}, "pissa"),
    "alpha below 0": ({"lora_alpha": -1}, "lora_alpha is -1"),
    "alpha is a text": ({"lora_alpha": "16"}, "lora_alpha"),
    "alpha is none": ({"lora_alpha": 0}, "adapter_alpha"),
    "rank of another file": ({"r": 5}, "its rank is 5"),
    "rank is a fraction": ({"r": 4.5}, "r is 4.5"),
    "rank is huge": ({"r": 1 << 40}, "r is"),
    "a regular expression": ({"alpha_pattern": {"(a+)+$": 3}}, "no regular expressions"),
    "a pattern is a list": ({"rank_pattern": [1]}, "rank_pattern"),
    "dropout below 0": ({"lora_dropout": -0.5}, "lora_dropout"),
    "DoRA without lengths": ({"use_dora": True}, "has no magnitude"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_held_is_refused_by_name(what: str, bases: Bases, tmp_path: Path) -> None:
    folder, (changes, said) = bases("llama"), REFUSED[what]
    adapted(CASES[0], folder / "hf", tmp_path / "peft")
    path = tmp_path / "peft" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError) as error:
        main(["import", str(tmp_path / "peft"), "--base", str(folder / "base"), "-o", str(tmp_path / "run")])
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["peft"], "nothing is left"


def damaged(kind: str, found: dict[str, Any]) -> dict[str, Any]:
    a = next(name for name in found if "lora_A" in name)
    if kind == "NaN":
        return found | {a: found[a] * np.float32("nan")}
    if kind == "swapped":
        return found | {a: np.ascontiguousarray(found[a].T)}
    if kind == "unknown layer":
        return {name.replace("q_proj", "q_porj"): value for name, value in found.items()}
    if kind == "no B":
        return {name: value for name, value in found.items() if name != a.replace("lora_A", "lora_B")}
    return {}


@pytest.mark.parametrize("kind", ["NaN", "swapped", "unknown layer", "no B", "nothing"])
def test_a_damaged_adapter_is_refused(kind: str, bases: Bases, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = bases("llama")
    adapted(CASES[0], folder / "hf", tmp_path / "peft")
    save_file(damaged(kind, tensors(tmp_path / "peft")), tmp_path / "peft" / "adapter_model.safetensors")
    with pytest.raises(UserError) as error:
        main(["import", str(tmp_path / "peft"), "--base", str(folder / "base"), "-o", str(tmp_path / "run")])
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["peft"]


def test_a_pickle_is_not_read_and_a_base_is_asked_for(bases: Bases, tmp_path: Path) -> None:
    folder = bases("llama")
    adapted(CASES[0], folder / "hf", tmp_path / "peft")
    with pytest.raises(UserError, match="--base"):
        main(["import", str(tmp_path / "peft"), "-o", str(tmp_path / "run")])
    (tmp_path / "peft" / "adapter_model.safetensors").rename(tmp_path / "peft" / "adapter_model.bin")
    with pytest.raises(UserError, match="a pickle is not read"):
        main(["import", str(tmp_path / "peft"), "--base", str(folder / "base"), "-o", str(tmp_path / "run")])
    with pytest.raises(UserError, match="nothing to merge"):
        main(["fuse", str(folder / "base"), "-o", str(tmp_path / "run")])
    with pytest.raises(UserError, match="peft holds nothing else"):
        main(["export", str(folder / "base"), "--to", "peft", "-o", str(tmp_path / "run")])


def test_every_family_is_judged() -> None:
    assert {case.family for case in CASES} == set(FAMILIES)
