"""Schemas: whatever fits the mask fits the schema, and what cannot be held is refused by name and place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpt_common.errors import UserError
from tests.gpt_common.structured.validity import fits, parsed
from tests.gpt_common.structured.walking import VOCABULARIES, schema_form, walk

HELD: list[Any] = [
    {"type": "integer"},
    {"type": "integer", "minimum": 3, "maximum": 250},
    {"type": "integer", "exclusiveMinimum": 9, "exclusiveMaximum": 12},
    {"type": "number", "minimum": 0.25, "maximum": 1},
    {"type": "number", "multipleOf": 0.1, "minimum": 0, "maximum": 2},
    {"type": "integer", "multipleOf": 7, "maximum": 1000, "minimum": -1000},
    {"enum": [1, "a", None, True, [1, 2], {"x": 1}, 0.1, -2.5]},
    {"const": {"a": [1, {"b": "c\n\"\\"}]}},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "pattern": "^[a-c]+$", "minLength": 3, "maxLength": 5},
    {"type": "string", "pattern": "^a.c$"},
    {"type": "string", "pattern": "^[^\"\\\\]{3}$"},
    {"type": "string", "pattern": "^[a&&b]{2}[[]?$"},
    {"type": "string", "pattern": "^\\w\\W\\d\\D\\s\\S$"},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"const": "x"}], "items": False, "minItems": 1},
    {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"const": 1}}, "additionalProperties": False},
    {"type": "object", "properties": {"a\"b\n": {"const": 1}}, "required": ["a\"b\n"], "additionalProperties": False},
    {"type": "object", "required": ["z"], "additionalProperties": {"type": "boolean"}},
    {"type": "object", "patternProperties": {"^a": {"const": 1}}, "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1, "maxProperties": 2},
    {"oneOf": [{"const": "a"}, {"type": "integer", "minimum": 0, "maximum": 9}]},
    {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 2}]},
    {"type": ["string", "null"], "maxLength": 3},
    {"allOf": [{"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]},
               {"properties": {"b": {"const": 2}}, "required": ["b"]}], "maxProperties": 3},
    {"$ref": "#/$defs/n~1", "$defs": {"n/": {"type": "object", "properties": {
        "v": {"type": "boolean"}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/n~1"}]}},
        "required": ["v", "next"], "additionalProperties": False}}},
    {"type": "object", "properties": {"endless": {"$ref": "#/$defs/e"}, "v": {"const": 1}}, "required": ["v"],
     "additionalProperties": False,
     "$defs": {"e": {"type": "object", "properties": {"e": {"$ref": "#/$defs/e"}}, "required": ["e"]}}},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "time"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
    {"type": "string", "format": "ipv6"},
    {"$schema": "http://json-schema.org/draft-04/schema#", "const": 5},  # which draft 4 does not know
    True,
]  # fmt: skip

REFUSED: list[tuple[Any, str]] = [
    ({"not": {"type": "string"}}, "#: 'not'"),
    ({"type": "object", "properties": {"a": {"if": {}, "then": {}}}}, "#/properties/a: 'if'"),
    ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
    ({"type": "array", "contains": {}}, "'contains'"),
    ({"type": "object", "propertyNames": {}}, "'propertyNames'"),
    ({"type": "object", "dependentRequired": {}}, "'dependentRequired'"),
    ({"type": "object", "unevaluatedProperties": False}, "'unevaluatedProperties'"),
    ({"type": "string", "contentEncoding": "base64"}, "'contentEncoding'"),
    ({"$anchor": "x"}, "'$anchor'"),
    ({"$id": "http://example.org/x"}, "'$id'"),
    ({"x-guidance": {"lenient": True}, "type": "string"}, '"x-guidance" is no keyword'),
    ({"type": "array", "items": {"tpye": "string"}}, "#/items: \"tpye\" is no keyword"),
    ({"tpye": "string"}, "did you mean 'type'"),
    ({"type": "string", "nullable": True}, "nullable"),
    ({"type": "strin"}, "#/type: \"strin\" is no type: did you mean 'string'"),
    ({"type": "array", "items": [{}]}, "#/items: a list of schemas is called prefixItems"),
    ({"type": "string", "format": "regex"}, "#/format"),
    ({"type": "number", "format": "double"}, "#/format"),
    ({"$ref": "http://example.org/x"}, "#/$ref"),
    ({"properties": {"a": {"$ref": "#/$defs/none"}}}, '#/properties/a/$ref: there is nothing at "#/$defs/none"'),
    ({"$ref": "#"}, "asks for itself again"),
    ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "asks for itself again"),
    ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "'oneOf' is enforced only"),
    ({"type": "object", "patternProperties": {"^a": {}, "b$": {}}}, "not disjoint"),
    ({"type": "object", "minProperties": 2}, "#: 'minProperties'"),  # {"a":1,"a":1} has one
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, "#: 'exclusiveMinimum'"),  # 0 would come
    ({"const": 12345678901234567890}, "#/const: the number"),  # 12345678901234567000 would come
    ({"type": "integer", "minimum": 1e300}, "#/minimum"),
    ({"type": "integer", "minimum": True}, "#/minimum"),
    ({"type": "integer", "multipleOf": 999983}, "#/multipleOf"),
    ({"type": "integer", "multipleOf": 0}, "#/multipleOf"),
    ({"type": "string", "minLength": -1}, "#/minLength"),
    ({"type": "string", "maxLength": 10**9}, "#/maxLength"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, "#: nothing fits"),
    ({"type": "object", "properties": {"a": {"type": "string", "pattern": "^a$", "minLength": 2}}, "required": ["a"]},
     "#/properties/a: nothing fits"),
    ({"enum": []}, "#/enum"),
    ({"type": "string", "pattern": "(?=a)b"}, "#/pattern: the pattern has a lookahead at position 0"),
    ({"type": "string", "pattern": "(?i)a"}, "#/pattern"),
    ({"type": "string", "pattern": "(a)\\1"}, "a backreference at position 3"),
    ({"type": "string", "pattern": "\\bfoo"}, "a word boundary"),
    ({"type": "string", "pattern": "[a"}, "#/pattern"),
    ({"type": "string", "pattern": "(a"}, "#"),
    ({"type": "object", "required": "a"}, "#/required"),
    (3, "#: a schema must be"),
    ("{", "it is not JSON"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(HELD)))
def test_what_keeps_to_the_mask_fits_the_schema(number: int) -> None:
    schema, complete = HELD[number], 0
    form = schema_form(schema)
    for seed in range(40):
        text, constraint = walk(form, seed)
        assert constraint.stuck is None, text
        complete += constraint.complete
        if constraint.complete:
            assert fits(parsed(text), schema), text
    # A walk that knows nothing may open more than it closes within its tokens; what is stuck was caught above.
    assert complete >= 25


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_in_every_vocabulary(vocabulary: str) -> None:
    for schema in (HELD[8], HELD[14], HELD[16], HELD[25], HELD[29]):
        form = schema_form(schema, vocabulary)
        for seed in range(10):
            text, constraint = walk(form, seed)
            assert constraint.complete, text
            assert fits(parsed(text), schema), text


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_would_not_be_held_is_refused_by_name_and_place(number: int) -> None:
    schema, said = REFUSED[number]
    with pytest.raises(UserError) as refused:
        schema_form(schema)
    assert str(refused.value).startswith("s.json: ")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_json_is_compact_unless_blanks_are_asked_for() -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": [1, 2]}}, "required": ["a", "b"],
              "additionalProperties": False}  # fmt: skip
    assert {walk(schema_form(schema), seed)[0] for seed in range(5)} == {'{"a":1,"b":[1,2]}'}
    free = {walk(schema_form(schema, whitespace=True), seed)[0] for seed in range(20)}
    assert any(" " in text or "\n" in text for text in free)
    assert {json.dumps(json.loads(text), separators=(",", ":")) for text in free} == {'{"a":1,"b":[1,2]}'}
