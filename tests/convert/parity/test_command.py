"""The command: what it prints, writes and refuses, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from convert.parity import canaries, material
from convert.parity.command import main
from convert.parity.mutants.climb import mutant_config
from convert.parity.mutants.every import MUTANTS
from convert.parity.twins.backends import open_twin
from gpt_common.errors import UserError, WorkFailed, run_main
from gpt_common.machine.backends import BACKENDS

pytestmark = pytest.mark.parity

ROOT = Path(__file__).parents[3]
QUICK = ["--mode", "quick", "--backends", "cpu,mlx-cpu"]


def test_a_climb_prints_a_line_per_rung_and_writes_every_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*QUICK, "--preset", "gpt2", "--rung", "L0,L3,L5", "--json", str(tmp_path / "new" / "report.json")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mlx-cpu against cpu and float64, class strict"
    assert [line[:3] for line in lines if line.startswith("L")] == ["L0 ", "L3 ", "L5 "]
    (logits,) = [line for line in lines if line.startswith("L3")]
    assert "logits (" in logits
    assert " 5e-06 " in logits
    assert lines[-1].startswith("parity holds on 3 rungs")
    report = json.loads((tmp_path / "new" / "report.json").read_text())
    assert report["passed"] is True
    assert report["failure"] is None
    assert report["command"].startswith("python -m convert parity --mode quick")
    assert {"mlx", "torch", "numpy", "python"} <= set(report["versions"])
    assert [rung["name"] for rung in report["rungs"]] == ["L0", "L3", "L5"]
    assert report["configuration"]["model"]["feed_forward"] == "gelu_tanh"
    gradients = report["rungs"][2]["measurements"]
    assert all(m["passed"] and m["error"] <= m["gate"] for m in gradients)
    assert {"fresh", "widened", "examples in rows"} == {m["state"] for m in gradients}
    assert {"cpu ~ float64", "mlx-cpu ~ float64", "mlx-cpu ~ cpu", "mlx-cpu : cpu"} == {m["between"] for m in gradients}
    assert (os.environ["MLX_ENABLE_TF32"], os.environ["OMP_NUM_THREADS"]) == ("0", "1")


def test_absent_backends_are_named_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--mode", "quick", "--rung", "L4"])
    out = capsys.readouterr().out
    for name in BACKENDS:
        if f"not here: {name} " in out:
            assert f"not here: {name} (MLX finds neither" in out or f"not here: {name} (PyTorch finds no" in out
    if sys.platform == "linux":
        assert "not here: mps (PyTorch finds no MPS)" in out


def test_broken_parity_is_exit_code_1_with_a_paragraph_and_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mutant = next(m for m in MUTANTS if m.name == "square out_proj transposed")
    with mutant.change(), pytest.raises(SystemExit) as stop:
        run_main(main, [*QUICK, "--rung", "L2,L3", "--json", str(tmp_path / "report.json")])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: Parity of mlx-cpu breaks at rung L2 (layers)")
    assert "Made by `blocks.0.attention.out_proj` forward" in error
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"] is False
    assert error == f"error: {report['failure']}\n"
    assert [rung["name"] for rung in report["rungs"]] == ["L2"], "the climb ends at the rung that fails"


def test_a_checkpoint_is_climbed_with_its_own_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = mutant_config("untied head")
    twin = open_twin(BACKENDS["mlx-cpu"], config, "float32")
    twin.set_weights(material.widened(config))
    checkpoint = twin.save(tmp_path / "run", 3)
    main(["--checkpoint", str(checkpoint), "--backends", "cpu,mlx-cpu", "--rung", "L2,L5,G"])
    out = capsys.readouterr().out
    assert "model: 2 layers x 16, 2 heads, block 16, vocabulary 64" in out
    assert out.count("trained") == 3
    assert "fresh" not in out
    (checkpoint / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="is damaged"):
        main(["--checkpoint", str(checkpoint), "--rung", "L2"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--backends", "cpu,mlx-gpu"], "no backend 'mlx-gpu'"),
        (["--backends", "cpu"], "parity needs two backends"),
        (["--preset", "gpt3"], "no preset 'gpt3': did you mean 'gpt2'"),
        (["--rung", "L10"], "no rung 'L10'"),
        (["--rung", "L3,L9"], "--rung L9 alone"),
        (["--preset", "gpt2", "--checkpoint", "runs/x"], "leave one out"),
        (["--checkpoint", "runs/nothing"], "no such run or checkpoint"),
        (["--tf32", "--dtype", "bfloat16"], "leave it out"),
        (["--mode", "fast"], "--mode 'fast' is not a choice"),
        (["--seeds", "1"], "at least 2"),
        (["--backend", "cpu"], "did you mean '--backends'"),
    ],
)
def test_what_cannot_be_climbed_is_refused_in_a_line(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        main(argv)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_command_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "convert", "parity", *QUICK, "--rung", "L1"]
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS") and k != "MLX_ENABLE_TF32"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "L1   operations" in done.stdout
    assert "\x1b" not in done.stdout, "plain lines where there is no terminal"


QUICK_CANARIES = [canary for canary in canaries.CANARIES if "compiled" not in canary.name]


def test_canaries_live_here(capsys: pytest.CaptureFixture[str]) -> None:
    canaries.run_canaries([BACKENDS["cpu"], BACKENDS["mlx-cpu"]], QUICK_CANARIES)
    out = capsys.readouterr().out
    assert out.count(": right (error ") == len(out.splitlines()) == 7
    assert len(canaries.CANARIES) == len(QUICK_CANARIES) + 3


@pytest.mark.usefixtures("without_onednn")
def test_a_canary_that_dies_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on an M1: one term too many in long sums, and nothing else."""
    from torch.nn import functional as F

    right = F.linear

    def wrong(x, weight, bias=None):  # type: ignore[no-untyped-def]
        return right(x, weight, bias) + (weight.shape[1] >= 32767)

    monkeypatch.setattr(F, "linear", wrong)
    with pytest.raises(WorkFailed, match="1 known backend fault is present"):
        canaries.run_canaries([BACKENDS["cpu"]], QUICK_CANARIES[:2], tmp_path / "reports" / "canaries.json")
    first, second = capsys.readouterr().out.splitlines()
    assert "sums over 32767 and more terms: WRONG: pytorch#195163" in first
    assert "What to do: train with the MLX twin or on the CPU" in first
    assert ": right (" in second
    found = json.loads((tmp_path / "reports" / "canaries.json").read_text())["canaries"]
    assert [(each["backend"], each["verdict"], each["gate"]) for each in found] == [
        ("cpu", "wrong", 1e-5),
        ("cpu", "right", 1e-5),
    ]
    assert found[1]["error"] <= 1e-5 < found[0]["error"]


def test_canaries_take_a_single_backend_and_a_comparison_two(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(canaries, "run_canaries", lambda backends, json_path: asked.append((backends, json_path)))
    main(["--canaries", "--backends", "cpu"])
    assert [([backend.name for backend in backends], path) for backends, path in asked] == [(["cpu"], None)]
    with pytest.raises(UserError, match="parity needs two backends, found cpu"):
        main(["--backends", "cpu", "--rung", "L0"])


@pytest.mark.slow
# PyTorch's own compiler imports what it has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_canaries_live_here(capsys: pytest.CaptureFixture[str]) -> None:
    canaries.run_canaries([BACKENDS["cpu"], BACKENDS["mlx-cpu"]])
    assert "NOT TRIED" not in capsys.readouterr().out
