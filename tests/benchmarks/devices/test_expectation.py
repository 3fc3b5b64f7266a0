"""What several devices make of a step: by hand, in the table, and where it is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.devices import expectation
from benchmarks.devices.expectation import COPIES, UPDATE, expected, sum_seconds, summed_numbers
from benchmarks.devices.links import CPU_MEMORY, LINKS
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


def test_localhost_measures_and_counts_one_core_for_each(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def measured(twin: str, ranks: int, numbers: int) -> tuple[float, str]:
        asked.append((twin, ranks, numbers))
        return 0.25, "measured here, 250 ms"

    monkeypatch.setattr(expectation, "measured_sum", measured)
    flags = ("--preset", "stories-cpu", "--device", "cpu", "--grad-accum-steps", "2")
    one = planned(capsys, *flags)
    two = planned(capsys, *flags, "--devices", "2", "--link", "localhost")
    count = summed_numbers(load_preset("stories-cpu").with_vocabulary(54))
    assert sorted(asked) == [("mlx", 2, count), ("torch", 2, count)]
    several = two["twins"][0]["devices"]
    assert several["step"]["sum"] == 0.25
    assert several["link"] == "measured here, 250 ms"
    assert several["memory_rate"]["bytes_per_second"] == CPU_MEMORY
    cores = one["machine"]["cores"] or 8
    assert two["twins"][0]["peak"]["tflops"] == pytest.approx(one["twins"][0]["peak"]["tflops"] / cores)


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


@pytest.mark.slow
@pytest.mark.parametrize("twin", ["torch", "mlx"])
def test_a_sum_is_measured_by_the_engine(twin: str) -> None:
    from benchmarks.devices.localhost import measured_sum

    seconds, basis = measured_sum(twin, 2, 10_000)
    assert 0 < seconds < 60
    assert basis.startswith("measured here, ")
