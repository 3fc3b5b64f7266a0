"""Runs with an adapter: taken up bit by bit, by either twin, beside a base that must be there and unchanged."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from convert.__main__ import main as convert
from tests.twins import TWINS, fails, tensors, tiny, train

DORA = ("--adapter", "dora", "--adapter-rank", "4", "--adapter-dropout", "0.1", "--dropout-rng", "shared")


@pytest.fixture(scope="module")
def runs(stories_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter of 4 steps, and one that stands at 2 of them."""
    folder = tmp_path_factory.mktemp("adapters")
    train("torch_gpt", *tiny(stories_dir, "--out", str(folder / "base"), "--max-steps", "3"))
    start = ["--init-from", str(folder / "base"), "--data-dir", str(stories_dir), *DORA, "--max-steps", "4"]
    start += ["--eval-interval", "2", "--checkpoint-interval", "2", "--keep-checkpoints", "9"]
    train("torch_gpt", *start, "--out", folder / "whole")
    train("torch_gpt", *start, "--out", folder / "half", "--stop-at", "2")
    return folder


@pytest.mark.parametrize("twin", TWINS)
def test_it_is_taken_up_by_either_twin(twin: str, runs: Path) -> None:
    shutil.copytree(runs / "half", runs / f"by {twin}")
    train(twin, "--resume", runs / f"by {twin}")
    for file in ("model.safetensors", "optimizer.safetensors"):
        expected, found = tensors(runs / "whole", 4, file), tensors(runs / f"by {twin}", 4, file)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            if twin == "torch_gpt":
                assert np.array_equal(found[name], value), f"{name} is taken up bit by bit"
            else:
                assert np.linalg.norm(found[name] - value) <= 1e-3 * np.linalg.norm(value) + 1e-9, name
    held = json.loads((runs / f"by {twin}" / "checkpoints" / "step-000004" / "state.json").read_text())
    assert not [name for name in tensors(runs / "whole", 4) if name.endswith(".weight")]
    assert held["base"]["path"] == "../../../base/checkpoints/step-000003"


def test_a_base_that_is_missing_or_changed_is_refused(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = runs / "base" / "checkpoints" / "step-000003"
    kept = runs / "kept"
    shutil.copytree(base, kept)
    try:
        shutil.rmtree(base)
        assert "its base is not here" in fails(capsys, "torch_gpt", runs / "whole", program="sample")
        shutil.copytree(kept, base)
        state = json.loads((base / "state.json").read_text())
        state["tensors"]["model.safetensors"]["token_embedding.weight"] = "0" * 64
        (base / "state.json").write_text(json.dumps(state))
        assert "is not the base" in fails(capsys, "torch_gpt", runs / "whole", program="sample")
    finally:
        shutil.rmtree(base)
        shutil.copytree(kept, base)


def test_a_base_stays_when_its_run_goes_on(runs: Path, stories_dir: Path) -> None:
    base, adapted = runs / "goes on", runs / "beside it"
    train("torch_gpt", *tiny(stories_dir, "--out", str(base), "--max-steps", "1", "--keep-checkpoints", "1"))
    start = ("--init-from", base, "--data-dir", stories_dir, *DORA, "--max-steps", "1", "--out", adapted)
    train("torch_gpt", *start)
    longer = ("--max-steps", "4", "--eval-interval", "1", "--checkpoint-interval", "1", "--learning-rate", "1e-2")
    train("torch_gpt", "--resume", base, *longer)
    left = {path.name for path in (base / "checkpoints").iterdir()}
    assert left - {"step-000004"} == {"best", "latest", "kept", "step-000001"}, "and none that nothing stands beside"
    assert (base / "checkpoints" / "best").read_text() == "step-000004\n"
    train("torch_gpt", "--resume", adapted, "--max-steps", "2")


def test_fusing_says_what_bfloat16_costs(runs: Path, stories_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Measured as the run itself was, on as many batches; and no longer than its data is there."""
    start = ("--init-from", runs / "base", "--data-dir", stories_dir, "--adapter", "lora", "--learning-rate", "0.3")
    train("torch_gpt", *start, "--max-steps", "3", "--warmup-steps", "0", "--eval-batches", "4", "--out", runs / "far")
    capsys.readouterr()
    convert(["fuse", str(runs / "far"), "-o", str(runs / "fused")])
    said = re.search(
        r"costs (\S+) nats/token: (\S+) for (\S+), on ([\d,]+) tokens of stories\n", capsys.readouterr().out
    )
    assert said, "one line"
    state = json.loads(next((runs / "far" / "checkpoints").glob("step-*3/state.json")).read_text())
    assert float(said[3]) == pytest.approx(state["val_loss"], abs=1e-6)
    assert 2e-6 < abs(float(said[2]) - float(said[3])) < 1e-2, "it was rounded, and to bfloat16"
    assert float(said[1]) == pytest.approx(float(said[2]) - float(said[3]), abs=2e-6)
    state = json.loads(next((runs / "fused" / "checkpoints").glob("step-*3/state.json")).read_text())
    assert state["prompt"], "samples begin as the run's"

    config = runs / "far" / "checkpoints" / "step-000003" / "state.json"
    config.write_text(config.read_text().replace(str(stories_dir), str(runs / "nowhere")))
    convert(["fuse", str(runs / "far"), "-o", str(runs / "again")])
    assert "was not measured: its dataset 'stories' is not in" in capsys.readouterr().out


def test_what_cannot_be(runs: Path, stories_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--data-dir", stories_dir)
    new = tiny(stories_dir, "--adapter", "lora", "--out", str(runs / "none"))
    assert "--init-from" in fails(capsys, "torch_gpt", *new)
    base = ("--init-from", runs / "base", *data, "--out", runs / "none", "--adapter", "lora")
    assert "did you mean" in fails(capsys, "mlx_gpt", *base, "--adapter-targets", "qkv_porj")
    assert "ema_decay" in fails(capsys, "mlx_gpt", *base, "--ema-decay", "0.9")
    other = fails(capsys, "torch_gpt", "--resume", runs / "half", "--adapter-rank", "2")
    assert "cannot resume with another adapter" in other
    assert not (runs / "none").exists()
