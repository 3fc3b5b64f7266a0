"""Planning: hand calculations, chips, amounts, largest batches, results, and the command itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.devices.chips import named_chip
from benchmarks.gpu_memory import usable_memory
from benchmarks.plan import amount, long_duration, main, memory, parse_amount
from benchmarks.planning import (
    Measured,
    compute_optimal,
    largest,
    largest_batch,
    make_plan,
)
from gpt_common.config import ModelConfig, RunConfig, TrainConfig, load_preset, preset_names
from gpt_common.errors import UserError
from gpt_common.machine.hardware import Hardware
from gpt_common.network.flops import flops_per_token_palm
from gpt_common.network.memory import memory_plan

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "plan.py"
GPT2 = load_preset("gpt2")
M3_MAX = Hardware(chip="Apple M3 Max", kind="apple", gpu_cores=40, memory_bytes=64 << 30)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    main([*argv, "--json", "-"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_gpt2_on_an_m3_max_by_hand() -> None:
    plan = make_plan("gpt2", GPT2, M3_MAX, tokens=10**9)
    assert plan["model"]["parameters"] == 124_439_808
    N = 124_439_808 - 1024 * 768
    per_token = 6 * N + 12 * 12 * 768 * 1024
    assert plan["flops"]["per_token_palm"] == per_token
    mlx, torch = plan["twins"]
    assert (mlx["device"], mlx["dtype"], torch["device"], torch["dtype"]) == ("gpu", "bfloat16", "mps", "float32")
    # As mlx-examples' transformer did on an M2 Max: 2.033 steps of 2048 tokens per second, 161 million parameters.
    reached = 2.033 * 2048 * (6 * 153.883 * 2**20 + 12 * 12 * 1024 * 1024) / (38 * 128 * 2 * 1.398e9)
    assert mlx["speed"]["mfu"] == pytest.approx(reached, rel=1e-12)
    assert torch["speed"]["mfu"] == pytest.approx(0.372, abs=5e-4)
    rate = reached * 40 * 128 * 2 * 1.38e9
    assert mlx["seconds"] == pytest.approx(1e9 * per_token / rate, rel=1e-12)
    assert mlx["speed"]["tokens_per_second"] == pytest.approx(rate / per_token, rel=1e-12)
    assert mlx["joules"] is None  # Apple names no power for a MacBook
    # Every matrix in 16 bits, the tied head among them, and keys and values of 1024 tokens in 12 layers.
    read = 2 * N + 1024 * 2 * 12 * 2 * 768
    assert mlx["decode"]["bytes_per_token"] == read
    assert mlx["decode"]["tokens_per_second_at_most"] == pytest.approx(400e9 / read)
    assert torch["decode"]["bytes_per_token"] == 2 * read
    assert plan["machine"]["usable_bytes"] == 48 << 30


def test_given_mfu_watts_and_the_runs_own_tokens() -> None:
    plan = make_plan("gpt2", GPT2, M3_MAX, mfu=0.5, watts=60.0)
    assert plan["tokens"]["count"] == GPT2.train.max_steps * GPT2.train.batch_size * GPT2.train.grad_accum_steps * 1024
    for one in plan["twins"]:
        assert one["speed"]["basis"] == "given"
        assert one["speed"]["mfu"] == pytest.approx(0.5)
        assert one["joules"] == pytest.approx(60.0 * one["seconds"])


def test_an_unknown_peak_gives_no_time_and_never_a_default() -> None:
    for chip in (replace(M3_MAX, chip="Apple M5 Max"), Hardware(chip="AMD EPYC 9654", memory_bytes=8 << 30)):
        for one in make_plan("gpt2", GPT2, chip)["twins"]:
            assert one["peak"] is one["seconds"] is one["speed"]["mfu"] is one["joules"] is None
            assert "--result" in one["speed"]["basis"]
        with pytest.raises(UserError, match="nobody has published one"):
            make_plan("gpt2", GPT2, chip, mfu=0.4)


def test_unknown_memory_gives_no_verdict() -> None:
    for one in make_plan("gpt2", GPT2, replace(M3_MAX, memory_bytes=None))["twins"]:
        assert one["fits"] is one["largest_batch"] is one["largest_batch_checkpointing"] is None


def test_a_measured_speed_takes_the_place_of_assumptions() -> None:
    measured = Measured(5e12, 42.0, "mlx in x.json")
    mlx, torch = make_plan("gpt2", GPT2, M3_MAX, tokens=10**6, measured={"mlx": measured})["twins"]
    assert mlx["seconds"] == pytest.approx(1e6 * flops_per_token_palm(GPT2.model) / 5e12)
    assert mlx["speed"]["mfu"] == pytest.approx(5 / 14.1312)
    assert mlx["speed"]["basis"] == "measured: mlx in x.json"
    assert mlx["power"] == {"watts": 42.0, "basis": "measured: mlx in x.json"}
    assert torch["speed"]["basis"].startswith("assumed, 37.2% as published for nanoGPT on MPS")
    assert mlx["peak"]["source"].startswith("derived")


def test_power_that_apple_names() -> None:
    chip = named_chip("M2 Ultra", None)
    power = make_plan("gpt2", GPT2, chip)["twins"][0]["power"]
    assert power == {"watts": 295.0, "basis": "largest power of the desktop, support.apple.com/102027"}


def test_where_each_twin_computes() -> None:
    def places(hardware: Hardware, **train: Any) -> list[tuple[str, str]]:
        config = replace(GPT2, train=replace(GPT2.train, **train))
        return [(one["device"], one["dtype"]) for one in make_plan("gpt2", config, hardware)["twins"]]

    h200 = named_chip("H200", None)
    assert places(h200) == [("gpu", "bfloat16"), ("cuda", "bfloat16")]
    assert places(Hardware()) == [("cpu", "float32"), ("cpu", "float32")]
    assert places(M3_MAX, device="cpu") == [("cpu", "float32"), ("cpu", "float32")]
    assert places(M3_MAX, dtype="bfloat16") == [("gpu", "bfloat16"), ("mps", "bfloat16")]


@given(bound=st.integers(0, 1000), limit=st.integers(1, 1000))
def test_the_largest_number_for_which_something_holds(bound: int, limit: int) -> None:
    assert largest(lambda n: n <= bound, limit) == min(bound, limit)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("memory", [1 << 20, 1 << 30, 16 << 30])
def test_the_largest_batch_fits_and_one_more_does_not(memory: int, checkpointing: bool) -> None:
    size = largest_batch(GPT2, "mlx", "cpu", memory, checkpointing=checkpointing)
    assert size is not None

    def total(batch: int) -> int:
        train = replace(GPT2.train, batch_size=batch, gradient_checkpointing=checkpointing)
        return memory_plan(replace(GPT2, train=train), "mlx").total

    assert total(size + 1) > memory
    assert size == 0 or total(size) <= memory
    assert (size == 0) == (memory < 2 << 30)


def test_usable_memory_of_a_mac_computing_on_its_cpu() -> None:
    assert usable_memory(M3_MAX, "cpu")[0] == int(0.9 * (64 << 30))
    assert usable_memory(Hardware()) == (None, "memory unknown")


def test_compute_optimal_tokens() -> None:
    """70 billion parameters: Chinchilla's own 1.4 trillion tokens by the rule; the fit is stationary there."""
    found = compute_optimal(70 * 10**9)
    assert found["rule"]["tokens"] == 1.4e12

    def loss(parameters: float, tokens: float) -> float:
        return float(1.8172 + 482.01 / parameters**0.3478 + 2085.43 / tokens**0.3658)

    N, D = 70e9, found["fit"]["tokens"]
    assert found["fit"]["loss"] == pytest.approx(loss(N, D))
    assert all(loss(N * shift, D / shift) > loss(N, D) for shift in (0.9, 1.1))
    assert 15 < D / N < 30


@pytest.mark.parametrize(
    ("name", "chip", "kind", "cores"),
    [
        ("M3 Max", "Apple M3 Max", "apple", 40),
        ("apple m1", "Apple M1", "apple", 8),
        ("Apple M4 Pro", "Apple M4 Pro", "apple", 20),
        ("m2  ultra", "Apple M2 Ultra", "apple", 76),
        ("M5 Max", "Apple M5 Max", "apple", 40),
        ("M9 Max", "Apple M9 Max", "apple", None),
        ("h200", "NVIDIA H200", "cuda", None),
        ("NVIDIA RTX 4090", "NVIDIA GeForce RTX 4090", "cuda", None),
    ],
)
def test_chips_by_name(name: str, chip: str, kind: str, cores: int | None) -> None:
    found = named_chip(name, None)
    assert (found.kind, found.chip, found.gpu_cores) == (kind, chip, cores)
    assert (found.memory_bytes is None) == (kind == "apple")


def test_a_smaller_gpu_of_the_same_chip() -> None:
    plan = make_plan("gpt2", GPT2, named_chip("M3 Max", 30))
    assert plan["twins"][0]["peak"]["tflops"] == pytest.approx(10.5984)


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("64GB", 1 << 30, 64 << 30),
        ("64", 1 << 30, 64 << 30),
        ("1.5 TB", 1 << 30, 3 << 39),
        ("512MiB", 1 << 30, 512 << 20),
        ("8g", 1 << 30, 8 << 30),
        ("2.5B", 1, 2_500_000_000),
        ("300M", 1, 300_000_000),
        ("1e9", 1, 10**9),
        ("12_000", 1, 12_000),
        ("12,000", 1, 12_000),
    ],
)
def test_amounts(text: str, unit: int, value: int) -> None:
    assert parse_amount(text, "--flag", unit) == value


@pytest.mark.parametrize("text", ["", "GB", "many", "-3", "0", "64QB", "1.2.3", "nan", "inf"])
def test_what_is_no_amount(text: str) -> None:
    for unit in (1, 1 << 30):
        with pytest.raises(UserError, match="--flag"):
            parse_amount(text, "--flag", unit)


def test_figures_for_people() -> None:
    assert [amount(x) for x in (950, 38_597_376, 2.49e9, 1.4e12)] == ["950", "38.6M", "2.49B", "1.4T"]
    assert [memory(x) for x in (None, 512 << 20, 5 << 28)] == ["-", "512 MiB", "1.25 GiB"]
    assert [long_duration(x) for x in (7.0, 720.0, 12_240.0, 483_840.0)] == ["7 s", "12 min", "3.4 h", "5.6 days"]


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_can_be_planned(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    plan = run(capsys, "--preset", preset, "--chip", "M4", "--memory", "32GB")
    assert plan["name"] == preset
    assert all(one["largest_batch"] >= 0 and one["seconds"] > 0 for one in plan["twins"])


def test_the_table_fits_80_columns_and_says_what_is_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--preset", "gpt2", "--chip", "M3 Max", "--memory", "64GB", "--tokens", "2.5B"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert [line for line in text.splitlines() if line != line.rstrip()] == []
    for part in (
        "124,439,808",
        "MFU: assumed",
        "unchecked on GPUs",
        "Hoffmann et al. 2022",
        "largest batch",
        "2.5B tokens",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("flag", "rows"),
    [
        ("--no-gradient-checkpointing", ["largest batch (here 3)", "  with checkpointing"]),
        ("--gradient-checkpointing", ["largest batch", "  with checkpointing (here 3)"]),
    ],
)
def test_the_batch_stands_beside_the_row_that_is_its_own(
    flag: str, rows: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--preset", "gpt2", "--chip", "M3 Max", "--memory", "64GB", "--batch-size", "3", flag])
    lines = capsys.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("largest batch"))
    assert [re.split(r"\s{3,}", line)[0] for line in lines[first : first + 2]] == rows


def test_flags_and_files_change_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = run(capsys, "--preset", "gpt2", "--n-layer", "24", "--chip", "M1", "--memory", "16GB")
    assert plan["config"]["model"]["n_layer"] == 24
    toml = tmp_path / "mine.toml"
    toml.write_text("[model]\nvocab_size = 300\nn_layer = 3\n")
    plan = run(capsys, "--config", str(toml))
    assert (plan["name"], plan["config"]["model"]["n_layer"]) == ("mine", 3)
    main(["--json", str(tmp_path / "plan.json")])
    assert json.loads((tmp_path / "plan.json").read_text())["version"] == 1
    assert "compute-optimal" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--preset", "gtp2"], "did you mean 'gpt2'?"),
        (["--chip", "M3 Mx"], "did you mean 'M3 Max'?"),
        (["--memory", "much"], "--memory much: write it as 64GB"),
        (["--tokens", "0"], "--tokens 0: write it as 300M or 2.5B"),
        (["--mfu", "30"], "mfu is 30.0"),
        (["--watts", "0"], "watts is 0.0"),
        (["--gpu-cores", "0"], "gpu_cores is 0"),
        (["--gpu-cores", "7"], "add --chip"),
        (["--chip", "M3 Max", "--gpu-cores", "7"], "an M3 Max has 40 GPU cores"),
        (["--chip", "M1", "--gpu-cores", "10"], "an M1 has 8 GPU cores"),
        (["--mfu", "0.3", "--result", "x.json"], "leave one out"),
        (["--preset", "gpt2", "--n-head", "5"], "n_head 5 does not divide"),
        (["--dataset", "mine", "--preset", "stories-cpu"], "add --vocab-size"),
        (["--config", "nowhere.toml"], "cannot read configuration nowhere.toml: No such file or directory"),
        (["--json", "/nowhere/plan.json"], "cannot write /nowhere/plan.json"),
    ],
)
def test_mistakes_are_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        main(argv)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_as_a_script() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--chip", "Pentium"], capture_output=True, text=True, cwd="/")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no chip 'Pentium'")
    assert len(done.stderr.splitlines()) == 1


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['plan.py', '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    print('ended', end.code, sorted({'torch', 'mlx', 'numpy', 'tokenizers', 'tiktoken'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "ended 0 []", done.stderr


def test_a_batch_that_was_not_looked_beyond_is_no_largest_one(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--chip", "M3 Ultra", "--memory", "500GB", "--n-layer", "1", "--n-embd", "8", "--n-head", "1"])
    assert re.search(r"^largest batch.* 65,536 or more", capsys.readouterr().out, re.MULTILINE)


def test_a_tiny_configuration_by_default() -> None:
    """The default shape needs no preset: planning works for whatever RunConfig says."""
    config = RunConfig(model=ModelConfig(vocab_size=10), train=TrainConfig(max_steps=2, batch_size=3))
    assert make_plan("x", config, Hardware())["tokens"]["count"] == 2 * 3 * config.model.block_size


def test_a_base_in_few_bits_takes_less(capsys: pytest.CaptureFixture[str]) -> None:
    totals, reads = [], []
    for flags in ([], ["--base-bits", "8"], ["--base-bits", "4"]):
        main(["--preset", "smollm-135m", "--adapter", "lora", "--chip", "M3 Max", "--json", "-", *flags])
        twin = json.loads(capsys.readouterr().out)["twins"][0]
        totals.append(twin["memory"]["weights"])
        reads.append(twin["decode"]["bytes_per_token"])
    assert totals[0] > totals[1] > totals[2]
    assert reads[0] > reads[1] > reads[2]
    assert totals[2] < 0.2 * totals[0], "4 bits and a scale and a bias of 32 for 64 of them: 5 of 32"
    with pytest.raises(UserError, match="add --adapter lora"):
        main(["--preset", "smollm-135m", "--base-bits", "4"])
