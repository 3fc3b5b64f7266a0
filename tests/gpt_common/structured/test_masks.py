"""The tokens that are allowed are those by which a text that fits can still be reached, and no others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import product, repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gpt_common.commands import SampleSettings
from gpt_common.data.tokenizers import Tokenizer
from gpt_common.sampling import Continuation, choose
from gpt_common.structured import CompiledForm, Constraint, Divergence
from tests.gpt_common.structured.walking import VOCABULARIES, regex_form, schema_form, tokenizer_of

NAMES = ("Ann", "Anna", "Bob", "雨", 'é"')
FINITE: dict[str, tuple[Callable[[str], CompiledForm], frozenset[str]]] = {
    "a regular expression": (
        lambda vocabulary: regex_form("(Kate|Kat|frog) ?[12]{0,2}(é|雨)?", vocabulary),
        frozenset(
            "".join(parts)
            for parts in product(
                ("Kate", "Kat", "frog"), ("", " "), ("", "1", "2", "11", "12", "21", "22"), ("", "é", "雨")
            )
        ),
    ),
    "a schema": (
        lambda vocabulary: schema_form(
            {
                "type": "object",
                "properties": {"name": {"enum": list(NAMES)}, "age": {"type": "integer", "minimum": 8, "maximum": 11}},
                "required": ["name"],
                "additionalProperties": False,
            },
            vocabulary,
        ),
        frozenset(
            f'{{"name":"{name.replace(chr(34), chr(92) + chr(34))}"{age}}}'
            for name, age in product(NAMES, ("", *(f',"age":{number}' for number in (8, 9, 10, 11))))
        ),
    ),
}
"""Forms that few texts fit, and all of them."""


def by_hand(texts: Iterable[bytes], said: bytes, tokenizer: Tokenizer) -> set[int]:
    """The tokens behind which one of these texts can still be reached, and the ends where one has been."""
    rest = {text[len(said) :] for text in texts if text.startswith(said)}
    plain = set(tokenizer.known) - set(tokenizer.specials.values())
    found = {i for i in plain if (token := tokenizer.decode_bytes([i])) and any(r.startswith(token) for r in rest)}
    return found | (tokenizer.ends if b"" in rest else set())


def wrong_masks(form: CompiledForm, texts: frozenset[str], walks: int = 12) -> int:
    """How often on so many ways through a form its mask is another than the one by hand."""
    tokenizer, wrong = form.vocabulary.tokenizer, 0
    all_texts = [text.encode() for text in texts]
    for seed in range(walks):
        rng, constraint, said = np.random.default_rng(seed), form.begin(), b""
        while not constraint.closed:
            allowed, right = set(map(int, constraint.allowed)), by_hand(all_texts, said, tokenizer)
            if constraint.forced is None:
                wrong += allowed != right
            else:
                # The text is certain: all that is left begins with it, and it is the tokenizer's own way to say it.
                token = tokenizer.decode_bytes([constraint.forced])
                wrong += not all(text[len(said) :].startswith(token) for text in all_texts if text.startswith(said))
                wrong += not allowed <= right
            token_id = int(rng.choice(sorted(allowed & right) or sorted(allowed)))
            constraint.take(token_id)
            if token_id not in tokenizer.ends:
                said += tokenizer.decode_bytes([token_id])
            if constraint.stuck is not None:
                return wrong + 1
        wrong += said not in all_texts
    return wrong


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("name", FINITE)
def test_the_mask_is_the_one_by_hand(name: str, vocabulary: str) -> None:
    make, texts = FINITE[name]
    assert wrong_masks(make(vocabulary), texts, 4 if vocabulary == "gpt2" else 12) == 0


@pytest.mark.parametrize("vocabulary", ["characters with an end", "bpe"])
@pytest.mark.parametrize("mutant", ["one too many", "one too few", "ends too early"])
def test_a_wrong_mask_is_found(mutant: str, vocabulary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    look_ahead = Constraint._look_ahead

    def looking(self: Constraint) -> None:
        look_ahead(self)
        if self.closed or self.forced is not None:
            return
        others = np.setdiff1d(np.arange(self.vocabulary.size), [*self.allowed, *self.vocabulary.ends])
        if mutant == "one too many":
            self.allowed = np.sort(np.append(self.allowed, others[0]))
        elif mutant == "one too few" and len(self.allowed) > 1:
            self.allowed = self.allowed[1:]
        elif mutant == "ends too early":
            self.allowed = np.union1d(self.allowed, list(self.vocabulary.ends))

    monkeypatch.setattr(Constraint, "_look_ahead", looking)
    for make, texts in FINITE.values():
        assert wrong_masks(make(vocabulary), texts) > 0


def test_what_is_forced_is_as_the_tokenizer_says_it() -> None:
    """And takes no random number."""
    tokenizer = tokenizer_of("bpe")
    form = schema_form({"const": {"name": "Kate", "animal": "frog", "age": 12}}, "bpe")
    logits = np.zeros(tokenizer.vocab_size, np.float32)
    sequence = Continuation([0], SampleSettings(max_new_tokens=100), iter(()), form.begin())
    while not sequence.is_full:
        sequence.advance(logits)
    said = tokenizer.decode(sequence.context[1:])
    assert said == '{"name":"Kate","animal":"frog","age":12}'
    assert sequence.context[1:] == tokenizer.encode(said)
    assert sequence.forced == sequence.made
    assert sequence.divergence.nats == pytest.approx(sequence.made * math.log(tokenizer.vocab_size), rel=1e-6)


# ---- the choice among them -------------------------------------------------------------------------------------------

Choose = Callable[..., int]
CUTS = [
    SampleSettings(temperature=1),
    SampleSettings(temperature=0.5, top_p=0.5),
    SampleSettings(temperature=2, top_k=2),
    SampleSettings(temperature=0.8, top_k=5, top_p=0.9),
    SampleSettings(temperature=0),
]


def left_out(logits_V: npt.NDArray[np.float32], settings: SampleSettings, draw: float, allowed: Any) -> int:
    """By hand: what is not allowed has no probability, and then comes everything else."""
    scores = [float(logits_V[i]) / (settings.temperature or 1) for i in allowed]
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    if settings.temperature == 0:
        return int(allowed[order[0]])
    order = order[: settings.top_k or None]
    weights = [math.exp(scores[i] - max(scores)) for i in order]
    total, kept = sum(weights), list[tuple[int, float]]()
    for i, weight in zip(order, weights, strict=True):
        kept.append((i, weight / total))
        if sum(share for _, share in kept) >= settings.top_p:
            break
    at = draw * sum(share for _, share in kept)
    for i, share in sorted(kept):  # in order of ids
        at -= share
        if at < 0:
            return int(allowed[i])
    return int(allowed[max(kept)[0]])


def wrong_choices(chosen: Choose) -> int:
    """How many of some choices are others than by hand; the likeliest tokens are often not allowed."""
    rng, wrong = np.random.default_rng(3), 0
    for settings in CUTS:
        for _ in range(60):
            logits = rng.normal(0, 2, 30).astype(np.float32)
            allowed = np.sort(rng.choice(30, int(rng.integers(1, 12)), replace=False))
            draw = float(rng.random())
            wrong += chosen(logits, settings, draw, allowed) != left_out(logits, settings, draw, allowed)
    return wrong


def masked_afterwards(logits_V: npt.NDArray[np.float32], settings: SampleSettings, draw: float, allowed: Any) -> int:
    """The mutant: temperature, top-k and top-p cut what the model would say without the form, and the mask what is
    left; where nothing is, the likeliest that is allowed."""
    scores = logits_V.astype(np.float64) / (settings.temperature or 1)
    order = np.argsort(-scores, kind="stable")[: settings.top_k or None]
    shares = np.exp(scores[order] - scores[order[0]])
    cumulative = np.cumsum(shares / shares.sum())
    order = order[: int(np.searchsorted(cumulative, settings.top_p)) + 1]
    both = np.array([i for i in order if i in allowed])
    if settings.temperature == 0 or not len(both):
        return int(allowed[int(np.argmax(logits_V[allowed]))])
    return choose(logits_V, SampleSettings(temperature=settings.temperature), draw, np.sort(both))


def test_the_mask_comes_before_temperature_top_k_and_top_p() -> None:
    assert wrong_choices(choose) == 0


def test_a_mask_that_comes_afterwards_is_found() -> None:
    assert wrong_choices(masked_afterwards) > 20


def test_the_cost_of_a_form_is_the_divergence_by_hand() -> None:
    """1e-6: added up of float32 exponentials. One by one, as a large vocabulary is, and together."""
    rng = np.random.default_rng(5)
    for vocabulary in (30, 5000):
        together, expected = Divergence(), 0.0
        for size in [1, 3, 29] * 25:
            logits = rng.normal(0, 3, vocabulary).astype(np.float32)
            allowed = np.sort(rng.choice(vocabulary, size, replace=False))
            free = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum()
            held = free[allowed] / free[allowed].sum()
            nats = float((held * np.log(held / free[allowed])).sum())
            assert outside(logits, allowed) == pytest.approx(nats, rel=1e-6, abs=1e-7)
            together.add(logits, allowed)
            expected += nats
        assert together.nats == together.nats == pytest.approx(expected, rel=1e-6)


def test_nothing_outside_costs_nothing_and_far_outside_is_still_told() -> None:
    assert outside(np.zeros(5, np.float32), np.arange(5)) == 0
    far = np.array([0, -300, -301], np.float32)
    assert outside(far, np.array([1])) == pytest.approx(300, rel=1e-9)
    assert outside(far, np.array([1, 2])) == pytest.approx(300 - math.log(1 + math.exp(-1)), rel=1e-9)


def outside(logits_V: npt.NDArray[np.float32], allowed: npt.NDArray[np.intp]) -> float:
    alone = Divergence()
    alone.add(logits_V, allowed)
    return alone.nats


def test_a_continuation_ends_with_its_form() -> None:
    def sequence(most: int, draws: Iterator[float]) -> Continuation:
        return Continuation([0], SampleSettings(max_new_tokens=most), draws, regex_form("ab{3}c").begin())

    tokenizer = tokenizer_of("characters with an end")
    logits = np.zeros(tokenizer.vocab_size, np.float32)
    for most, said, complete in ((9, "abbbc", True), (3, "abb", False)):
        one = sequence(most, repeat(0.5))
        while not one.is_full:
            one.advance(logits)
        assert one.constraint is not None
        assert (tokenizer.decode(one.context[1:]), one.constraint.complete) == (said, complete)
