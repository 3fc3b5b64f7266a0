"""Extraction: what is asked, what is right, and a file of it that anybody can make."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt_common.data.__main__ import main as data_main
from gpt_common.data.conversations.extraction import questions, schema, write_extraction
from gpt_common.data.conversations.written import END, TURN
from gpt_common.data.tokenizers import CharTokenizer, ExtendedTokenizer, Tokenizer
from gpt_common.errors import UserError
from gpt_common.judging.extraction import KEPT_FOR_SHOTS, Example, _value, extract, fields, lines_of, read_examples
from gpt_common.structured import checker, same_json
from tests.gpt_common.structured.validity import fits, parsed
from tests.gpt_common.structured.walking import ASCII

PLAIN: Tokenizer = CharTokenizer(ASCII, end_of_text=True)
CHATS: Tokenizer = ExtendedTokenizer(CharTokenizer(ASCII), [TURN, END])
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "who": {"enum": ["Ann", "Bob", "Zoe"]},
            "what": {"type": "array", "items": {"enum": ["hat", "kite"]}},
        },
        "required": ["who", "what"],
        "additionalProperties": False,
    }
)
EXAMPLES = [
    Example(f"Ann and Bob {number}: {word}?", ({"who": word, "what": ["hat", "kite"]},))
    for number, word in enumerate(["Ann", "Bob", "Zoe"] * 10)
]


class Answering:
    """Instead of a model: answers every prompt with a text of its own, and then ends it."""

    def __init__(self, tokenizer: Tokenizer, answers: Mapping[str, str]) -> None:
        self.tokenizer, self.answers = tokenizer, answers
        self.prompts: dict[int, str] = {}

    def next_logits(self, contexts: Mapping[int, Sequence[int]]) -> dict[int, Any]:
        found = {}
        for number, context in contexts.items():
            text = self.tokenizer.decode(context)
            asked, said = max(((text.rfind(key), key) for key in self.answers), key=lambda pair: pair[0])[1], ""
            marks = "assistant\n" if TURN in self.tokenizer.specials else "?\n"
            self.prompts.setdefault(number, text)
            said = text[text.rfind(marks) + len(marks) :]
            whole = self.answers[asked]
            ends = sorted(self.tokenizer.ends)
            rest = self.tokenizer.encode(whole)[len(said) :] if whole.startswith(said) else []
            logits = np.zeros(self.tokenizer.vocab_size, np.float32)
            logits[rest[0] if rest else ends[0]] = 9
            found[number] = logits
        return found

    def all_logits(self, tokens: Sequence[int]) -> Any:
        raise NotImplementedError


def judged(answers: Mapping[str, str], tokenizer: Tokenizer = PLAIN, **more: Any) -> tuple[Any, Answering]:
    batch = Answering(tokenizer, answers)
    more = {"shots": 0, "held": False, **more}
    return extract(EXAMPLES, batch, tokenizer, 4000, SCHEMA, **more), batch


RIGHT = {one.prompt: one.shown for one in EXAMPLES}


@pytest.mark.parametrize("tokenizer", [PLAIN, CHATS], ids=["text", "chat"])
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("shots", [0, 1, 4, 16])
def test_right_answers_are_right(shots: int, held: bool, tokenizer: Tokenizer) -> None:
    found, batch = judged(RIGHT, tokenizer, shots=shots, held=held)
    asked = len(EXAMPLES) - KEPT_FOR_SHOTS
    assert (found.asked, found.exact, found.valid, found.f1, found.too_long) == (asked, asked, asked, 1.0, 0)
    assert (found.nats > 0) == held
    prompt = batch.prompts[0]
    assert prompt.count(EXAMPLES[0].shown) == sum(one.shown == EXAMPLES[0].shown for one in EXAMPLES[:shots])
    assert prompt.count(EXAMPLES[KEPT_FOR_SHOTS].prompt) == 1
    assert sum(one.prompt in prompt for one in EXAMPLES) == shots + 1
    if tokenizer is CHATS:
        assert prompt.startswith(f"{TURN}user\n")
        assert prompt.endswith(f"{END}\n{TURN}assistant\n")


def test_figures_by_hand() -> None:
    """Of 14: a name wrong (2 of 3 fields), no JSON, other words, names in another order, too many fields."""
    asked = EXAMPLES[KEPT_FOR_SHOTS:]
    answers = dict(RIGHT)
    answers[asked[0].prompt] = '{"who": "Zoe" , "what": ["hat", "kite"]}'
    answers[asked[1].prompt] = "Zoe has the hat and the kite."
    answers[asked[2].prompt] = '{"who": "Ann", "what": ["boat", "kite"]}'
    answers[asked[3].prompt] = '{"what": ["hat", "kite"], "who": "Bob"}'
    answers[asked[4].prompt] = '{"who": "Zoe", "what": ["hat", "kite", "hat"]}\nmore'
    rights = [one.answers[0]["who"] for one in asked[:5]]
    assert rights == ["Bob", "Zoe", "Ann", "Bob", "Zoe"]
    found, _ = judged(answers)
    assert (found.asked, found.exact, found.valid) == (14, 14 - 4, 14 - 2)
    both, said, right = 14 * 3 - 1 - 3 - 1, 14 * 3 - 3 + 1, 14 * 3
    assert found.f1 == pytest.approx(2 * both / (said + right), abs=1e-12)
    lines = list(lines_of([found]))
    assert "10 of 14" in lines[1]


def test_any_right_answer_is_right() -> None:
    examples = [Example(one.prompt, ({"who": "Ann", "what": []}, one.answers[0])) for one in EXAMPLES]
    batch = Answering(PLAIN, RIGHT)
    found = extract(examples, batch, PLAIN, 4000, SCHEMA, shots=0, held=False)
    assert (found.exact, found.f1) == (found.asked, 1.0)


def test_the_schema_makes_valid_what_would_not_be() -> None:
    nonsense = {one.prompt: "Nobody knows!" for one in EXAMPLES}
    free, held = judged(nonsense)[0], judged(nonsense, held=True)[0]
    assert (free.valid, free.exact, free.f1) == (0, 0, 0.0)
    assert held.valid == held.asked - held.too_long
    assert held.nats > 1


def test_what_cannot_be_asked_is_one_line() -> None:
    with pytest.raises(UserError, match="the model's block holds 100"):
        extract(EXAMPLES, Answering(PLAIN, RIGHT), PLAIN, 100, SCHEMA, shots=16, held=False)
    with pytest.raises(UserError, match="the first 16 are kept for shots"):
        extract(EXAMPLES[:16], Answering(PLAIN, RIGHT), PLAIN, 100, SCHEMA, shots=0, held=False)
    with pytest.raises(UserError, match="#: 'not' is not supported"):
        extract(EXAMPLES, Answering(PLAIN, RIGHT), PLAIN, 100, '{"not": {}}', shots=0, held=False)


def test_fields() -> None:
    assert list(fields({"a": {"b": 1, "c": [True, {"d": "x"}]}, "e": []})) == [
        ("/a/b", "1"), ("/a/c[]", "true"), ("/a/c[]/d", '"x"'), ("/e", "[]"),
    ]  # fmt: skip
    assert list(fields({})) == []
    assert list(fields("x")) == [("", '"x"')]


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text('{"prompt": "a", "answer": {}}\n\n{"text": "b", "answers": [1, 2]}\n', encoding="utf-8")
    assert read_examples(path) == [Example("a", ({},)), Example("b", (1, 2))]
    for text, said in [
        ("", "has no examples"),
        ('{"prompt": "a", "answer": 1}\n{', "line 2: not JSON"),
        ("[]", "line 1: an example is an object"),
        ('{"prompt": "a"}', "line 1: an example has"),
        ('{"prompt": 1, "answer": 1}', "line 1: an example has"),
        ('{"prompt": "a", "answers": []}', "line 1: an example has"),
    ]:
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=said):
            read_examples(path)
    with pytest.raises(UserError, match="cannot read"):
        read_examples(tmp_path / "none")


def test_the_order_of_names_does_not_count() -> None:
    check = checker('{"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"x": {"type": "object", '
                    '"properties": {"p": {}, "q": {}}}, "y": {}}, "required": ["x"]}}}')  # fmt: skip
    assert check({"y": 1, "x": {"q": 1, "p": 2}})
    assert check({"z": '"é\n', "x": {}})
    assert not check({"y": 1})
    assert not check([])


def test_a_file_from_the_worlds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_main(["extraction", "--out", str(tmp_path / "x"), "--count", "60"])
    assert len(capsys.readouterr().out.splitlines()) == 2
    examples = read_examples(tmp_path / "x" / "extract.jsonl")
    text = (tmp_path / "x" / "schema.json").read_text(encoding="utf-8")
    assert len(examples) == 60
    check = checker(text)
    kinds = set()
    for example in examples:
        for answer in example.answers:
            assert fits(parsed(json.dumps(answer)), json.loads(text))
            assert check(answer)
        kinds.add(len(example.answers) if "animals" not in example.answers[0] else "animals")
    assert kinds == {1, 2, "animals"}
    assert not check({"animals": ["dragon", "fox"]})
    assert not check({"kite": "a fox"})
    again = write_extraction(tmp_path / "y", 60)
    assert again[0].read_bytes() == (tmp_path / "x" / "extract.jsonl").read_bytes()
    assert {question.as_json for question in questions(60)} == {True}
    assert json.loads(text) == schema()


def test_files_that_are_there_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_extraction(tmp_path, 3)
    error = run_data(capsys, "extraction", "--out", tmp_path)
    assert "is there already" in error
    assert "count is 0" in run_data(capsys, "extraction", "--out", tmp_path / "z", "--count", "0")


def run_data(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    from gpt_common.errors import run_main

    with pytest.raises(SystemExit) as stop:
        run_main(data_main, [str(word) for word in words])
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("schema", "fitting", "others"),
    [
        ({"type": "integer", "minimum": 2.0}, [2, 2.0, 1e3, float("inf")], [2.5, True, 1.0]),
        ({"const": 100.0}, [100, 100.0], [100.5, "100"]),
        ({"enum": [{"a": 1, "b": [{"d": 1, "c": 2.0}]}]}, [{"b": [{"c": 2, "d": 1.0}], "a": 1}], [{"a": 1}]),
        ({"type": "number", "multipleOf": 0.25}, [2.5, 2.75, 3, 3.0, -0.0], [2.6]),
        ({"type": "string"}, ["\x7f", "\u2028é\n"], ["\ud800"]),
        (
            {
                "allOf": [{"type": "object", "properties": {"b": {"type": "integer"}}}],
                "properties": {"a": {"type": "integer"}},
            },
            [{"a": 1, "b": 2}, {"b": 2, "a": 1}, {"c": "x", "a": 1}],
            [{"a": 1, "b": "2"}],
        ),
    ],
)
def test_a_value_fits_however_it_is_written(schema: Any, fitting: list[Any], others: list[Any]) -> None:
    check = checker(json.dumps(schema))
    assert [value for value in fitting if not check(value)] == []
    assert [value for value in others if check(value)] == []


def test_one_and_one_point_zero_are_one_answer() -> None:
    assert same_json({"a": 1, "b": [2.0]}, {"b": [2], "a": 1.0})
    assert not same_json({"a": 1}, {"a": True})
    assert list(fields({"a": 1.0})) == list(fields({"a": 1})) == [("/a", "1")]


def test_an_answer_that_is_too_deep_is_none() -> None:
    deep = "[" * 900 + "]" * 900
    assert _value(deep, whole=True) in [(None, False), (json.loads(deep), True)]
    nested: Any = 1
    for _ in range(5000):
        nested = [nested]
    assert not checker("{}")(nested)
