"""Speeds that a plan takes from a benchmark's result: which row, of which dtype, and of no other chip."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.planning import Measured, make_plan, measured_speeds
from benchmarks.results import Settings, to_json
from gpt_common.config import TrainConfig, load_preset
from gpt_common.errors import UserError
from gpt_common.machine.hardware import Hardware
from tests.benchmarks.recipes import HARDWARE, make_result


def result_file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A made-up result with these rows, of steps of 10^12 operations."""
    result = json.loads(to_json(make_result(backends="mps", peers="", settings=Settings(rounds=1, cooldown=0.0))))
    (case,) = result["cases"]
    like = case["rows"][0]
    energy = {"joules_per_token": 1.0, "net_joules_per_token": None, "source": "x", "scope": "x", "estimate": True}
    case["name"], case["work"]["flops_per_step"], case["rows"] = "shakespeare-char", 1e12, []
    for changes in rows:
        watts, seconds, products = changes.pop("watts"), changes.pop("seconds"), changes.pop("products", {})
        summary = {**like["summary"], "seconds_per_step": seconds, "energy": watts and {**energy, "watts": watts}}
        processes = [{**process, "products": products} for process in like["processes"]]
        row = {**like, **changes, "processes": processes, "summary": None if seconds is None else summary}
        case["rows"].append(row)
    path = folder / "host.json"
    path.write_text(json.dumps(result))
    return path


def row(label: str, seconds: float | None, watts: float | None = None, **changes: Any) -> dict[str, Any]:
    framework = "mlx" if label.startswith("mlx") else "torch"
    device = {"mlx": "gpu", "mlx again": "gpu", "mlx-cpu": "cpu", "cpu": "cpu", "cuda": "cuda"}.get(label, "mps")
    made_up = {"label": label, "framework": framework, "device": device, "seconds": seconds, "watts": watts}
    return {**made_up, **changes}


def test_the_fastest_row_of_each_twin_is_read(tmp_path: Path) -> None:
    rows = [
        row("mps", 0.5, 30.0),
        row("cpu", 5.0),
        row("mlx", 0.25),
        row("mlx again", 0.01, control=True),
        row("transformers", 0.01, peer="transformers"),
        row("cuda", None),
    ]
    found = measured_speeds(result_file(tmp_path, rows), HARDWARE, TrainConfig(dtype="float32"))
    assert found["mlx"] == Measured(4e12, None, "mlx, shakespeare-char in host.json")
    assert found["torch"] == Measured(2e12, 30.0, "mps, shakespeare-char in host.json")


def test_a_case_in_the_trainer_s_dtype_is_taken_before_a_faster_one(tmp_path: Path) -> None:
    path = result_file(tmp_path, [row("mlx", 0.25), row("mps", 0.5)])
    mac = replace(HARDWARE, kind="apple")
    found = measured_speeds(path, mac, TrainConfig())
    # On a Mac MLX trains in bfloat16 and PyTorch in float32, in which this was measured.
    assert found["mlx"].source == "mlx, shakespeare-char in host.json (gpu, float32; the trainer takes gpu, bfloat16)"
    assert found["torch"].source == "mps, shakespeare-char in host.json"

    result = json.loads(path.read_text())
    half = json.loads(json.dumps(result["cases"][0]))
    half["name"], half["work"]["dtype"] = "in half", "bfloat16"
    for each in half["rows"]:
        each["dtype"], each["summary"]["seconds_per_step"] = "bfloat16", 1.0
    result["cases"].append(half)
    path.write_text(json.dumps(result))
    found = measured_speeds(path, mac, TrainConfig())
    assert found["mlx"] == Measured(1e12, None, "mlx, in half in host.json")
    assert found["torch"].flops_per_second == 2e12


def test_a_cpu_s_speed_is_no_gpu_s(tmp_path: Path) -> None:
    mac = replace(HARDWARE, kind="apple")
    found = measured_speeds(result_file(tmp_path, [row("cpu", 0.1), row("mps", 0.5)]), mac, TrainConfig())
    assert found["torch"] == Measured(2e12, None, "mps, shakespeare-char in host.json")
    found = measured_speeds(result_file(tmp_path, [row("cpu", 0.1)]), mac, TrainConfig())
    assert found["torch"].source.endswith("(cpu, float32; the trainer takes mps, float32)")


def test_where_no_peak_is_published_the_fastest_product_takes_its_place_and_says_so(tmp_path: Path) -> None:
    m5 = replace(HARDWARE, chip="Apple M5 Max")
    products = {"1024": 0.001, "2048": 0.0005}  # 2.1 and 34.4 TFLOP/s
    rows = [row("mlx", 0.05, products=products), row("mps", 0.1, products=products)]
    path = result_file(tmp_path, rows)
    path.write_text(path.read_text().replace(HARDWARE.chip, m5.chip))
    measured = measured_speeds(path, m5, TrainConfig())
    # MLX would train in bfloat16: a product in float32 says nothing of that.
    assert measured["mlx"].peak is None
    found = measured["torch"].peak
    assert found is not None
    assert found.tflops == pytest.approx(2 * 2048**3 / 0.0005 / 1e12)
    where = "no specification: mps, shakespeare-char in host.json"
    assert found.source == f"measured 34.4 TFLOP/s in products of 2048 x 2048, {where}"

    mlx, torch = make_plan("gpt2", load_preset("gpt2"), m5, measured=measured)["twins"]
    assert torch["peak"] == {"tflops": found.tflops, "source": found.source}
    assert torch["speed"]["mfu"] == pytest.approx(10 / found.tflops)
    assert mlx["peak"] is mlx["speed"]["mfu"] is None
    known = make_plan("gpt2", load_preset("gpt2"), HARDWARE, measured=measured)["twins"][1]
    assert known["peak"]["source"].startswith("derived")


def test_results_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing was measured"):
        measured_speeds(result_file(tmp_path, [row("mlx", None)]), HARDWARE, TrainConfig())
    with pytest.raises(UserError, match=f"measured on {HARDWARE.chip}, and the plan is for Apple M9: --chip"):
        measured_speeds(result_file(tmp_path, [row("mlx", 0.5)]), Hardware(chip="Apple M9"), TrainConfig())
    for text in ("", "[]", "{}", '{"cases": [1]}', '{"cases": [{"rows": [{}]}]}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(UserError, match="is not a benchmark result"):
            measured_speeds(tmp_path / "bad.json", HARDWARE, TrainConfig())
    with pytest.raises(UserError, match=r"cannot read .*absent\.json: No such file or directory$"):
        measured_speeds(tmp_path / "absent.json", HARDWARE, TrainConfig())


def test_steps_beside_words_are_no_measure_of_other_steps(tmp_path: Path) -> None:
    """A plan for a whole model takes none of adapters; one of adapters beside words their own row first."""
    rows = [row("mps", 0.5), row("mps-4bit", 0.25, device="mps", bits=4, group_size=64)]
    path = result_file(tmp_path, rows)
    train = TrainConfig(dtype="float32")
    assert measured_speeds(path, HARDWARE, train)["torch"].flops_per_second == 2e12
    result = json.loads(path.read_text())
    result["cases"][0]["work"] |= {"adapter": "lora, rank 8", "trained_parameters": 9}
    result["cases"][0]["rows"][1]["summary"]["seconds_per_step"] = 1.0
    path.write_text(json.dumps(result))
    with pytest.raises(UserError, match="nothing was measured in it that this plan could go by"):
        measured_speeds(path, HARDWARE, train)
    for bits, rate in ((None, 2e12), (3, 2e12), (4, 1e12)):
        found = measured_speeds(path, HARDWARE, train, adapts=True, bits=bits)
        assert found["torch"].flops_per_second == rate
