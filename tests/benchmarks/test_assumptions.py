"""What a plan assumes where nothing is known of a machine: a figure in every row, and the words that say so."""

from __future__ import annotations

import re

import pytest

from benchmarks.assumptions import assumed_memory, assumed_peak, assumed_power
from benchmarks.plan import main
from gpt_common.machine.hardware import Hardware
from tests.benchmarks.test_plan import run


@pytest.mark.parametrize(
    ("argv", "assumed"),
    [
        (["--chip", "M3 Max"], ["memory: 36.00 GiB assumed, the least that the M3 Max", "energy: 145 W, assumed"]),
        (
            ["--chip", "M5 Max"],
            ["memory: 36.00 GiB assumed, the least that the M5 Max", "peak: an estimate, no specification: 40 cores"],
        ),
        (
            ["--chip", "M9"],
            ["memory: 16.00 GiB assumed", "peak: assumed, that of the M5, an estimate", "energy: 65 W, assumed"],
        ),
        (["--chip", "H200"], ["MFU: assumed"]),
        (["--chip", "M3 Max", "--device", "cpu"], ["peak: assumed, 8 cores x 32 operations x 3 GHz"]),
        ([], ["peak: assumed", "energy: "]),
    ],
)
def test_every_row_has_figures_and_what_is_assumed_is_said(
    argv: list[str], assumed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's command among them: a dash in a table helps nobody who plans."""
    monkeypatch.setattr("benchmarks.plan.detect", lambda: Hardware(chip="AMD EPYC 9654"))  # and no more of it
    main(["--preset", "gpt2", *argv])
    text = capsys.readouterr().out
    tables, notes = text.split("tokens: 600,000 steps")
    assert not re.search(r"\s-\s", tables)
    assert "unknown" not in tables
    assert max(map(len, text.splitlines())) <= 80
    for words in assumed:
        assert words in " ".join(notes.split())
    plan = run(capsys, "--preset", "gpt2", *argv)
    assert all(one["seconds"] > 0 and one["joules"] > 0 and one["largest_batch"] >= 0 for one in plan["twins"])


@pytest.mark.parametrize("chip", ["Apple M3 Max", "Apple M5", "Apple M11 Ultra", "Apple Paravirtual device"])
def test_an_apple_chip_is_taken_for_the_nearest_that_is_known(chip: str) -> None:
    hardware = Hardware(chip=chip, kind="apple")
    assert assumed_memory(hardware)[0] >= 8 << 30
    assert assumed_peak(hardware, "gpu", "bfloat16").tflops > 2
    assert assumed_power(hardware)[0] >= 39
    assert assumed_peak(Hardware(chip="NVIDIA T4", kind="cuda"), "cuda", "float32").tflops == 30.3
