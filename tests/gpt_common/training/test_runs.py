"""What a run promises, in both twins: it can be repeated, resumed, stopped and moved, and it refuses what is wrong."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from itertools import product
from pathlib import Path

import pytest

from gpt_common.training.log.runlog import read_metrics
from tests.twins import ROOT, TWINS, fails, losses, tensors, train

both = pytest.mark.parametrize("twin", TWINS)
STEPS = ("--max-steps", "40", "--log-interval", "1", "--checkpoint-interval", "20", "--eval-interval", "20")


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory, stories_dir: Path) -> dict[str, Path]:
    """An undisturbed run of 40 steps of each twin, with dropout and accumulation."""
    from tests.twins import tiny

    folder = tmp_path_factory.mktemp("whole")
    for twin in TWINS:
        train(twin, *tiny(stories_dir), *STEPS, *DROPOUT, *GATES, "--out", folder / twin)
    return {twin: folder / twin for twin in TWINS}


DROPOUT = ("--dropout", "0.2", "--dropout-rng", "shared", "--grad-accum-steps", "2")
GATES = ("--health-gates", "quick")


def part(run: Path, to: Path, step: int) -> Path:
    """A copy of a run as it was after `step`."""
    shutil.copytree(run, to)
    for checkpoint in (to / "checkpoints").glob("step-*"):
        if checkpoint.name != f"step-{step:06d}":
            shutil.rmtree(checkpoint)
    (to / "checkpoints" / "latest").write_text(f"step-{step:06d}\n")
    return to


def test_the_twins_walk_down_the_same_losses(whole_runs: dict[str, Path]) -> None:
    mlx, torch = losses(whole_runs["mlx_gpt"]), losses(whole_runs["torch_gpt"])
    assert list(mlx) == list(torch) == list(range(1, 41))
    # With equal masks and batches only rounding is left: 1e-5 over 40 steps, as the ladder's L7.
    assert max(abs(mlx[step] - torch[step]) for step in mlx) < 1e-5
    assert torch[40] < torch[1] - 0.3


@both
def test_resumed_weights_are_bitwise_those_of_one_go(twin: str, whole_runs: dict[str, Path], tmp_path: Path) -> None:
    run = part(whole_runs[twin], tmp_path / "run", 20)
    train(twin, "--resume", run)
    for file in ("model.safetensors", "optimizer.safetensors"):
        one_go, resumed = tensors(whole_runs[twin], 40, file), tensors(run, 40, file)
        assert one_go.keys() == resumed.keys()
        assert all(one_go[name].tobytes() == resumed[name].tobytes() for name in one_go)
    assert losses(run) == losses(whole_runs[twin])


@both
def test_native_dropout_resumes_bitwise_too(twin: str, tiny_run: list[str], tmp_path: Path) -> None:
    flags = [*tiny_run, "--max-steps", "12", "--dropout", "0.3", "--log-interval", "1", *GATES]
    train(twin, *flags, "--out", tmp_path / "whole")
    train(twin, *flags, "--out", tmp_path / "parts", "--stop-at", "5")
    train(twin, "--resume", tmp_path / "parts")
    whole, parts = tensors(tmp_path / "whole", 12), tensors(tmp_path / "parts", 12)
    assert all(whole[name].tobytes() == parts[name].tobytes() for name in whole)


@pytest.mark.parametrize("first", TWINS)
def test_a_run_changes_framework_on_the_same_curve(first: str, whole_runs: dict[str, Path], tmp_path: Path) -> None:
    second = TWINS[1 - TWINS.index(first)]
    run = part(whole_runs[first], tmp_path / "run", 20)
    train(second, "--resume", run)
    whole, moved = losses(whole_runs[first]), losses(run)
    assert max(abs(whole[step] - moved[step]) for step in range(21, 41)) < 1e-5
    assert json.loads((run / "checkpoints/step-000040/state.json").read_text())["written_by"]["program"] == second


@both
def test_metrics_hold_what_they_should(twin: str, whole_runs: dict[str, Path]) -> None:
    rows = [row for row in read_metrics(whole_runs[twin]) if "loss" in row]
    keys = {"step", "loss", "lr", "grad_norm", "dt", "dt_data", "sps", "tps", "mfu", "memory", "time"}
    assert all(row.keys() == keys | {"power_watts", "gpu_usage"} for row in rows)
    assert rows[0]["dt"] is None  # the first step compiles
    assert all(row["dt"] is None or row["tps"] == pytest.approx(8 * 32 / row["dt"]) for row in rows)
    assert all(row["mfu"] is None for row in rows)  # nobody publishes a CPU's peak
    evaluations = [row["step"] for row in read_metrics(whole_runs[twin]) if "val_loss" in row]
    assert evaluations == [0, 20, 40]


@both
def test_the_written_configuration_repeats_the_run(twin: str, whole_runs: dict[str, Path], tmp_path: Path) -> None:
    train(twin, "--config", whole_runs[twin] / "config.toml", "--out", tmp_path / "again", "--stop-at", "3")
    again, whole = losses(tmp_path / "again"), losses(whole_runs[twin])
    assert [again[step] for step in (1, 2, 3)] == [whole[step] for step in (1, 2, 3)]


@both
def test_init_from_starts_at_step_0_with_the_weights(twin: str, whole_runs: dict[str, Path], tmp_path: Path) -> None:
    run = whole_runs[twin]
    flags: list[str | Path] = [
        "--config",
        run / "config.toml",
        "--max-steps",
        "2",
        "--dropout",
        "0",
        "--block-size",
        "16",
    ]
    train(twin, *flags, "--init-from", run, "--out", tmp_path / "tuned")
    first = losses(tmp_path / "tuned")[1]
    assert first < losses(run)[1] - 0.3
    assert tensors(tmp_path / "tuned", 2)["position_embedding.weight"].shape == (16, 32)


@both
def test_gradient_checkpointing_and_compilation_change_nothing(twin: str, tiny_run: list[str], tmp_path: Path) -> None:
    flags = [*tiny_run, "--max-steps", "5", "--log-interval", "1", "--dropout", "0.1", "--dropout-rng", "shared"]
    train(twin, *flags, "--out", tmp_path / "plain")
    train(twin, *flags, "--out", tmp_path / "checkpointed", "--gradient-checkpointing")
    plain, checkpointed = losses(tmp_path / "plain"), losses(tmp_path / "checkpointed")
    assert max(abs(plain[step] - checkpointed[step]) for step in plain) < 2e-6


@both
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(
    twin: str, name: str, code: int, tiny_run: list[str], tmp_path: Path
) -> None:
    flags = [*tiny_run, "--max-steps", "100000", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", f"{twin}.train", *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not losses_so_far(tmp_path / "run"):
        time.sleep(0.05)
    process.send_signal(getattr(signal, name))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert f"python -m {twin}.train --resume {tmp_path / 'run'}" in output
    step = int((tmp_path / "run/checkpoints/latest").read_text().strip().removeprefix("step-"))
    assert step > 0
    train(twin, "--resume", tmp_path / "run", "--stop-at", str(step + 2))


def losses_so_far(run: Path) -> bool:
    """Whether a run in another process has logged a step."""
    path = run / "metrics.jsonl"
    return path.exists() and '"loss"' in path.read_text()


@both
def test_divergence_exits_1_and_names_step_and_tensor(
    twin: str, tiny_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--learning-rate",
        "1e18",
        "--min-lr",
        "1e18",
        "--warmup-steps",
        "0",
        "--grad-clip",
        "0",
        "--max-steps",
        "50",
    ]
    error = fails(capsys, twin, *tiny_run, *flags, "--log-interval", "1", "--out", tmp_path / "run", code=1)
    assert "step " in error
    assert "nan" in error or "inf" in error
    assert "learning rate" in error


@both
def test_one_seed_gives_the_same_text_in_both_twins(
    twin: str, whole_runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for program in TWINS:
        arguments = [str(whole_runs[twin]), "--prompt", "Once", "--max-new-tokens", "60", "--seed", "5"]
        import_module(f"{program}.sample").main([*arguments, "--num-samples", "2", "--top-k", "20", "--top-p", "0.95"])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].count("Once") >= 2


@both
def test_a_short_block_cuts_the_datasets_own_prompt(
    twin: str, tiny_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(twin, *tiny_run, "--block-size", "8", "--max-steps", "1", "--sample-tokens", "9", "--out", tmp_path / "run")
    import_module(f"{twin}.sample").main([str(tmp_path / "run"), "--max-new-tokens", "9"])
    assert "Once upo" in capsys.readouterr().out


# ---- what must be refused ----------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--preset", "storys"], "did you mean 'stories"),
        (["--n-layr", "3"], "did you mean '--n-layer'?"),
        (["--n-layer", "three"], "--n-layer"),
        (["--n-layer"], "--n-layer needs a value"),
        (["--schedule", "cosin"], "did you mean 'cosine'?"),
        (["--n-head", "3"], "n_head 3 does not divide n_embd"),
        (["--dropout", "1.0"], "dropout is 1.0"),
        (["--dataset", "no_such"], "no_such"),
        (["--block-size", "500000"], "500000"),
        (["--vocab-size", "10"], "vocab_size 10 is smaller than the tokenizer's"),
        (["--prompts", "Once §"], "§"),
        (["--prompts", "a" * 65, "--block-size", "64"], "65 tokens"),
        (["--resume", "no/such/run"], "no such run or checkpoint: no/such/run"),
        (["--init-from", "no/such/run"], "no such run or checkpoint: no/such/run"),
        (["--config", "no/such.toml"], "no/such.toml"),
        (["--stop-at", "5000"], "--stop-at 5000 lies beyond max_steps"),
        (["--device", "cuda"], "cuda"),
        (["--trackers", "mlflow"], "mlflow"),
        (["extra"], "extra"),
    ],
)
def test_bad_flags_get_one_clear_line(
    twin: str, flags: list[str], says: str, stories_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if flags == ["--device", "cuda"] and cuda(twin):
        pytest.skip("this machine has CUDA")
    base = [] if flags[0] == "--resume" else ["--out", str(tmp_path / "run"), "--data-dir", str(stories_dir)]
    assert says in fails(capsys, twin, *base, *flags)
    assert not (tmp_path / "run").exists()


def cuda(twin: str) -> bool:
    """Whether a twin finds CUDA."""
    if twin == "torch_gpt":
        import torch

        return torch.cuda.is_available()
    import mlx.core as mx

    return bool(mx.cuda.is_available())


@both
def test_a_folder_that_holds_a_run_is_not_written_over(
    twin: str, whole_runs: dict[str, Path], tiny_run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "already holds a run" in fails(capsys, twin, *tiny_run, "--out", whole_runs[twin])


@both
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--n-layer", "3"], "model n_layer: 2 in"),
        (["--block-size", "16"], "model block_size: 32 in"),
        (["--dataset", "other"], "other"),
        (["--max-steps", "40"], "the run is finished: step 40 of 40"),
        (["--stop-at", "40", "--max-steps", "50"], "at step 40 already"),
        (["--preset", "stories-cpu"], "--resume takes configuration"),
    ],
)
def test_resume_refuses_what_does_not_fit_and_names_the_field(
    twin: str, flags: list[str], says: str, whole_runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in fails(capsys, twin, "--resume", whole_runs[twin], *flags)


@both
def test_resume_refuses_changed_data(
    twin: str, whole_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = part(whole_runs[twin], tmp_path / "run", 20)
    state = run / "checkpoints/step-000020/state.json"
    content = json.loads(state.read_text())
    content["dataset"]["fingerprint"] = "0" * 64
    state.write_text(json.dumps(content))
    assert "is not the one that" in fails(capsys, twin, "--resume", run)


@both
def test_init_from_refuses_a_longer_block_and_another_tokenizer(
    twin: str, whole_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = whole_runs[twin]
    base: list[str | Path] = ["--config", run / "config.toml", "--init-from", run, "--out", tmp_path / "run"]
    assert "block_size 64 is beyond the checkpoint's 32" in fails(capsys, twin, *base, "--block-size", "64")
    assert not (tmp_path / "run").exists()


@both
@pytest.mark.parametrize(("prompt", "says"), [("Once §", "§"), ("a" * 33, "33 tokens"), ("", "empty")])
def test_sampling_refuses_a_prompt_it_cannot_read(
    twin: str, prompt: str, says: str, whole_runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in fails(capsys, twin, whole_runs[twin], "--prompt", prompt, program="sample")


@both
@pytest.mark.parametrize(
    ("file", "damage"),
    [
        # A flipped bit in the manifest's text may be another valid text; what it says is compared with the tensors.
        *product(["model.safetensors", "optimizer.safetensors"], ["truncated", "flipped", "missing"]),
        ("state.json", "truncated"),
        ("state.json", "missing"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_previous_one_offered(
    twin: str, file: str, damage: str, whole_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole_runs[twin], run)
    path = run / "checkpoints/step-000040" / file
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) * 3 // 4] ^= 0x10
        path.write_bytes(content)
    else:
        path.unlink()
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    error = fails(capsys, twin, "--resume", run, "--max-steps", "50")
    assert "step-000040" in error
    if file != "state.json" or damage != "missing":
        assert file in error
    assert "step-000020" in error
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    train(twin, "--resume", run / "checkpoints/step-000020", "--stop-at", "22")
