"""What a released PyTorch computes wrongly on a Mac is refused there, or not asked for, and nowhere else."""

from __future__ import annotations

import dataclasses

import pytest

from gpt_common.config import load_preset
from gpt_common.errors import UserError
from gpt_common.machine import mps
from gpt_common.machine.hardware import Hardware

LARGE, SMALL = 50257, 65


@pytest.mark.parametrize(
    ("version", "place", "chip", "vocabulary", "batch", "refused"),
    [
        ("2.13.0", "mps", "Apple M1", LARGE, 4, True),
        ("2.13.0", "mps", "Apple M2 Ultra", SMALL, 512, True),
        ("2.13.0", "mps", "Apple M2 Ultra", SMALL, 511, False),
        ("2.13.0", "mps", "Apple M3 Max", LARGE, 4, False),
        ("2.13.0", "cpu", "Apple M1", LARGE, 4, False),
        ("2.14.1", "mps", "Apple M1", LARGE, 4, False),
    ],
)
def test_long_sums_are_refused_where_they_are_wrong(
    version: str, place: str, chip: str, vocabulary: int, batch: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mps, "detect", lambda: Hardware(chip=chip, kind="apple", memory_bytes=16 * 2**30))
    config = load_preset("shakespeare-char-cpu")
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, vocab_size=vocabulary, block_size=64),
        train=dataclasses.replace(config.train, batch_size=batch),
    )
    if refused:
        with pytest.raises(UserError, match=r"sums of 32767 terms and more wrong on an Apple M.*torch>=2\.14\.1"):
            mps.check_sums(config, place, version)
    else:
        mps.check_sums(config, place, version)


@pytest.mark.parametrize(
    ("place", "itemsize", "leaks"), [("mps", 2, True), ("mps", 4, False), ("cpu", 2, False), ("cuda", 2, False)]
)
def test_numbers_of_two_bytes_on_mps_are_not_trusted_with_a_mask(place: str, itemsize: int, leaks: bool) -> None:
    assert mps.mask_leaks(place, itemsize) is leaks
