"""Schemas that nobody thought of: whatever keeps to one of them fits it, or it is refused."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from gpt_common.errors import UserError
from gpt_common.structured import CompiledForm
from tests.gpt_common.structured.validity import fits, parsed
from tests.gpt_common.structured.walking import schema_form, walk

NAMES = ("a", "b", "c", 'd"', "e/~")
PATTERNS = ("^a", "b$", "^[a-c]{1,3}$", "^.$", "[^a-z]", "^[^b\\n]{1,2}$", "^(ab|c)*$", "\\d", "^\\S+$", "^a?b?$")
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -3,
    2.5,
    "",
    "a",
    "ab",
    'q"',
    [],
    [1, "a"],
    {},
    {"a": 1},
    {"b": [None]},
)


def of_strings(choose: random.Random) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if choose.random() < 0.4:
        made["pattern"] = choose.choice(PATTERNS)
    if choose.random() < 0.4:
        made["minLength"] = choose.randrange(4)
    if choose.random() < 0.6:
        made["maxLength"] = choose.randrange(1, 6)
    if choose.random() < 0.1:
        made["format"] = choose.choice(["date", "time", "uuid", "ipv4"])
    return made


def of_numbers(choose: random.Random, *, whole: bool) -> dict[str, Any]:
    made: dict[str, Any] = {}
    numbers: list[float] = [-20, -1, 0, 1, 3, 10, 250] if whole else [-20, -1.5, 0, 0.25, 1, 2.75, 100]
    if choose.random() < 0.7:
        made["minimum"] = choose.choice(numbers)
    if choose.random() < 0.7:
        made["maximum"] = made.get("minimum", 0) + choose.choice([0, 1, 2.5, 12, 300])
    if whole and choose.random() < 0.3:
        made["exclusiveMinimum"] = choose.choice(numbers)
    if whole and choose.random() < 0.3:
        made["exclusiveMaximum"] = choose.choice(numbers) + 20
    if choose.random() < 0.3:
        made["multipleOf"] = choose.choice([1, 2, 5, 7] if whole else [0.25, 0.5, 1, 3])
    return made


def of_arrays(choose: random.Random, depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if choose.random() < 0.8:
        made["items"] = schema(choose, depth - 1)
    if choose.random() < 0.3:
        made["prefixItems"] = [schema(choose, depth - 1) for _ in range(choose.randrange(1, 3))]
    if choose.random() < 0.4:
        made["minItems"] = choose.randrange(3)
    if choose.random() < 0.7:
        made["maxItems"] = choose.randrange(4)
    return made


def of_objects(choose: random.Random, depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if choose.random() < 0.8:
        made["properties"] = {name: schema(choose, depth - 1) for name in choose.sample(NAMES, choose.randrange(1, 4))}
    if choose.random() < 0.5:
        made["required"] = choose.sample(NAMES, choose.randrange(1, 3))
    if choose.random() < 0.6:
        made["additionalProperties"] = choose.choice([False, schema(choose, depth - 1)])
    if choose.random() < 0.2:
        made["patternProperties"] = {choose.choice(PATTERNS): schema(choose, depth - 1)}
    if choose.random() < 0.15:
        made["minProperties"] = choose.randrange(3)
    if choose.random() < 0.15:
        made["maxProperties"] = choose.randrange(4)
    return made


def schema(choose: random.Random, depth: int) -> Any:
    """A schema, mostly of one kind; its keywords in any order, which should not count."""
    draw = choose.random()
    if draw < 0.05:
        return choose.random() < 0.7
    if draw < 0.15:
        return {"const": choose.choice(VALUES)}
    if draw < 0.25:
        return {"enum": choose.sample(VALUES, choose.randrange(1, 4))}
    if depth > 0 and draw < 0.4:
        key = choose.choice(["anyOf", "allOf", "oneOf"])
        made: dict[str, Any] = {key: [schema(choose, depth - 1) for _ in range(choose.randrange(1, 3))]}
        if choose.random() < 0.4:
            made |= of_one_kind(choose, depth - 1)
    elif depth > 0 and draw < 0.45:
        return {"$ref": "#/$defs/it"}
    else:
        made = of_one_kind(choose, depth)
    return dict(choose.sample(list(made.items()), len(made)))


def of_one_kind(choose: random.Random, depth: int) -> dict[str, Any]:
    kinds = ["null", "boolean", "integer", "number", "string"] + (["array", "object"] * 2 if depth > 0 else [])
    kind = choose.choice(kinds)
    keywords: dict[str, Any] = {
        "string": lambda: of_strings(choose),
        "integer": lambda: of_numbers(choose, whole=True),
        "number": lambda: of_numbers(choose, whole=False),
        "array": lambda: of_arrays(choose, depth),
        "object": lambda: of_objects(choose, depth),
    }.get(kind, dict)()
    draw = choose.random()
    said: Any = kind if draw < 0.8 else [kind, choose.choice(["null", "boolean"])]
    return keywords if draw > 0.95 else {"type": said, **keywords}


def schema_form_or_why(document: Any) -> CompiledForm | str:
    try:
        return schema_form(document)
    except UserError as error:
        return str(error)


def tried(first: int, count: int) -> tuple[int, int]:
    """How many of so many random schemas were held to, and how many texts were."""
    held, texts = 0, 0
    for seed in range(first, first + count):
        choose = random.Random(seed)
        document = schema(choose, 3)
        if isinstance(document, dict):
            # Never itself at once, of which nobody could say what fits.
            document["$defs"] = {"it": {"type": "object", "properties": {"a": schema(choose, 1)}, "required": ["a"]}}
        form = schema_form_or_why(document)
        if isinstance(form, str):
            assert len(form) < 500
            assert "\n" not in form
            continue
        held += 1
        for walked in range(6):
            text, constraint = walk(form, walked, 150)
            if constraint.complete and not constraint.closed:
                continue  # a number that could go on
            if constraint.complete:
                texts += 1
                assert fits(parsed(text), document), (seed, text, json.dumps(document))
            else:
                assert constraint.stuck is None, (seed, text, constraint.stuck, json.dumps(document))
    return held, texts


def test_random_schemas() -> None:
    held, texts = tried(0, 300)
    print(f"{held} of 300 schemas held, {texts} texts")
    assert held > 150
    assert texts > 700


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_random_schemas() -> None:
    held, texts = tried(10_000, 5_000)
    print(f"{held} of 5,000 schemas held, {texts} texts")
