"""Runs in a few bits: the command, mlx-lm's folders in and out, and the fuse that keeps a grid."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.formats import native
from convert.options import ReadOptions
from gpt_common.commands import SampleSettings
from gpt_common.config import TrainConfig
from gpt_common.errors import UserError
from gpt_common.runs import main as runs_command
from gpt_common.training.checkpoint import find_checkpoint, read_manifest
from gpt_common.training.manifest import MODEL_FILE
from tests.convert.adapters.judges import SIZE, TOKENS, base_run
from tests.convert.conftest import done, refused, run_convert
from tests.twins import TWINS, train

WIDE: dict[str, Any] = SIZE | {"n_embd": 64}
FAMILIES = ("llama", "gpt2")
MLX_LM = 2e-6
"""Relative L2 between logits of a twin and of mlx-lm for the same words."""


@pytest.fixture(scope="module", params=FAMILIES)
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of random weights, for transformers and mlx-lm too."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    base_run(request.param, folder, n_embd=64)
    return folder


def model_file(run: Path) -> Path:
    return find_checkpoint(run, prefer="best") / MODEL_FILE


def built(twin: str, run: Path) -> Any:
    """A twin's model of a run."""
    device, checkpoint = import_module(f"{twin}.device"), find_checkpoint(run, prefer="best")
    dtype = device.compute_dtype(TrainConfig(dtype="float32"), device.select_device("cpu"))
    build = import_module(f"{twin}.checkpoint").build_model
    return build(checkpoint, read_manifest(checkpoint).run_config.model, dtype)


def logits_of(twin: str, run: Path, tokens: Any) -> Any:
    return import_module(f"{twin}.probe").TrainingProbe(built(twin, run)).logits(tokens)


def mlx_tensors(folder: Path) -> dict[str, Any]:
    import mlx.core as mx

    found = mx.load(str(folder / "model.safetensors"))
    assert isinstance(found, dict)
    return {
        name: (value.dtype, np.array(value.astype(mx.float32) if value.dtype == mx.bfloat16 else value))
        for name, value in found.items()
    }


@pytest.mark.parametrize(("bits", "group", "dtype"), [(4, 64, "float32"), (3, 32, "bfloat16"), (8, 64, "float16")])
def test_a_folder_is_what_mlx_lm_makes(folders: Path, tmp_path: Path, bits: int, group: int, dtype: str) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model, quantize_model

    network, config = load_model(folders / "mlx")
    network.set_dtype(getattr(mx, dtype))
    quantised, settings = quantize_model(network, config | {"torch_dtype": dtype}, group, bits)
    theirs = dict(tree_flatten(quantised.parameters()))
    flags = ("--bits", str(bits), "--group-size", str(group), "--dtype", dtype, "--judge-tokens", "0")
    # mlx-lm quantises GPT-2's learned positions too.
    more = ("--layer-bits", f"position_embedding={bits}") if "model.wpe.scales" in theirs else ()
    done("quantise", folders / "base", *flags, *more, "-o", tmp_path / "run")
    done("export", tmp_path / "run", "--to", "mlx-lm", "-o", tmp_path / "ours")
    ours = mlx_tensors(tmp_path / "ours")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        kind, numbers = ours[name]
        assert kind == value.dtype, name
        assert np.array_equal(numbers, np.array(value.astype(mx.float32) if kind == mx.bfloat16 else value)), name
    said = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert said["quantization"] == settings["quantization"] == {"group_size": group, "bits": bits, "mode": "affine"}


def test_logits_and_text_are_those_of_mlx_lm(folders: Path, tmp_path: Path) -> None:
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    done("quantise", folders / "base", "--judge-tokens", "0", "-o", tmp_path / "run")
    done("export", tmp_path / "run", "--to", "mlx-lm", "-o", tmp_path / "mlx")
    with mx.stream(mx.cpu):
        network, _ = load_model(tmp_path / "mlx")
        theirs = np.array(network(mx.array(TOKENS)))
        text = [int(token) for token, _ in generate_step(mx.array(TOKENS[0, :4]), network, max_tokens=12)]
    for twin in TWINS:
        ours = logits_of(twin, tmp_path / "run", TOKENS)
        assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < MLX_LM, twin
    settings = SampleSettings(max_new_tokens=12, temperature=0.0)
    for twin in TWINS:
        generate, prompt = import_module(f"{twin}.sample").generate, TOKENS[0, :4].tolist()
        assert list(generate(built(twin, tmp_path / "run"), prompt, settings, repeat(0.5))) == text, twin


def test_words_go_out_and_come_back(folders: Path, tmp_path: Path) -> None:
    flags = ("--layer-bits", "up_proj=6", "--keep", "out_proj", "--judge-tokens", "0")
    said = done("quantise", folders / "base", *flags, "-o", tmp_path / "run")
    assert "float: asked for" in said
    assert "6 bits, groups of 64" in said
    done("export", tmp_path / "run", "--to", "mlx-lm", "-o", tmp_path / "mlx")
    done("import", tmp_path / "mlx", "-o", tmp_path / "back")
    done("diff", tmp_path / "run", tmp_path / "back")
    first, second = (native.read(tmp_path / name, ReadOptions()) for name in ("run", "back"))
    assert first.grids == second.grids
    for name, tensor in first.words.items():
        assert b"".join(tensor.blocks()) == b"".join(second.words[name].blocks()), name
    note = done("export", tmp_path / "run", "--to", "transformers", "-o", tmp_path / "hf")
    assert f"{len(first.grids)} quantised matrices were written as the floats that they stand for" in note
    assert "quantised: " in done("inspect", tmp_path / "run")


def tiny_run(folder: Path, data: Path, *more: str) -> None:
    flags = ("--preset", "stories-cpu", "--n-embd", "64", "--n-layer", "1", "--block-size", "32", "--batch-size", "4")
    rest = ("--max-steps", "60", "--learning-rate", "3e-3", "--warmup-steps", "5", "--eval-batches", "1", "--no-report")
    quiet = ("--health-gates", "off", "--sample-tokens", "0", "--data-dir", str(data), "--out", str(folder))
    train("torch_gpt", *flags, *rest, *quiet, *more)


@pytest.fixture(scope="module")
def trained(stories_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt a little, in 4 bits too, and adapters beside that: one trained, one that moved nothing."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_run(folder / "base", stories_dir)
    done("quantise", folder / "base", "--judge-tokens", "512", "-o", folder / "words")
    for name, rate in (("lora", "1e-2"), ("still", "1e-30")):
        start = ("--init-from", str(folder / "words"), "--adapter", "lora", "--learning-rate", rate, "--min-lr", rate)
        train("torch_gpt", *start, "--max-steps", "20", "--warmup-steps", "0", "--eval-batches", "1", "--no-report",
              "--health-gates", "off", "--sample-tokens", "0", "--batch-size", "4", "--data-dir", str(stories_dir),
              "--out", str(folder / name))  # fmt: skip
    return folder


def test_the_table_says_what_it_cost(trained: Path, tmp_path: Path) -> None:
    for calibrate in ("none", "gptq", "dwq"):
        flags = ["--bits", "3", "--calibrate", calibrate, "--tokens", "2048", "--judge-tokens", "2048"]
        flags += ["--steps", "40"] if calibrate == "dwq" else []
        said = done("quantise", trained / "base", *flags, "-o", tmp_path / calibrate)
        rows = {line.split()[0]: line.split() for line in said.splitlines() if line[:1] in "frgd" and len(line) > 60}
        assert all(len(line) <= 80 for line in said.splitlines() if not line.startswith(str(tmp_path)))
        assert rows["float"][4] == "0.0000"
        assert float(rows["rounded"][4]) > 0.001
    assert float(rows["gptq"][4]) < float(rows["rounded"][4])
    assert float(rows["dwq"][4]) < 0.8 * float(rows["gptq"][4])
    assert "calibration took" in said


def test_bits_by_a_loss_that_is_allowed(trained: Path, tmp_path: Path) -> None:
    losses, sizes = [], []
    for allowed in ("0.002", "0.05"):
        said = done(
            "quantise", trained / "base", "--target-loss", allowed, "--judge-tokens", "1024", "-o", tmp_path / allowed
        )
        rows = {line.split()[0]: line.split() for line in said.splitlines() if line.startswith(("float", "rounded"))}
        losses.append(float(rows["rounded"][5]) - float(rows["float"][5]))
        sizes.append(float(rows["rounded"][1]))
        assert losses[-1] <= float(allowed) + 1e-4
    assert sizes[0] > sizes[1], "what is allowed more takes less"


def test_an_adapter_that_moved_nothing_leaves_every_bit(trained: Path, tmp_path: Path) -> None:
    said = done("fuse", trained / "still", "--keep-grid", "-o", tmp_path / "fused")
    assert "0 of " in said
    assert model_file(tmp_path / "fused").read_bytes() == model_file(trained / "words").read_bytes()


def test_an_adapter_on_the_grid_is_nearer_than_one_rounded(trained: Path, tmp_path: Path) -> None:
    said = done("fuse", trained / "lora", "--keep-grid", "-o", tmp_path / "kept")
    swallowed = float(said.split("the grids swallowed ")[1].split()[0])
    added = float(said.split("had moved the model by ")[1].split(":")[0])
    assert swallowed < added
    kept, words = (native.read(run, ReadOptions()) for run in (tmp_path / "kept", trained / "words"))
    assert kept.grids == words.grids
    assert kept.best_val_loss is None, "what the grids swallowed was not measured by it"
    for name in words.words:
        if not name.endswith(".weight"):
            assert b"".join(kept.words[name].blocks()) == b"".join(words.words[name].blocks()), name
    done("fuse", trained / "lora", "-o", tmp_path / "floats")
    assert not native.read(tmp_path / "floats", ReadOptions()).grids


@pytest.mark.parametrize("twin", TWINS)
def test_a_run_beside_words_is_taken_up_by_either_twin(
    trained: Path, stories_dir: Path, tmp_path: Path, twin: str
) -> None:
    shutil.copytree(trained, tmp_path / "all")
    train(twin, "--resume", str(tmp_path / "all" / "lora"), "--max-steps", "24", "--data-dir", str(stories_dir))
    first, second = (logits_of(name, tmp_path / "all" / "lora", TOKENS % 30) for name in TWINS)
    assert np.linalg.norm(first - second) / np.linalg.norm(second) < 5e-6


def test_without_its_data_a_run_is_rounded_and_not_judged(trained: Path, tmp_path: Path) -> None:
    """Nothing is made or fetched for a table that nobody asked for."""
    shutil.copytree(trained / "base", tmp_path / "base")
    state = find_checkpoint(tmp_path / "base", prefer="best") / "state.json"
    said = json.loads(state.read_text())
    said["config"]["data"]["data_dir"] = str(tmp_path / "gone")
    state.write_text(json.dumps(said))
    note = done("quantise", tmp_path / "base", "-o", tmp_path / "words")
    assert f"note: what this costs was not measured, since its dataset 'stories' is not in {tmp_path / 'gone'}" in note
    assert "divergence" not in note
    assert not (tmp_path / "gone").exists()
    assert model_file(tmp_path / "words").read_bytes() == model_file(trained / "words").read_bytes()
    error = refused("quantise", tmp_path / "base", "--calibrate", "gptq", "-o", tmp_path / "more")
    assert "calibration wants text, and its dataset 'stories' is not in" in error


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no such matrix": (("--keep", "q_porj"), "keep: no matrix of this model is called 'q_porj'"),
    "no such bits": (("--layer-bits", "out_proj=7"), "is not NAME=BITS"),
    "no number": (("--layer-bits", "out_proj"), "is not NAME=BITS"),
    "nothing left": (("--group-size", "128", "--keep", "down_proj"), "nothing would be quantised"),
    "no text": (("--calibrate", "gptq", "--text", "missing.txt"), "missing.txt cannot be read as text"),
    "no tokens": (("--tokens", "0"), "tokens is 0"),
    "no loss": (("--target-loss", "-1"), "target_loss is -1.0: it must be above 0"),
    "bits twice": (("--target-loss", "0.1", "--layer-bits", "out_proj=3"), "target_loss chooses the bits"),
    "no number of bits": (("--bits", "7"), "--bits '7' is not a choice: choose from: 2, 3, 4, 5, 6, 8"),
    "no group": (("--group-size", "33"), "choose from: 32, 64, 128"),
    "half a token": (("--tokens", "1.5"), "--tokens '1.5' is no whole number"),
    "no letters of its own": (("--text", __file__), "is no text for this model: character"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(trained: Path, tmp_path: Path, name: str) -> None:
    flags, said = REFUSED[name]
    error = refused("quantise", trained / "base", *flags, "-o", tmp_path / "out")
    assert said in error
    assert error.count("\n") <= 2
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_quantised_or_trained(trained: Path, tmp_path: Path, stories_dir: Path) -> None:
    assert "is quantised already" in refused("quantise", trained / "words", "-o", tmp_path / "out")
    assert "is an adapter" in refused("quantise", trained / "lora", "-o", tmp_path / "out")
    assert "exists: choose another -o" in refused("quantise", trained / "base", "-o", trained / "words")
    # What is read is never replaced, whatever was asked for.
    for command, source, place in (
        ("quantise", "base", trained / "base"),
        ("quantise", "base", trained),
        ("fuse", "lora", trained / "lora"),
        ("fuse", "lora", trained / "words"),
    ):
        error = refused(command, trained / source, "-o", place, "--overwrite")
        assert error == f"error: {place} is where the source is: choose another -o\n"
    error = refused("quantise", trained / "base", "-o", trained / "words", "--overwrite")
    assert "is the base of an adapter" in error
    assert "was trained, so it is not" in refused("quantise", trained / "base", "-o", trained / "lora", "--overwrite")
    with pytest.raises(UserError, match="is quantised: --adapter lora trains beside it"):
        train(
            "torch_gpt", "--init-from", str(trained / "words"), "--data-dir", str(stories_dir), "--out", str(tmp_path)
        )  # fmt: skip
    with pytest.raises(UserError, match=r"token_embedding of .* is quantised and cannot be trained"):
        train(
            "mlx_gpt", "--init-from", str(trained / "words"), "--adapter", "lora", "--adapter-whole", "token_embedding",
            "--data-dir", str(stories_dir), "--out", str(tmp_path / "x"),
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_becomes_a_run_beside_its_own(trained: Path, tmp_path: Path) -> None:
    """What lay among a run's checkpoints was taken for a damaged one."""
    shutil.copytree(trained / "base", tmp_path / "base")
    checkpoint = find_checkpoint(tmp_path / "base", prefer="best")
    done("quantise", checkpoint, "--judge-tokens", "0")
    assert [path.name for path in checkpoint.parent.glob("step-*")] == [checkpoint.name]
    made = tmp_path / f"base-{checkpoint.name}-4bit"
    assert model_file(made).read_bytes() == model_file(trained / "words").read_bytes()


def test_an_adapter_is_looked_at_and_compared(trained: Path, tmp_path: Path) -> None:
    """By what it holds itself; beside a base that is not here as well."""
    said = done("inspect", trained / "lora", "--hashes")
    lines = said.splitlines()
    assert ": adapter, 8,192 parameters in 8 tensors (8 F32)" in lines[0]
    assert "adapter: adapter lora, adapter_rank 8, adapter_alpha 16.0" in lines
    base = find_checkpoint(trained / "words", prefer="best")
    assert f"base: {base}" in lines
    names = [line.split()[0] for line in lines if ".lora_" in line]
    assert names[:3] == [
        f"blocks.0.attention.{name}" for name in ("qkv_proj.lora_a", "qkv_proj.lora_b", "out_proj.lora_a")
    ]
    assert ["blocks.0.attention.qkv_proj.lora_a", "F32", "8x64"] in [line.split()[:3] for line in lines]
    assert "AdamW state of 8 tensors" in said
    assert lines[-1] == "all checksums match"
    assert "24 of 24 tensors are equal" in done("diff", trained / "lora", trained / "lora")
    outcome = run_convert("diff", trained / "lora", trained / "still")
    assert outcome.code == 1
    assert "blocks.0.attention.qkv_proj.lora_a" in outcome.stdout
    error = refused("diff", trained / "lora", trained / "words")
    assert f"error: {trained / 'lora'} is an adapter and the other a whole model: merge it first" in error
    assert "is an adapter" in refused("export", trained / "lora", "--to", "native", "-o", tmp_path / "x")
    # What is wrong with it is said, and nothing is computed of what it claims.
    shutil.copytree(trained / "lora", tmp_path / "lora")
    assert "which is not there" in done("inspect", tmp_path / "lora")
    state = find_checkpoint(tmp_path / "lora", prefer="best") / "state.json"
    good = json.loads(state.read_text())
    for table, key, value, problem in (
        ("adapter", "adapter_rank", 4, "lora_a has shape [8, 64], state.json asks for [4, 64]"),
        ("adapter", "adapter_targets", ["out_proj"], "qkv_proj.lora_a: it belongs to no adapter of this model"),
        ("adapter", "adapter_targets", ["q_porj"], "no matrix of this model is called 'q_porj'"),
        ("model", "n_layer", 3, "tensor"),
    ):
        state.write_text(json.dumps(good | {"config": good["config"] | {table: good["config"][table] | {key: value}}}))
        assert problem in done("inspect", tmp_path / "lora")


def test_the_list_of_runs_says_what_was_made_of_what(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no dataset that nobody trained on, nor steps of a schedule that nobody began."""
    monkeypatch.setenv("COLUMNS", "120")
    done("export", trained / "base", "--to", "gguf", "--other-gelu", "-o", tmp_path / "x.gguf")
    done("import", tmp_path / "x.gguf", "-o", tmp_path / "runs" / "theirs")
    done("export", trained / "lora", "--to", "mlx-lm", "-o", tmp_path / "adapter")
    done("import", tmp_path / "adapter", "--base", trained / "base", "-o", tmp_path / "runs" / "adapted")
    for name in ("words", "base"):
        shutil.copytree(trained / name, tmp_path / "runs" / name)
    capsys.readouterr()
    runs_command(["list", "--runs-dir", str(tmp_path / "runs")])
    rows = {line.split()[0]: line.split()[1:-2] for line in capsys.readouterr().out.splitlines()}
    assert rows["theirs"] == ["x.gguf", "-", "-", "0", "-"]
    assert rows["adapted"] == ["adapter", "-", "-", "0", "-"]
    assert rows["words"] == ["base", "stories", "-", "-", "60", "-"]
    assert rows["base"][1] == "stories"
    assert rows["base"][4] == "60/60"
    for name, said in (("words", "Not trained here (run in 4 bits): step 60."), ("theirs", "(GGUF file): step 0.")):
        runs_command(["show", str(tmp_path / "runs" / name)])
        assert said in capsys.readouterr().out
        runs_command(["report", str(tmp_path / "runs" / name)])
        assert said in (tmp_path / "runs" / name / "report.html").read_text()
