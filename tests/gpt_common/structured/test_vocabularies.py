"""Every kind of vocabulary: its ends, its gaps, and the letters that it lacks."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest

from gpt_common.data.tokenizers import BpeTokenizer, CharTokenizer, ExtendedTokenizer, Tokenizer
from gpt_common.errors import UserError
from gpt_common.structured import Form, compile_form
from gpt_common.structured.vocabulary import Vocabulary
from tests.gpt_common.structured.walking import ASCII, VOCABULARIES, regex_form, tokenizer_of, walk


def refused(form: Form, tokenizer: Tokenizer) -> str:
    with pytest.raises(UserError) as found:
        compile_form(form, tokenizer)
    assert "\n" not in str(found.value)
    return str(found.value)


def schema(document: Any) -> Form:
    return Form("json_schema", json.dumps(document), name="s.json")


FRUIT = {
    "type": "object",
    "properties": {"fruit": {"enum": ["plum", "fig"]}},
    "required": ["fruit"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("{", "#: the vocabulary of this model cannot write '{'"),
        ('"', "#: the vocabulary of this model cannot write '\"'"),
        (":", "#: the vocabulary of this model cannot write ':'"),
        ("g", '#/properties/fruit: the vocabulary of this model cannot write \'g\' of "\\"fig\\""'),
        ("r", '#: the vocabulary of this model cannot write \'r\' of "\\"fruit\\""'),
    ],
)
def test_a_letter_that_the_vocabulary_lacks_is_named(missing: str, said: str) -> None:
    whole = refused(schema(FRUIT), CharTokenizer(ASCII.replace(missing, "")))
    assert said in whole


def test_letters_that_are_not_needed_may_be_missing() -> None:
    form = compile_form(schema(FRUIT), CharTokenizer('{}":,fruitplmg'))
    assert {walk(form, seed)[0] for seed in range(20)} == {'{"fruit":"plum"}', '{"fruit":"fig"}'}


def test_a_word_is_not_begun_that_cannot_be_ended() -> None:
    """Of a regular expression's classes, and of a schema's patterns, only what can be written to the end is begun."""
    few = CharTokenizer('abc"')
    form = compile_form(Form("regex", "a[bx][xy]|ab[a-z]"), few)
    assert {walk(form, seed)[0] for seed in range(30)} == {"aba", "abb", "abc"}
    form = compile_form(schema({"type": "string", "pattern": "^(a[bx][xy]|ab[a-z])$"}), few)
    assert {walk(form, seed)[0] for seed in range(30)} == {'"aba"', '"abb"', '"abc"'}
    assert "cannot write 'x'" in refused(Form("regex", "ax|ab"), few)
    assert "nothing fits with the 4 characters" in refused(schema({"type": "string", "pattern": "^[x-z]$"}), few)
    assert "no token of the vocabulary can follow" in refused(Form("grammar", "start: /[x-z]/"), few)
    assert "cannot write 'x'" in refused(Form("grammar", 'start: "ax"'), few)


@pytest.mark.parametrize("vocabulary", ["characters", "bpe"])
def test_expressions_of_any_letters(vocabulary: str) -> None:
    """Line ends, slashes and quotation marks as they are; what looks like another rule is none."""
    for regex in ("a\nb", "/a/", '"/ | "x', "[/]b#c", "a\\/b", "(a|\n)/{2}"):
        for seed in range(4):
            assert re.fullmatch(regex, walk(regex_form(regex, vocabulary), seed)[0])


def test_what_a_grammar_says_and_nobody_heeds_is_refused() -> None:
    grammar = "start: a\na[temperature=0.5, max_tokens=3]: /[ab]+/"
    assert "temperature" in refused(Form("grammar", grammar), tokenizer_of("bpe"))
    assert "%json" in refused(Form("grammar", 'start: %json {"not": {}}'), tokenizer_of("bpe"))


def test_numbers_and_words_need_their_letters() -> None:
    assert "'7'" in refused(schema({"type": "integer"}), CharTokenizer(ASCII.replace("7", "")))
    assert "'e'" in refused(schema({"type": "boolean"}), CharTokenizer(ASCII.replace("e", "")))
    assert "'{'" in refused(schema({}), CharTokenizer(ASCII.replace("{", "")))


def test_strings_are_escaped_only_by_what_can_be_written() -> None:
    """`\\u` is not begun where there are no digits to go on with."""
    tokenizer = CharTokenizer('"\\nux')
    form = compile_form(schema({"type": "string", "maxLength": 3}), tokenizer)
    texts = {walk(form, seed)[0] for seed in range(200)}
    assert '"\\n"' in texts
    assert not any("\\u" in text.replace("\\\\", "") for text in texts)
    assert all(len(json.loads(text)) <= 3 for text in texts)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_a_form_ends_where_it_is_complete(vocabulary: str) -> None:
    """With tokens for ends they are offered where the text may end, and nowhere else; without, it ends by itself."""
    tokenizer, form = tokenizer_of(vocabulary), regex_form("ab?", vocabulary)
    constraint = form.begin()
    assert not constraint.complete
    assert not tokenizer.ends & set(map(int, constraint.allowed))
    constraint.take(tokenizer.encode("a")[0])
    assert (constraint.complete, constraint.closed) == (True, False)
    assert tokenizer.ends <= set(map(int, constraint.allowed))
    other = form.begin()
    for token in tokenizer.encode("ab"):
        other.take(token)
    assert (other.complete, other.closed) == (True, True)
    for end in tokenizer.ends:
        ended = form.begin()
        ended.take(tokenizer.encode("a")[0])
        ended.take(end)
        assert (ended.complete, ended.closed) == (True, True)


def test_tokens_without_text_are_never_allowed() -> None:
    """Neither what a template is made of, nor the gaps of a published vocabulary, nor half a character too many."""
    chat = tokenizer_of("bpe for chats")
    assert isinstance(chat, ExtendedTokenizer)
    constraint = compile_form(Form("regex", "(?s:.*)"), chat).begin()
    allowed = set(map(int, constraint.allowed))
    assert chat.specials["<|im_start|>"] not in allowed
    assert chat.specials["<|im_end|>"] in allowed
    assert chat.encode("<")[0] in allowed
    assert isinstance(chat.base, BpeTokenizer)
    definition = json.loads(json.dumps(chat.base._document["tokenizer"]))
    vocabulary = definition["model"]["vocab"]
    last = max(vocabulary, key=lambda name: vocabulary[name])
    vocabulary[last] += 5
    gaps = BpeTokenizer(definition)
    assert len(gaps.known) == gaps.vocab_size - 5
    constraint = compile_form(Form("regex", "(?s:.*)"), gaps).begin()
    assert set(map(int, constraint.allowed)) <= set(gaps.known)


def test_a_tokenizer_that_changes_a_text_does_not_change_a_form() -> None:
    """One that writes small letters, and a blank before a word: what is certain is cut without it."""
    base = tokenizer_of("bpe")
    assert isinstance(base, BpeTokenizer)
    definition = json.loads(json.dumps(base._document["tokenizer"]))
    definition["normalizer"] = {"type": "Lowercase"}
    definition["pre_tokenizer"]["add_prefix_space"] = True
    other = BpeTokenizer(definition)
    assert other.decode(other.encode("Kate")) == " kate"
    form = compile_form(schema({"const": {"Name": "KATE", "Ännimal": "雨"}}), other)
    for seed in range(5):
        text, constraint = walk(form, seed)
        assert (text, constraint.complete) == ('{"Name":"KATE","Ännimal":"雨"}', True)


def test_all_bytes_are_all_characters() -> None:
    assert Vocabulary(tokenizer_of("bpe")).characters is None
    assert Vocabulary(tokenizer_of("characters")).characters == frozenset(ASCII + "é雨")


def test_without_the_library_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    assert "'.[structured]'" in refused(Form("regex", "a"), CharTokenizer("a"))
