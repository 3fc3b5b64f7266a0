"""Models by name, from a server on this machine that answers as the hub does: what comes in, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.convert.conftest import done, refused
from tests.convert.formats import families, nanogpt
from tests.convert.formats.continuation import TWINS, load_model, logits, relative_error

# isort: split
import huggingface_hub.constants
import numpy as np
import pytest
import transformers

from gpt_common.training.checkpoint import find_checkpoint, read_manifest
from gpt_common.training.log.runlog import read_metrics
from tests.convert.hub import COMMIT, Models
from tests.hub_server import ask, ask_with_empty_cache, serving

ROOT = Path(__file__).parents[2]
TOLERANCE = 5e-6
"""Relative L2 of float32 logits."""
FAMILIES = {"gpt2": "GPT-2", "llama": "Llama", "deepseek": "DeepSeek-V3"}
GPT2: dict[str, Any] = {"vocab_size": 280, "n_positions": 96, "n_layer": 2, "n_head": 2, "n_embd": 48}

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers|torch|mlx")]


def published(kind: str, folder: Path) -> families.Published:
    """Random weights, saved by `save_pretrained` with a small tokenizer."""
    if kind == "llama":
        return families.save(families.llama(families.LLAMAS["two key heads, tied"]), folder)
    if kind == "deepseek":
        return families.save(families.deepseek(families.DEEPSEEKS["as published"]), folder)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, bos_token_id=0, eos_token_id=0)).eval()
    nanogpt.randomise(model, seed=3, std=0.2)
    return families.save(model, folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, families.Published]:
    place = tmp_path_factory.mktemp("published")
    return {kind: published(kind, place / kind) for kind in ("gpt2", "llama", "deepseek")}


@pytest.fixture
def hub(models: dict[str, families.Published], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Models]:
    """The server, asked by this process, whose cache and folder are empty."""
    with serving(Models()) as hub:
        hub.models = {f"someone/{kind}": model.folder for kind, model in models.items()}
        ask_with_empty_cache(hub.url, tmp_path / "cache", monkeypatch)
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        yield hub


def nothing_left(place: Path) -> bool:
    """No run, no part of one, and nothing in the cache that a later run would take for whole."""
    parts = [path for path in place.rglob("*") if ".tmp-" in path.name or path.name.endswith(".incomplete")]
    return not parts and not list(place.glob("here/*"))


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["gpt2", "llama", "deepseek"])
def test_a_model_comes_in_by_name(kind: str, hub: Models, models: dict[str, families.Published]) -> None:
    done("import", f"hf:someone/{kind}")
    run = Path("runs") / "hub" / f"someone--{kind}"
    tokens = np.random.default_rng(0).integers(0, 280, (2, 90))
    expected = models[kind].logits(tokens)
    for twin in TWINS:
        error = relative_error(logits(twin, load_model(twin, run), tokens), expected)
        print(f"hf:someone/{kind} -> {twin}: {error:.2e}")
        assert error <= TOLERANCE
    written_by = read_manifest(find_checkpoint(run, prefer="best")).written_by
    assert written_by is not None
    assert written_by["source"] == {
        "format": f"transformers {FAMILIES[kind]} folder",
        "repository": f"someone/{kind}",
        "revision": COMMIT,
    }
    assert (find_checkpoint(run, prefer="best") / "tokenizer.json").exists()
    assert sorted(hub.asked) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_only_what_is_not_there_is_fetched(hub: Models, tmp_path: Path) -> None:
    done("import", "hf:someone/llama@v1", "-o", tmp_path / "here" / "one")
    asked = list(hub.asked)
    done("import", f"hf:someone/llama@{COMMIT}", "-o", tmp_path / "here" / "two")
    done("export", "hf:someone/llama", "--to", "mlx-lm")
    assert hub.asked == asked
    assert (tmp_path / "here" / "someone--llama-mlx-lm" / "model.safetensors").is_file()


def test_shards_and_an_old_tokenizer(hub: Models, models: dict[str, families.Published], tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    models["gpt2"].model.save_pretrained(folder, max_shard_size="60KB")
    definition = json.loads((models["gpt2"].folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(definition["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in definition["merges"])]))
    hub.models["someone/old"] = folder
    done("import", "hf:someone/old", "-o", "old")
    done("import", "hf:someone/gpt2", "-o", "new")
    assert "tensors are equal" in done("diff", "old", "new")
    assert sum(name.startswith("model-") for name in hub.asked) > 2
    assert (find_checkpoint(Path("old"), prefer="best") / "tokenizer.json").exists()


def _described(hub: Models, folder: Path, settings: dict[str, Any]) -> None:
    """A model of which there is config.json and, should anyone ask, a large file of weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "model.safetensors").write_bytes(bytes(1000))
    hub.models["someone/else"] = folder


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_type": "mistral"}, ("hf:someone/else", "mistral", "'gpt2', 'llama' or 'deepseek_v3'")),
        ({"architectures": ["X"]}, ("hf:someone/else", "model_type None")),
        ({**families.LLAMA_SIZES, "model_type": "llama", "rope_scaling": {"rope_type": "llama3"}}, ("rope_type",)),
        ({**families.LLAMA_SIZES, "model_type": "llama", "quantization_config": {"bits": 4}}, ("quantised",)),
        ({**GPT2, "model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, ("scale_attn_by_inverse_layer_idx",)),
        ({**families.DEEPSEEK_SIZES, "model_type": "deepseek_v3", "scoring_func": "softmax"}, ("scoring_func",)),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[-1],
)
def test_refused_before_the_weights_are_fetched(
    settings: dict[str, Any], words: tuple[str, ...], hub: Models, tmp_path: Path
) -> None:
    _described(hub, tmp_path / "else", settings)
    said = refused("import", "hf:someone/else")
    assert all(word in said for word in words), said
    assert len(said.splitlines()) == 1
    assert "cache" not in said
    assert "model.safetensors" not in hub.asked
    assert nothing_left(tmp_path)


def test_a_tokenizer_that_cannot_be_read_is_refused_before_the_weights(
    hub: Models, models: dict[str, families.Published], tmp_path: Path
) -> None:
    _described(hub, tmp_path / "else", json.loads((models["llama"].folder / "config.json").read_text()))
    (tmp_path / "else" / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram", "vocab": []}}))
    said = refused("import", "hf:someone/else")
    assert "hf:someone/else/tokenizer.json is not a tokenizer that can be read" in said
    assert "--tokenizer none" in said
    assert "model.safetensors" not in hub.asked


FAULTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "unknown name": ("hf:someone/none", ("no model hf:someone/none", "check the name")),
    "unknown revision": ("hf:someone/llama@v9", ("someone/llama has no revision 'v9'",)),
    "gated": ("hf:someone/gated", ("hf:someone/gated is gated", "hf auth login")),
    "interrupted": ("hf:someone/gpt2", ("hf:someone/gpt2 could not be fetched", "try again")),
    "wrong checksum": ("hf:someone/llama", ("model.safetensors of hf:someone/llama is not what the hub says",)),
    "no weights": ("hf:someone/empty", ("hf:someone/empty has no weights that can be read",)),
    "no config": ("hf:someone/bare", ("hf:someone/bare has no config.json",)),
    "no name": ("hf:someone", ("'hf:someone' is no name of a model", "hf:OWNER/NAME")),
    "a name that no hub has": ("hf:someone/a--b", ("no model hf:someone/a--b: no hub has such a name",)),
    "too many parts": ("hf:a/b/c", ("is no name of a model",)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_and_leaves_nothing(
    fault: str, hub: Models, models: dict[str, families.Published], tmp_path: Path
) -> None:
    source, words = FAULTS[fault]
    for name, files in {"empty": ["config.json"], "bare": ["model.safetensors"]}.items():
        hub.models[f"someone/{name}"] = tmp_path / name
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_bytes((models["llama"].folder / file).read_bytes())
    hub.models["someone/gated"] = models["llama"].folder
    hub.gated.add("someone/gated")
    if fault == "interrupted":
        hub.cut.add("model.safetensors")
    if fault == "wrong checksum":
        hub.forged.add("model.safetensors")
    said = refused("import", source)
    assert all(word in said for word in words), said
    assert len(said.splitlines()) == 1
    assert nothing_left(tmp_path)
    # What broke off or was forged is fetched again, as if nothing had been.
    if fault in ("interrupted", "wrong checksum"):
        hub.cut.clear()
        hub.forged.clear()
        done("import", source)


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ('{"a": "model-1.safetensors"}', f"has no model-1.safetensors, which its {INDEX} lists"),
        ('{"a": ["model-1.safetensors"]}', f"{INDEX} of hf:someone/else does not say which files hold the weights"),
        ('{"a": "../model-1.safetensors"}', f"{INDEX} of hf:someone/else does not say which files hold the weights"),
        ("{}", f"{INDEX} of hf:someone/else does not say which files hold the weights"),
        ('{"a": "b", "a": "c"}', f"{INDEX} of hf:someone/else cannot be read: 'a' stands in it twice"),
        ('{"a": ', f"{INDEX} of hf:someone/else cannot be read"),
    ],
)
def test_an_index_that_does_not_lead_to_weights(
    listed: str, words: str, hub: Models, models: dict[str, families.Published], tmp_path: Path
) -> None:
    _described(hub, tmp_path / "else", json.loads((models["gpt2"].folder / "config.json").read_text()))
    (tmp_path / "else" / "model.safetensors").rename(tmp_path / "else" / "other")
    (tmp_path / "else" / INDEX).write_text(f'{{"weight_map": {listed}}}')
    said = refused("import", "hf:someone/else", "--tokenizer", "none")
    assert words in said
    assert len(said.splitlines()) == 1
    assert nothing_left(tmp_path)


def test_offline(hub: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done("import", "hf:someone/llama", "-o", "before")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    asked = list(hub.asked)
    done("import", "hf:someone/llama", "-o", "after")
    assert hub.asked == asked
    said = refused("import", "hf:someone/gpt2", "-o", "new")
    assert "hf:someone/gpt2 is not in the cache, and HF_HUB_OFFLINE forbids to fetch it" in said
    assert len(said.splitlines()) == 1
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["after", "before"]


def test_only_a_part_is_in_the_cache(hub: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.cut.add("model.safetensors")
    refused("import", "hf:someone/llama")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "the whole of hf:someone/llama is not in the cache, and HF_HUB_OFFLINE" in refused(
        "import", "hf:someone/llama"
    )


@pytest.mark.usefixtures("hub")
def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask("http://127.0.0.1:9", monkeypatch)
    said = refused("import", "hf:someone/llama")
    assert "hf:someone/llama is not in the cache, and the hub cannot be reached" in said
    assert len(said.splitlines()) == 1
    assert nothing_left(tmp_path)


def test_a_destination_that_is_taken_is_said_before_anything_is_fetched(hub: Models) -> None:
    done("import", "hf:someone/llama")
    asked = list(hub.asked)
    assert "--overwrite" in refused("import", "hf:someone/llama")
    assert hub.asked == asked


def test_a_name_may_stand_wherever_a_run_may(hub: Models, tmp_path: Path) -> None:
    """`sample` and `--init-from`, in processes that know the hub by its environment variables alone."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", *words]
        return subprocess.run(
            command, cwd=tmp_path / "here", env=environment, capture_output=True, text=True, check=False
        )

    flags = ("--prompt", "The dog", "--max-new-tokens", "5", "--device", "cpu")
    texts = []
    for twin in ("torch_gpt", "mlx_gpt"):
        ended = run(f"{twin}.sample", "hf:someone/gpt2", "--temperature", "0", *flags)
        assert ended.returncode == 0, ended.stderr
        texts.append(ended.stdout)
        assert ("bringing in hf:someone/gpt2, once" in ended.stderr) == (twin == "torch_gpt")
    assert texts[0] == texts[1]
    ended = run("torch_gpt.sample", "hf:someone/none", *flags)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[1:] == [
        "error: no model hf:someone/none: check the name; a private one needs `hf auth login` or HF_TOKEN"
    ]
    assert [path.name for path in (tmp_path / "here").glob("runs/hub/*")] == ["someone--gpt2"]

    (tmp_path / "here" / "t.txt").write_text(families.TEXT * 10)
    prepared = ("--text", "t.txt", "--name", "t", "--tokenizer", "runs/hub/someone--gpt2")
    assert run("gpt_common.data", "prepare", *prepared).returncode == 0
    training = (
        "--dataset",
        "t",
        "--max-steps",
        "2",
        "--dropout",
        "0",
        "--batch-size",
        "2",
        "--eval-batches",
        "1",
        "--health-gates",
        "off",
        "--device",
        "cpu",
    )
    losses = []
    for twin in ("torch_gpt", "mlx_gpt"):
        ended = run(f"{twin}.train", "--init-from", "hf:someone/gpt2", "--out", twin, *training)
        assert ended.returncode == 0, ended.stderr
        losses.append([row["loss"] for row in read_metrics(tmp_path / "here" / twin) if "loss" in row])
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    ended = run("torch_gpt.train", "--init-from", "hf:someone/none", "--out", "none", *training)
    assert ended.returncode == 2
    assert [line.partition(":")[0] for line in ended.stderr.splitlines()] == ["bringing in hf", "error"]
    assert not (tmp_path / "here" / "none").exists()
