"""What probes found, in words and for programs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from gpt_common.judging.comparison import mean
from gpt_common.judging.probes.agreement import Agreement
from gpt_common.judging.probes.calibration import Calibration
from gpt_common.judging.probes.pairs import Pairs
from gpt_common.words import share

PAIRS = {"impossible": "one of them impossible", "likelier": "one of them likelier", "even": "equally likely"}


@dataclass(frozen=True)
class StoriesLoss:
    """Loss on new stories, whatever the vocabulary."""

    characters: int
    loss: float
    """Nats per character."""
    lowest: float
    """The grammar's own, nats per character."""
    error: float
    """Standard error of `loss - lowest` over stories."""
    by_letters: float
    """Of a model that knows only how often each letter occurs, nats per character."""

    @property
    def is_far(self) -> bool:
        """Whether more than half of what is to be learnt about letters alone is still open."""
        return self.loss > self.by_letters / 2


@dataclass(frozen=True)
class ProbesResult:
    """All that was asked of a model."""

    note: str | None = None
    """Why nothing, or not everything, could be asked, or should be believed."""
    loss: StoriesLoss | None = None
    agreement: tuple[Agreement, ...] = ()
    pairs: tuple[Pairs, ...] = ()
    calibration: Calibration | None = None
    questions: dict[str, tuple[int, int]] | None = None
    """Of stories-qa, by group: how many answers were right, of how many."""

    def lines(self) -> Iterator[str]:
        """The figures, 80 columns at most."""
        if self.note:
            yield from wrapped(self.note)
        if self.loss:
            above, error = self.loss.loss - self.loss.lowest, self.loss.error
            yield (
                f"  new stories: {self.loss.loss:.4f} nats/character, {above:.4f} (±{error:.4f}) above the lowest loss"
            )
        if self.agreement:
            yield ""
            yield f"  {'a fact to repeat':<18} {'items':>5} {'right':>14} {'probability':>12} {'chance':>7} {'ties':>5}"
            for found in self.agreement:
                right = f"{share(found.right)} ±{share(found.error):>5}"
                yield (
                    f"  {found.kind:<18} {found.items:>5} {right:>14} {share(found.probability):>12} "
                    f"{share(found.chance):>7} {found.ties:>5}"
                )
            hidden = sum(found.out_of_sight for found in self.agreement)
            if hidden:
                yield f"  left out: {hidden} whose fact lies further back than the model's block"
        if self.pairs:
            yield ""
            heads = f"{'pairs':>6} {'right':>8} {'ties':>5} {'log-odds':>9} {'true':>6} {'off by':>7}"
            yield f"  {'two texts, one place':<25} {heads}"
            for pairs in self.pairs:
                true = "inf" if pairs.true_log_odds is None else f"{pairs.true_log_odds:.2f}"
                off = "-" if pairs.difference is None else f"{pairs.difference:.2f}"
                yield (
                    f"  {PAIRS[pairs.group]:<25} {pairs.pairs:>6} {share(pairs.right):>8} {pairs.ties:>5} "
                    f"{pairs.log_odds:>9.2f} {true:>6} {off:>7}"
                )
        if self.questions:
            yield ""
            for group, (correct, of) in sorted(self.questions.items()):
                yield f"  {group:<31} {correct:>5} of {of:>5} right, {share(correct / of)}"
        if self.calibration:
            yield ""
            yield from calibration_lines(self.calibration)

    def as_json(self) -> dict[str, Any]:
        """The same figures."""
        found = asdict(self)
        for kind in found["agreement"]:
            del kind["verdicts"]
        if self.calibration:
            found["calibration"]["in_words"] = verdict_line(self.calibration)
        cleaned: dict[str, Any] = _without_nan(found)
        return cleaned

    def against(self, other: ProbesResult) -> Iterator[str]:
        """Kind by kind, item by item."""
        theirs = {found.kind: found for found in other.agreement}
        for mine in self.agreement:
            if mine.kind in theirs:
                both = zip(mine.verdicts, theirs[mine.kind].verdicts, strict=True)
                seen = [a - b for a, b in both if a is not None and b is not None]
                if not seen:
                    continue
                found = mean(seen)
                low, high = found.interval
                interval = f" (95 %: {low:+.1%} to {high:+.1%})" if low == low else ""
                yield f"  {mine.kind:<25} {found.value:+.1%}{interval}"
        if self.calibration and other.calibration:
            one, two = self.calibration, other.calibration
            yield (
                f"  divergence from the truth {one.divergence:.4f} against {two.divergence:.4f}; logits "
                f"{one.scale:.2f} and {two.scale:.2f} times"
            )


def calibration_lines(found: Calibration) -> Iterator[str]:
    """What calibration came to, with the reliability curve as a table."""
    yield f"  beside the true probabilities of {found.characters:,} characters in {found.stories} new stories"
    yield f"  divergence from the truth     {found.divergence:.4f} nats/character"
    yield f"  expected calibration error    {found.expected_calibration_error:.4f}, of the likeliest character"
    yield f"  misplaced probability         {found.misplaced:.4f}, of all characters"
    low, high = found.scale_interval
    yield f"  scale of its logits           {found.scale:.3f} (1 is right; 95 %: {low:.3f} to {high:.3f})"
    yield from wrapped(verdict_line(found))
    yield f"  {'says':>10} {'truly':>8} {'predictions':>12}"
    for each in found.bins:
        yield f"  {each.predicted:>10.4f} {each.true:>8.4f} {each.count:>12,}"


def verdict_line(found: Calibration) -> str:
    """`overconfident: its logits are about 1.3 times too large; ...`."""
    size = f"{found.scale:.2f}" if abs(found.scale - 1) < 0.095 else f"{found.scale:.1f}"
    gain = f"scaled right, the divergence is {found.mended:.4f}"
    if found.verdict == "overconfident":
        return f"overconfident: its logits are about {size} times too large; {gain}"
    if found.verdict == "underconfident":
        return f"underconfident: its logits are about {1 / found.scale:.2f} times too small; {gain}"
    return "calibrated: no other scale of its logits by more than 5 % fits the truth better"


def wrapped(text: str) -> list[str]:
    """In lines that fit a screen."""
    import textwrap

    return textwrap.wrap(text, 80, initial_indent="  ", subsequent_indent="    ")


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: what could not be told is null."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
