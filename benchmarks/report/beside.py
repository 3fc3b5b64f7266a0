"""Rows beside the row that they are to be compared with: ours beside peers', quantised beside float."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.measuring.backends import ending
from benchmarks.measuring.samples import median_of
from benchmarks.readings import Generation
from benchmarks.report.findings import comparison, measured, ratio_of
from benchmarks.report.pairs import Ratio, paired_ratio
from benchmarks.results import BackendRow, CaseResult
from gpt_common.adapting.quantisation import Grid
from gpt_common.words import in_bytes


def beside(case: CaseResult) -> list[str]:
    """Lines on both."""
    return [*beside_peers(case), *(line for one in beside_floats(case) for line in _lines(one))]


def beside_peers(case: CaseResult) -> list[str]:
    """Each of our rows over each peer on the same framework and device, as a ratio of times."""
    rows = [row for row, _ in measured(case)]
    lines = []
    for peer in (row for row in rows if row.peer):
        for own in (
            row for row in rows if not row.peer and (row.framework, row.device) == (peer.framework, peer.device)
        ):
            if (ratio := _over(case, own, peer)) is not None:
                interval = "" if ratio.low is None else f" (95 % interval {ratio.low:.2f} to {ratio.high:.2f})"
                lines.append(f"{own.backend} / {peer.backend}: {ratio.value:.2f} of its time{interval}")
    return lines


class BesideFloats(NamedTuple):
    """A row with quantised matrices, and the float row of the same backend."""

    row: BackendRow
    floats: BackendRow
    bits_per_weight: float | None
    """Of all weights, those that stay float too; None if it is not known what they take."""
    step: Ratio | None
    """Time of a step over the float row's."""
    reading: Ratio | None
    """The same of the longest prompt; None where generation was not measured."""
    writing: Ratio | None
    """The same of a token after it."""


def beside_floats(case: CaseResult) -> list[BesideFloats]:
    """Every measured row with quantised matrices whose float row was measured too, the fastest first."""
    rows = {row.backend: row for row, _ in measured(case)}
    found = []
    for row in rows.values():
        if row.bits is None or row.group_size is None:
            continue
        floats = rows.get(row.backend.removesuffix(ending(Grid(row.bits, row.group_size))))
        if floats is None:
            continue
        weights = None
        if row.weight_bytes and floats.weight_bytes:
            weights = 32 * row.weight_bytes / floats.weight_bytes
        reading, writing = _generation_over(row.generation, floats.generation)
        found.append(BesideFloats(row, floats, weights, _over(case, row, floats), reading, writing))
    return found


def _lines(one: BesideFloats) -> Iterator[str]:
    row, floats = one.row, one.floats
    if one.bits_per_weight and row.weight_bytes and floats.weight_bytes:
        yield (
            f"{row.backend}: weights {in_bytes(row.weight_bytes)}, {one.bits_per_weight:.2f} bits each; "
            f"in float32 {in_bytes(floats.weight_bytes)}"
        )
    for what, ratio in (("step", one.step), ("prompt read", one.reading), ("token written", one.writing)):
        if ratio is not None:
            interval = "" if ratio.low is None else f" (95 %: {ratio.low:.2f} to {ratio.high:.2f})"
            yield f"{row.backend} / {floats.backend}: {what} {ratio.value:.2f} times as long{interval}"


def _over(case: CaseResult, row: BackendRow, other: BackendRow) -> Ratio | None:
    """Time of a step of one row over the other's."""
    found = comparison(case, row.backend, other.backend)
    if found is None:
        return None
    return ratio_of(found) if found.slower == row.backend else ratio_of(found).inverse()


def _generation_over(one: Generation | None, other: Generation | None) -> tuple[Ratio | None, Ratio | None]:
    """Times of the longest prompt and of a token after it over the other's, paired within rounds."""
    if one is None or other is None:
        return None, None
    pairs = [
        [_by_round(found, seconds) for found, seconds in ((one, a), (other, b))]
        for a, b in (
            (one.lengths[-1].prompt_seconds, other.lengths[-1].prompt_seconds),
            (one.lengths[-1].token_seconds, other.lengths[-1].token_seconds),
        )
    ]
    reading, writing = (
        paired_ratio([a.get(n) for n in sorted(a.keys() | b.keys())], [b.get(n) for n in sorted(a.keys() | b.keys())])
        for a, b in pairs
    )
    return reading, writing


def _by_round(found: Generation, seconds: Sequence[float | None]) -> dict[int, float | None]:
    """Median of each round's repetitions, which stand one round behind the other."""
    each = len(seconds) // len(found.rounds) if found.rounds else 0
    parts = {number: seconds[i * each : (i + 1) * each] for i, number in enumerate(found.rounds)}
    return {number: median_of([s for s in part if s is not None]) for number, part in parts.items()}
