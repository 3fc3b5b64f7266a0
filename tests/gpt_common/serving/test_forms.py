"""`response_format`: what is asked for is held to, or refused with the reason."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.gpt_common.serving.malformed import CHAT, COMPLETIONS, HELLO
from tests.gpt_common.serving.served import Saying, Server, make_model, serving, serving_made_up
from tests.gpt_common.structured.validity import fits, parsed
from tests.gpt_common.structured.walking import ASCII
from tests.twins import TWINS

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "animal": {"enum": ["frog", "hen"]}},
    "required": ["name", "animal"],
    "additionalProperties": False,
}


def asked_schema(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, **more}}


FORMS: list[tuple[dict[str, Any], Any]] = [
    (asked_schema(SCHEMA, strict=True), lambda text: fits(parsed(text), SCHEMA)),
    ({"type": "regex", "regex": "(ab|cd){3}"}, re.compile("(ab|cd){3}").fullmatch),
    ({"type": "grammar", "grammar": 'start: "x" /[0-9]{2}/ "y"'}, re.compile("x[0-9]{2}y").fullmatch),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_model(folder / "plain", letters=ASCII)
    make_model(folder / "chat", letters=ASCII, chat=True)
    make_model(folder / "few")
    return folder


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[Server]:
    paths = [runs / "plain", runs / "chat", runs / "few"]
    with serving_made_up(paths, lambda source: Saying(source.tokenizer)) as found:
        yield found


def test_both_twins_say_the_same_and_what_was_asked_for(runs: Path) -> None:
    said = {}
    for twin in TWINS:
        with serving(twin, runs / "plain", runs / "chat") as server:
            texts = []
            for form, is_right in FORMS:
                document = {"prompt": ["Once", "abc"], "max_tokens": 200, "seed": 5, "n": 2, "response_format": form}
                _, answer, _ = server.ask(COMPLETIONS, document)
                texts += [choice["text"] for choice in answer["choices"]]
                assert all(choice["finish_reason"] == "stop" for choice in answer["choices"])
                assert all(is_right(choice["text"]) for choice in answer["choices"]), answer
                pieces = list(server.stream(COMPLETIONS, {**document, "n": 1, "prompt": "Once", "stream": True}))
                assert "".join(piece["choices"][0]["text"] for piece in pieces) == texts[-4]
            said[twin] = texts
    assert said["mlx_gpt"] == said["torch_gpt"]
    assert len(set(said["mlx_gpt"])) > 6


def test_the_openai_client(runs: Path) -> None:
    """Its own types and its `parse`."""
    openai, pydantic = pytest.importorskip("openai"), pytest.importorskip("pydantic")

    class Animal(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        name: Literal["Kate", "Ann"]
        kind: Literal["frog", "hen"]
        age: int | None
        friends: list[bool]

    with serving("torch_gpt", runs / "chat") as server:
        client: Any = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        messages = [{"role": "user", "content": "Who?"}]
        more = {"model": "chat", "messages": messages, "max_tokens": 400, "seed": 1, "temperature": 0.9}
        answer = client.chat.completions.parse(response_format=Animal, **more)
        assert isinstance(answer.choices[0].message.parsed, Animal)
        answer = client.chat.completions.create(response_format={"type": "json_object"}, **more)
        assert answer.choices[0].message.content.startswith("{")
        if answer.choices[0].finish_reason == "stop":
            assert isinstance(json.loads(answer.choices[0].message.content), dict)
        answer = client.chat.completions.create(response_format={"type": "regex", "regex": "[ab]{4}"}, **more)
        assert re.fullmatch("[ab]{4}", answer.choices[0].message.content)
        schema = {"type": "object", "properties": {"a": {"not": {}}}}
        with pytest.raises(openai.BadRequestError, match="#/properties/a: 'not' is not supported"):
            client.chat.completions.create(response_format=asked_schema(schema), **more)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("json", "must be an object with a `type`"),
        ({}, "must be an object with a `type`"),
        ({"type": 3}, "must be an object with a `type`"),
        ({"type": "yaml"}, '"yaml" is not supported: choose from text, json_object, json_schema, grammar, regex'),
        ({"type": "json_schema"}, "must have `json_schema`"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "must have `json_schema` with a `name` and a `schema`"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "skema": {}}}, '"skema"'),
        ({"type": "json_schema", "schema": {}}, 'has no "schema"'),
        (asked_schema({"type": "strin"}), "did you mean 'string'"),
        (asked_schema({"$ref": "#"}), "asks for itself"),
        (asked_schema([1]), "a schema must be an object"),
        ({"type": "regex"}, "must have a text `regex`"),
        ({"type": "regex", "regex": 1}, "must have a text `regex`"),
        ({"type": "regex", "regex": "(?=a)"}, "look-around"),
        ({"type": "regex", "regex": "a", "grammar": "a"}, 'has no "grammar"'),
        ({"type": "regex", "regex": "\ud800"}, "not valid Unicode"),
        ({"type": "grammar", "grammar": "%%"}, "lexer error"),
        ({"type": "grammar", "grammar": 'start: %json {"not": {}}'}, "%json"),
    ],
)
def test_what_cannot_be_held_to_is_refused(form: Any, said: str, server: Server) -> None:
    for path, document in ((COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": HELLO, "model": "chat"})):
        status, answer, _ = server.ask(path, {**document, "response_format": form})
        assert (status, answer["error"]["param"]) == (400, "response_format")
        assert said in answer["error"]["message"]
        assert "\n" not in answer["error"]["message"]


def test_letters_that_the_model_lacks_are_named(server: Server) -> None:
    document = {"prompt": "a", "model": "few", "response_format": {"type": "json_object"}}
    status, answer, _ = server.ask(COMPLETIONS, document)
    assert status == 400
    assert "cannot write '{'" in answer["error"]["message"]


def test_a_form_that_comes_to_a_dead_end_is_told(server: Server) -> None:
    """Of a model without digits; what the others say goes on."""
    form = {"type": "grammar", "grammar": 'start: /[ab]/ | "c" /[0-9]/'}
    status, answer, _ = server.ask(
        COMPLETIONS, {"prompt": "b", "model": "few", "temperature": 0, "response_format": form}
    )
    assert (status, answer["error"]["code"]) == (400, "form_stuck")
    assert "no token of the vocabulary can follow" in answer["error"]["message"]
    assert server.complete("g", model="few", temperature=0, response_format=form)["text"] == "a"


def test_tokens_that_run_out_are_told_by_the_reason(server: Server) -> None:
    found = server.complete("a", max_tokens=3, temperature=0, response_format={"type": "regex", "regex": "[a-h]{5}"})
    assert (found["text"], found["finish_reason"]) == ("bcd", "length")
    found = server.complete("a", max_tokens=5, temperature=0, response_format={"type": "regex", "regex": "[a-h]{5}"})
    assert (found["text"], found["finish_reason"]) == ("bcdef", "stop")


def test_probabilities_are_the_models_own(server: Server) -> None:
    """Whatever the form left out."""
    free = server.complete("a", max_tokens=1, temperature=0, logprobs=3)["logprobs"]["top_logprobs"]
    form = {"type": "regex", "regex": "[xy]"}
    held = server.complete("a", max_tokens=1, temperature=0, logprobs=3, response_format=form)["logprobs"]
    assert held["tokens"] == ["x"]
    assert {name: held["top_logprobs"][0][name] for name in free[0]} == free[0]


def test_without_the_extra_it_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    document = {"prompt": "a", "response_format": {"type": "json_object"}}
    status, answer, _ = server.ask(COMPLETIONS, document)
    assert (status, answer["error"]["param"]) == (400, "response_format")
    assert "'.[structured]'" in answer["error"]["message"]
    assert server.complete("a", max_tokens=2, temperature=0, response_format={"type": "text"})["text"] == "bc"
