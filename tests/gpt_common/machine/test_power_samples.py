"""Samples of power: every chip's, with whatever is missing in them, and the sums by hand."""

from __future__ import annotations

import json
import plistlib
from dataclasses import replace

import pytest
from asitop.parsers import parse_cpu_metrics  # type: ignore[import-untyped]

from gpt_common.machine.power_samples import (
    Energy,
    Sample,
    integrate,
    parse_macmon,
    parse_nvidia_smi,
    parse_powermetrics,
)
from tests.gpt_common.machine.recordings import CLUSTERS, USAGE, WATTS, macmon, plist, powermetrics, printed, virtual


@pytest.mark.parametrize("chip", CLUSTERS)
@pytest.mark.parametrize("milliseconds", [200.0, 1000.0])
def test_every_chip_gives_watts(chip: str, milliseconds: float) -> None:
    sample = parse_powermetrics(powermetrics(CLUSTERS[chip], milliseconds))
    assert sample is not None
    assert sample.seconds == milliseconds / 1000
    assert sample.watts == pytest.approx(35.0, rel=1e-12)
    assert sample.parts == pytest.approx(WATTS, rel=1e-12)
    assert sample.thermal_pressure == "Nominal"
    assert sample.gpu_usage == pytest.approx(USAGE, rel=1e-12)


KEYS = [f"{part}_{what}" for part in WATTS for what in ("energy", "power")] + ["combined_power", "clusters"]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("chip", CLUSTERS)
def test_no_key_alone_loses_a_sample(chip: str, key: str) -> None:
    """The total and every part stay what they are: what is missing follows from what is left."""
    document = plist(CLUSTERS[chip])
    del document["processor"][key]
    sample = parse_powermetrics(printed(document))
    assert sample is not None
    assert sample.watts == pytest.approx(35.0, rel=1e-12)
    assert sample.parts == pytest.approx(WATTS, rel=1e-12)


@pytest.mark.parametrize("part", WATTS)
def test_a_part_that_nothing_tells_is_left_out(part: str) -> None:
    document = plist(CLUSTERS["M5"])
    for what in ("energy", "power"):
        del document["processor"][f"{part}_{what}"]
    del document["gpu"]["gpu_energy"]
    sample = parse_powermetrics(printed(document))
    assert sample is not None
    assert sample.watts == pytest.approx(35.0, rel=1e-12)
    assert sample.parts == pytest.approx({name: watts for name, watts in WATTS.items() if name != part})
    del document["processor"]["combined_power"]
    sample = parse_powermetrics(printed(document))
    if part == "ane":
        assert sample is not None
        assert sample.watts == pytest.approx(34.75, rel=1e-12)
    else:
        assert sample is None, "a total without CPU or GPU is none"


@pytest.mark.parametrize("key", ["timestamp", "thermal_pressure", "gpu", "hw_model"])
def test_nothing_beside_the_power_is_needed(key: str) -> None:
    document = plist(CLUSTERS["M4 Pro"])
    del document[key]
    sample = parse_powermetrics(printed(document))
    assert sample is not None
    assert sample.watts == pytest.approx(35.0, rel=1e-12)
    assert (sample.gpu_usage is None) == (key == "gpu")
    assert (sample.thermal_pressure is None) == (key == "thermal_pressure")


@pytest.mark.parametrize("idle", [-0.1, 1.2, float("nan"), "busy", True, []])
def test_a_usage_that_is_no_share_is_none(idle: object) -> None:
    document = plist(CLUSTERS["M1"])
    document["gpu"]["idle_ratio"] = idle
    sample = parse_powermetrics(printed(document))
    assert sample is not None
    assert sample.gpu_usage is None


@pytest.mark.parametrize("watts", [-1.0, float("nan"), float("inf"), "many", True])
def test_a_power_that_is_no_quantity_counts_as_missing(watts: object) -> None:
    document = plist(CLUSTERS["M1"])
    document["processor"]["combined_power"] = watts
    document["processor"]["ane_energy"] = document["processor"]["ane_power"] = watts
    sample = parse_powermetrics(printed(document))
    assert sample is not None
    assert sample.watts == pytest.approx(34.75, rel=1e-12)
    assert sample.parts == pytest.approx({"cpu": 3.5, "gpu": 31.25}, rel=1e-12)


def test_a_virtual_mac_has_no_sample() -> None:
    assert parse_powermetrics(printed(virtual())) is None


def test_what_asitop_alone_would_say() -> None:
    """The two faults that are corrected are still there; when they are not, the correction must go."""
    processor = plistlib.loads(powermetrics(CLUSTERS["M1"], 200.0)[1:])
    assert parse_cpu_metrics(processor)["gpu_W"] == pytest.approx(WATTS["gpu"] / 5)
    assert parse_cpu_metrics(processor)["package_W"] == pytest.approx(35.0)
    for chip in ("M5", "M5 Pro", "M5 Max"):
        with pytest.raises(KeyError):
            parse_cpu_metrics(plistlib.loads(powermetrics(CLUSTERS[chip])[1:]))


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"\x00",
        b"powermetrics must be invoked as the superuser\n",
        powermetrics(CLUSTERS["M1"])[:400] + b"</plist>",
        powermetrics(CLUSTERS["M1"], processor={"clusters": []}),
        powermetrics(CLUSTERS["M1"], elapsed_ns=0),
        powermetrics(CLUSTERS["M1"], elapsed_ns="x"),
    ],
)
def test_what_is_no_sample_is_none(document: bytes) -> None:
    assert parse_powermetrics(document) is None


def test_samples_of_one_second_differ_by_their_length() -> None:
    """The date in a sample has whole seconds: five samples of 200 ms share it."""
    keys = {parse_powermetrics(powermetrics(CLUSTERS["M1"], 200.0 + i / 1000)).key for i in range(5)}  # type: ignore[union-attr]
    assert len(keys) == 5
    twice = [parse_powermetrics(powermetrics(CLUSTERS["M1"])).key for _ in range(2)]  # type: ignore[union-attr]
    assert twice[0] == twice[1]


@pytest.mark.parametrize(("generation", "usage"), [("pairs", USAGE / 2), ("ratios", USAGE), ("named", USAGE)])
def test_macmon(generation: str, usage: float) -> None:
    sample = parse_macmon(json.dumps(macmon(generation)).encode() + b"\n")
    assert sample is not None
    assert (sample.watts, sample.seconds, sample.gpu_usage) == (35.0, None, usage)
    assert sample.parts == WATTS
    assert sample.key == "2026-02-24T20:38:15.427569+00:00"


@pytest.mark.parametrize("key", ["timestamp", "temp", "cpu_power", "gpu_power", "ane_power", "all_power", "sys_power"])
def test_no_key_of_macmon_alone_loses_a_sample(key: str) -> None:
    line = macmon()
    del line[key]
    sample = parse_macmon(json.dumps(line).encode())
    assert sample is not None
    assert sample.watts == 35.0
    assert sample.gpu_usage == USAGE
    assert sample.parts == {part: watts for part, watts in WATTS.items() if f"{part}_power" != key}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"Error: no such device\n",
        b"{}\n",
        b"[35.0]\n",
        b"null\n",
        b"[" * 100_000,
        b'{"cpu": 12, "memory": 40}\n',
        b'{"cpu_power": 3.5, "timestamp": "now"}\n',
        b'{"all_power": "35"}\n',
        b'{"all_power": NaN}\n',
    ],
)
def test_what_is_no_line_of_macmon_is_none(line: bytes) -> None:
    assert parse_macmon(line) is None


def test_nvidia_smi() -> None:
    known = Sample(key="2026/01/31 12:00:00.123", seconds=None, watts=71.5)
    assert parse_nvidia_smi(b"2026/01/31 12:00:00.123, 71.50, 98\n") == replace(known, gpu_usage=0.98)
    assert parse_nvidia_smi(b"2026/01/31 12:00:00.123, 71.50, [N/A]\n") == known
    assert parse_nvidia_smi(b"2026/01/31 12:00:00.123, 71.50\n") == known
    assert parse_nvidia_smi(b"2026/01/31 12:00:00.123, [N/A], 98\n") is None
    assert parse_nvidia_smi(b"No devices were found\n") is None


def total(samples: list[tuple[float, Sample]], start: float, stop: float, idle: float | None = None) -> Energy | None:
    return integrate(samples, start, stop, idle, "source", "scope")


def test_energy_is_power_times_time_inside_the_stretch() -> None:
    samples = [(1.0, Sample(1, 1.0, 10.0, {"gpu": 8.0})), (2.0, Sample(2, 1.0, 20.0, {"gpu": 15.0}))]
    energy = total(samples, 0.5, 2.0, idle=4.0)
    assert energy is not None
    assert energy.joules == pytest.approx(0.5 * 10 + 1.0 * 20)
    assert energy.parts == pytest.approx({"gpu": 0.5 * 8 + 1.0 * 15})
    assert energy.net_joules == pytest.approx(25 - 4 * 1.5)
    assert (energy.seconds, energy.source, energy.scope, energy.estimate) == (1.5, "source", "scope", True)


def test_samples_outside_do_not_count() -> None:
    samples = [(1.0, Sample(1, 1.0, 1e6)), (2.0, Sample(2, 1.0, 20.0)), (4.0, Sample(3, 1.0, 1e6))]
    energy = total(samples, 1.0, 2.0)
    assert energy is not None
    assert (energy.joules, energy.idle_watts, energy.net_joules) == (20.0, None, None)


def test_a_gap_is_filled_with_the_mean_and_a_large_one_refused() -> None:
    samples = [(1.0, Sample(1, 1.0, 30.0))]
    energy = total(samples, 0.0, 1.5)
    assert energy is not None
    assert energy.joules == pytest.approx(45.0)
    assert total(samples, 0.0, 2.1) is None
    assert total([], 0.0, 1.0) is None
    assert total(samples, 1.0, 1.0) is None


def test_samples_without_a_length_reach_back_to_the_one_before() -> None:
    samples = [(1.0, Sample(1, None, 99.0)), (1.25, Sample(2, None, 10.0)), (2.0, Sample(3, None, 20.0))]
    energy = total(samples, 1.0, 2.0)
    assert energy is not None
    assert energy.joules == pytest.approx(0.25 * 10 + 0.75 * 20)


def test_usage_is_the_mean_over_the_time_that_is_told() -> None:
    usages = [(1.0, 0.5), (3.0, 1.0), (4.0, None)]
    energy = total([(end, Sample(end, None if end > 1 else 1.0, 10.0, gpu_usage=usage)) for end, usage in usages], 0, 4)
    assert energy is not None
    assert energy.gpu_usage == pytest.approx((0.5 * 1 + 1.0 * 2) / 3)


def test_heat_once_seen_is_reported() -> None:
    levels = ["Nominal", "Heavy", "Nominal"]
    samples = [(i + 1.0, Sample(i, 1.0, 1.0, thermal_pressure=level)) for i, level in enumerate(levels)]
    hot, cool, silent = (
        total(samples, 0.0, 3.0),
        total(samples[:1], 0.0, 1.0),
        total([(1.0, Sample(1, 1.0, 1.0))], 0, 1),
    )
    assert hot is not None
    assert cool is not None
    assert silent is not None
    assert (hot.thermal_pressure, cool.thermal_pressure, silent.thermal_pressure) == ("Heavy", "Nominal", None)
