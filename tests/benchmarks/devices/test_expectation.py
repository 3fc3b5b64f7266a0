"""What several devices make of a step: by hand, in the table, and where it is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.devices import expectation
from benchmarks.devices.expectation import COPIES, NOT_KNOWN, UPDATE, expected, sum_seconds, summed_numbers
from benchmarks.devices.links import CPU_MEMORY, LINKS
from benchmarks.devices.localhost import Load, Losses
from benchmarks.plan import main
from gpt_common.config import load_preset
from gpt_common.errors import UserError
from gpt_common.network.flops import parameter_count
from gpt_common.training.ranks.agreement import WISHES

M3 = ("--preset", "gpt2", "--chip", "M3 Max", "--memory", "64GB")


def planned(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    main([*argv, "--json", "-"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_gpt2_on_four_macs_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, *M3, "--devices", "4", "--link", "TB5", "--tokens", "1B")
    count = parameter_count(load_preset("gpt2").with_vocabulary(50257).model) + 1 + WISHES
    assert plan["devices"] == {"count": 4, "link": "TB5", "numbers": count, "bytes": 4 * count}
    one = plan["twins"][0]
    several, alone = one["devices"], one["seconds"] * 491_520 / 1e9
    assert several["step"]["alone"] == pytest.approx(alone)
    update, copies = UPDATE * 4 * count / 400e9, COPIES * 4 * count / 400e9  # Apple's bandwidth of an M3 Max
    total = 6 * 50e-6 + 6 / 4 * 4 * count / 3.5e9
    assert several["step"]["sum"] == pytest.approx(total)
    assert several["step"]["seconds"] == pytest.approx((alone - update) / 4 + update + copies + total)
    assert several["efficiency"] == pytest.approx(alone / 4 / several["step"]["seconds"])
    assert several["tokens_per_second"] == pytest.approx(491_520 / several["step"]["seconds"])
    assert several["tokens_per_second_per_device"] == pytest.approx(several["tokens_per_second"] / 4)
    assert several["memory_bytes"] == one["memory"]["total"] + 8 * count
    assert several["fits"] is True


def test_loads_of_experts_are_added_up_too_and_frozen_weights_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    deepseek = load_preset("deepseek-tiny").with_vocabulary(54)
    model = deepseek.model
    routers = sum(model.has_experts(layer) for layer in range(model.n_layer))
    assert summed_numbers(deepseek) == parameter_count(model) + 1 + routers * model.n_expert + WISHES
    whole = planned(capsys, *M3, "--devices", "2", "--link", "10GbE")
    lora = planned(capsys, *M3, "--devices", "2", "--link", "10GbE", "--adapter", "lora")
    assert lora["devices"]["numbers"] < whole["devices"]["numbers"] / 50
    assert lora["twins"][0]["devices"]["step"]["sum"] < whole["twins"][0]["devices"]["step"]["sum"] / 50


@given(st.floats(1e-4, 100), st.integers(1, 10**10), st.integers(2, 512), st.floats(0, 100), st.floats(1e9, 1e13))
def test_no_device_is_worth_more_than_one(alone: float, count: int, devices: int, total: float, memory: float) -> None:
    found = expected(alone, count, devices, total, memory)
    assert 0 < found.efficiency <= 1 + 1e-9
    assert found.step >= total
    assert min(found.compute, found.update, found.copies, found.sum) >= 0
    assert expected(alone, count, 1, total, memory).step == pytest.approx(alone)


@pytest.mark.parametrize("link", LINKS)
def test_what_is_assumed_of_a_link_is_less_than_its_nominal_rate(link: str) -> None:
    found = LINKS[link]
    assert found.rate < found.nominal
    assert sum_seconds(10**8, 2, found) > 4e8 / found.nominal
    assert sum_seconds(1, 8, found) > 14 * found.latency
    assert "nominal" in found.basis
    assert "assumed" in found.basis


def test_what_each_waits_is_added_and_counts_against_efficiency() -> None:
    step = expected(1.0, 10**7, 2, 0.25, 1e10)
    assert step.waits is None
    waiting = replace(step, waits=0.125)
    assert waiting.step == pytest.approx(step.step + 0.125, rel=1e-12)
    assert waiting.between == step.between == pytest.approx(step.step - 0.25, rel=1e-12)
    assert waiting.efficiency == pytest.approx(1.0 / (2 * (step.step + 0.125)), rel=1e-12)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int, Load]]:
    """What is asked of the ranks on this machine, which answer at once: 250 ms, and 125 ms."""
    asked: list[tuple[str, int, int, Load]] = []

    def measured(twin: str, ranks: int, numbers: int, load: Load) -> Losses:
        asked.append((twin, ranks, numbers, load))
        return Losses(0.25, 0.125, "measured here, 250 ms", "measured here, 125 ms beyond both")

    monkeypatch.setattr(expectation, "measured", measured)
    return asked


HERE = ("--preset", "stories-cpu", "--device", "cpu", "--grad-accum-steps", "2")


def test_localhost_measures_and_counts_one_core_for_each(
    capsys: pytest.CaptureFixture[str], asked: list[tuple[str, int, int, Load]]
) -> None:
    one = planned(capsys, *HERE)
    two = planned(capsys, *HERE, "--devices", "2", "--link", "localhost")
    count = summed_numbers(load_preset("stories-cpu").with_vocabulary(54))
    assert sorted(each[:3] for each in asked) == [("mlx", 2, count), ("torch", 2, count)]
    for (*_, load), twin in zip(asked, two["twins"], strict=True):
        several, step = twin["devices"], twin["devices"]["step"]
        assert (step["sum"], step["waits"]) == (0.25, 0.125)
        assert load.seconds == pytest.approx(step["compute"] + step["update"] + step["copies"], rel=1e-12)
        assert step["seconds"] == pytest.approx(load.seconds + 0.25 + 0.125, rel=1e-12)
        assert (load.config.model.n_embd, load.config.train.grad_accum_steps) == (64, 2)
        assert several["link"] == "measured here, 250 ms"
        assert several["waits"] == "measured here, 125 ms beyond both"
        assert several["memory_rate"]["bytes_per_second"] == CPU_MEMORY
    cores = one["machine"]["cores"] or 8
    assert two["twins"][0]["peak"]["tflops"] == pytest.approx(one["twins"][0]["peak"]["tflops"] / cores)


def test_what_ranks_here_lose_has_a_row_and_a_line(
    capsys: pytest.CaptureFixture[str], asked: list[tuple[str, int, int, Load]]
) -> None:
    main([*HERE, "--devices", "2", "--link", "localhost"])
    out = capsys.readouterr().out
    assert len(asked) == 2
    assert max(map(len, out.splitlines())) <= 80
    row = next(line for line in out.splitlines() if "slowed and waiting" in line)
    assert row.split()[-4:] == ["125", "ms", "125", "ms"]
    assert "waiting: measured here, 125 ms beyond both" in out


def test_the_memory_of_a_known_gpu_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--preset", "gpt2", "--dtype", "bfloat16", "--devices", "4", "--link", "NVLink", "--chip")
    rates = {}
    for chip in ("H100", "L4"):
        twins = planned(capsys, *flags, chip)["twins"]
        rates[chip] = {one["devices"]["memory_rate"]["bytes_per_second"] for one in twins}
    assert rates == {"H100": {3350e9}, "L4": {300e9}}


def test_of_devices_apart_it_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    main([*M3, "--devices", "2", "--link", "TB5"])
    out = capsys.readouterr().out
    assert "slowed and waiting" not in out
    assert f"waiting: {NOT_KNOWN}" in " ".join(out.split())
    step = planned(capsys, *M3, "--devices", "2", "--link", "TB5")["twins"][0]["devices"]["step"]
    assert step["waits"] is None
    assert step["seconds"] == pytest.approx(sum(step[part] for part in ("compute", "update", "copies", "sum")))


def test_the_table_fits_80_columns_and_names_every_assumption(capsys: pytest.CaptureFixture[str]) -> None:
    main([*M3, "--devices", "2", "--link", "TB4"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    text = " ".join(out.split())
    for words in (
        "2 over TB4", "a step of one", "a step of all", "sum over the link", "efficiency", "tokens/s in all",
        "tokens/s of each", "memory of each", "40 micro-steps (grad_accum_steps), 20 of each",
        "5 GB/s each way nominal",
        "2 GB/s and 400 us a message assumed", "16.4 Gbit/s", "nothing overlaps with it", "400 GB/s",
    ):  # fmt: skip
        assert words in text, words


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--devices", "2"], "over which link? Add --link TB5 | TB4"),
        (["--link", "TB5"], "devices is 1: two or more share a step"),
        (["--devices", "0"], "devices is 0"),
        (
            ["--devices", "7", "--link", "TB5"],
            "grad_accum_steps is 40, and 7 ranks share them: make it",
        ),
        (["--devices", "2", "--link", "TB6"], "TB6"),
        (["--devices", "2", "--link", "localhost"], "add --device cpu"),
    ],
)
def test_mistakes_are_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        main([*M3, *argv])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
