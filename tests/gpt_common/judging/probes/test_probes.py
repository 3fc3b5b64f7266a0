"""What probes say of models whose answers are known: the grammar itself, one that is too sure, one that is blind."""

from __future__ import annotations

import json
import math
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpt_common.data.conversations.written import END as END_OF_TURN
from gpt_common.data.conversations.written import TURN
from gpt_common.data.stories import END
from gpt_common.data.tokenizers import CharTokenizer, Tokenizer, train_bpe_on
from gpt_common.data.tokenizers.extended import with_tokens
from gpt_common.judging.probes import measure as measure_module
from gpt_common.judging.probes import pairs as pairs_module
from gpt_common.judging.probes.agreement import KINDS, agreements, items, verdict
from gpt_common.judging.probes.calibration import calibration, compared
from gpt_common.judging.probes.continuations import Choice, Weighed, weigh
from gpt_common.judging.probes.measure import ProbesMeasure
from gpt_common.judging.probes.pairs import Pair, judge_pairs, make_pairs
from gpt_common.judging.probes.results import ProbesResult
from gpt_common.judging.probes.told import stories
from gpt_common.judging.probes.truth import begin
from tests.gpt_common.judging.probes.models import CHARACTERS, Model, blind, grammar

TOLD = [told.text for told in islice(stories(7, "test"), 12)]


def measured(model: Model, tokenizer: Tokenizer = CHARACTERS) -> ProbesResult:
    measure = ProbesMeasure(items=4, stories=4)
    measure.prepare(None)  # type: ignore[arg-type]
    return measure.asked_of(model, tokenizer)


def test_the_grammar_itself_is_right_everywhere_and_calibrated() -> None:
    found = measured(Model(grammar()))
    assert all(kind.right == 1 and kind.ties == 0 and kind.probability > 1 - 1e-9 for kind in found.agreement)
    assert {kind.kind for kind in found.agreement} == set(KINDS)
    by_group = {pairs.group: pairs for pairs in found.pairs}
    assert by_group["impossible"].right == by_group["likelier"].right == 1
    # The model answers in float32: a sum of ten characters is that far off.
    assert by_group["likelier"].difference == pytest.approx(0, abs=1e-4)
    assert by_group["even"].difference == pytest.approx(0, abs=1e-4)
    assert by_group["even"].ties == by_group["even"].pairs
    calibrated = found.calibration
    assert calibrated is not None
    assert found.loss is not None
    assert calibrated.divergence == pytest.approx(0, abs=1e-6)
    assert calibrated.expected_calibration_error == pytest.approx(0, abs=1e-6)
    assert calibrated.misplaced == pytest.approx(0, abs=1e-6)
    assert calibrated.scale == pytest.approx(1, abs=1e-4)
    assert calibrated.verdict == "calibrated"
    assert calibrated.loss == pytest.approx(found.loss.lowest, abs=1e-6)
    assert max(map(len, found.lines())) <= 80
    json.dumps(found.as_json(), allow_nan=False)


@pytest.mark.parametrize(("scale", "said"), [(1.3, "overconfident"), (0.75, "underconfident"), (1.02, "calibrated")])
def test_a_model_that_is_too_sure_is_named_with_how_much(scale: float, said: str) -> None:
    found = calibration(TOLD[:4], CHARACTERS, Model(grammar(scale)))
    assert found.verdict == said
    assert found.scale == pytest.approx(scale, abs=0.01)
    assert found.scale_interval[0] <= found.scale <= found.scale_interval[1]
    if said == "overconfident":
        assert found.mended < 0.02 * found.divergence
        assert found.expected_calibration_error > 1e-3


def test_a_short_block_does_not_make_a_model_uncalibrated() -> None:
    """Half the places are uncertain to a model that sees one character; what it says is the mean of the truth there."""
    rng = np.random.default_rng(0)
    true = np.tile(np.eye(2), (500, 1))[rng.permutation(1000)]
    found = compared(np.zeros((1000, 2)), true, np.arange(1000) // 10)
    assert found.expected_calibration_error == pytest.approx(0, abs=0.05)
    assert found.divergence == pytest.approx(math.log(2))
    assert found.verdict == "calibrated"


def test_every_character_is_compared_once_however_blocks_lie() -> None:
    sizes = {block: calibration(TOLD[:2], CHARACTERS, Model(grammar(), block_size=block)) for block in (700, 1024)}
    for found in sizes.values():
        assert found.characters == sum(map(len, TOLD[:2]))
    assert sizes[1024].divergence == pytest.approx(0, abs=1e-6)


def test_a_blind_model_is_right_half_the_time_and_the_ties_are_told() -> None:
    """Mutant: ties as right. Then it would be right always."""
    found = agreements(items(1, 3), CHARACTERS, Model(blind))
    pronouns = next(kind for kind in found if kind.kind == "pronoun")
    assert (pronouns.right, pronouns.ties) == (0.5, 3)
    assert pronouns.probability == pytest.approx(0.5)
    even = [Pair("likelier", END + "Then ", "Mia ", "Leo ", math.log(13))]
    judged = judge_pairs(even, CHARACTERS, Model(blind))
    assert (judged[0].right, judged[0].ties) == (0.5, 1)
    assert judged[0].difference == pytest.approx(math.log(13))


def test_a_tie_is_half_and_only_a_tie() -> None:
    assert verdict(Weighed((-1.0, -1.0 + 1e-7), True)) == 0.5
    assert verdict(Weighed((-1.0, -1.001, -5.0), True)) == 1
    assert verdict(Weighed((-1.0, -0.999), True)) == 0


def test_a_score_is_the_sum_over_the_characters_and_not_their_mean() -> None:
    """Mutant: mean for sum. A blind model's long word costs more than its short one, by ln V per character."""
    (found,) = weigh([Choice(END + "the ", ("fox", "squirrel"))], CHARACTERS, Model(blind))
    each = math.log(CHARACTERS.vocab_size)
    assert found.scores == pytest.approx((-3 * each, -8 * each), rel=1e-6)


def test_what_lies_further_back_than_the_block_is_not_asked() -> None:
    asked = items(2, 3)
    for block, hidden in ((1024, 0), (64, None)):
        found = agreements(asked, CHARACTERS, Model(blind, block_size=block))
        assert all(kind.items + kind.out_of_sight == 3 for kind in found)
        assert sum(kind.out_of_sight for kind in found) == hidden or hidden is None
    assert sum(kind.out_of_sight for kind in found) > 0


def test_rivals_are_impossible_and_the_right_word_is_not() -> None:
    for item in items(3, 5):
        before = begin().then(item.choice.prefix.removeprefix(END))
        assert before is not None
        right, *others = item.choice.ways
        assert before.then(right) is not None
        assert others
        assert all(before.then(rival) is None for rival in others)


def test_true_log_odds_are_those_of_whole_prefixes() -> None:
    made = make_pairs(4, 6)
    assert {pair.group for pair in made} == set(pairs_module.GROUPS)
    for pair in made:
        story = pair.prefix.removeprefix(END)
        right, wrong = (begin().then(story + way) for way in (pair.right, pair.wrong))
        assert right is not None
        if pair.group == "impossible":
            assert wrong is None
            assert pair.log_odds == math.inf
        else:
            assert wrong is not None
            assert right.log_probability - wrong.log_probability == pytest.approx(pair.log_odds, abs=1e-9)


def test_the_same_seed_asks_the_same() -> None:
    assert items(5, 2) == items(5, 2)
    assert make_pairs(5, 2) == make_pairs(5, 2)
    assert items(5, 2) != items(6, 2)


def test_a_vocabulary_that_cannot_write_stories_is_told_in_one_sentence() -> None:
    found = measured(Model(blind, CharTokenizer("abc")), CharTokenizer("abc"))
    assert found.note is not None
    assert "cannot write '\\n'" in found.note
    assert found.agreement == ()
    assert found.calibration is None
    assert max(map(len, found.lines())) <= 80


def test_a_model_that_was_not_trained_on_stories_is_told_so() -> None:
    found = measured(Model(blind))
    assert found.note is not None
    assert found.loss is not None
    assert "far above the lowest" in found.note
    assert found.loss.loss == pytest.approx(math.log(CHARACTERS.vocab_size), rel=1e-5)


def test_another_vocabulary_has_an_exact_loss_and_no_calibration() -> None:
    tokenizer = train_bpe_on(["".join(TOLD)], 300)
    uniform = Model(lambda _: np.zeros(tokenizer.vocab_size), tokenizer)
    found = measured(uniform, tokenizer)
    assert found.calibration is None
    told = [one.text for one in islice(stories(15_000, "calibration"), 4)]
    assert found.loss is not None
    tokens = sum(len(tokenizer.encode(text)) for text in told)
    expected = tokens * math.log(tokenizer.vocab_size) / sum(map(len, told))
    assert found.loss.loss == pytest.approx(expected, rel=1e-6)
    assert "".join(found.lines())


def test_two_models_are_compared_item_by_item() -> None:
    knows, guesses = measured(Model(grammar())), measured(Model(blind))
    lines = list(knows.against(guesses))
    assert any(line.strip().startswith("pronoun") and "+50.0%" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_a_model_that_was_trained_on_questions_is_asked_some(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = with_tokens(train_bpe_on(["".join(TOLD)], 300), (TURN, END_OF_TURN))
    asked: Any = SimpleNamespace(source=SimpleNamespace(tokenizer=tokenizer, checkpoint=None))
    scorer = Model(lambda _: np.zeros(tokenizer.vocab_size), tokenizer)
    scorer.batch = None  # type: ignore[assignment]
    monkeypatch.setattr(measure_module, "judge", lambda put, *_: [i % 2 == 0 for i in range(len(put))])
    for name, groups in (("stories-qa", 2), ("stories", None)):
        manifest = SimpleNamespace(dataset={"name": name})
        monkeypatch.setattr(measure_module, "read_manifest", lambda _, manifest=manifest: manifest)
        found = ProbesMeasure(items=4, stories=2).ask(scorer, asked)
        assert (found.questions and len(found.questions)) == groups
        if found.questions:
            assert sum(of for _, of in found.questions.values()) == 8
            assert sum(right for right, _ in found.questions.values()) == 4
            assert any("new phrasings" in line for line in found.lines())
