"""Forms that nobody would write by mistake: one line each, in bounded time and memory, and the process lives."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpt_common.data.tokenizers import CharTokenizer, Tokenizer
from gpt_common.errors import UserError
from gpt_common.structured import Form, compile_form
from tests.twins import ROOT

SECONDS, BYTES = 120, 2 << 30
"""Of a processor for all of them together (measured: 3), and of memory that they may ask for."""


def nested(depth: int, one: Any) -> Any:
    for _ in range(depth):
        one = {"type": "array", "items": one}
    return one


def chain(length: int, link: Any, last: Any) -> dict[str, Any]:
    """Definitions that each lead to the next by `link`, the first of them asked for."""
    definitions = {f"d{i}": json.loads(json.dumps(link).replace("NEXT", f"#/$defs/d{i + 1}")) for i in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{length}": last}}


def choices(count: int, of: int) -> dict[str, Any]:
    return {
        "allOf": [
            {"anyOf": [{"type": "object", "properties": {f"k{i}{j}": {"type": "integer"}}} for j in range(of)]}
            for i in range(count)
        ]
    }


def schemas() -> dict[str, Any]:
    """By name what is asked for; a text is sent as it is."""
    again = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    twice = {"allOf": [{"$ref": "NEXT"}, {"$ref": "NEXT"}]}
    tree = {"type": "object", "properties": {"l": {"$ref": "NEXT"}, "r": {"$ref": "NEXT"}}, "required": ["l", "r"]}
    return {
        "itself": {"$ref": "#"},
        "itself in a circle": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        "itself, required": again,
        "itself, in a list": {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        "itself, in every choice": {"anyOf": [again, {"$ref": "#/anyOf/0"}]},
        "itself with more": {"allOf": [{"$ref": "#"}, {"type": "object"}]},
        "a tree of 2^40": chain(40, tree, {"type": "integer"}),
        "a product of 2^40": chain(40, twice, {"type": "object"}),
        "choices times choices": choices(6, 4),
        "many choices times choices": choices(12, 8),
        "a thousand deep": '{"items":' * 1000 + "true" + "}" * 1000,
        "a hundred deep": nested(100, {"type": "integer"}),
        "a hundred thousand brackets": "[" * 100_000,
        "a deep value": {"const": json.loads("[" * 200 + "]" * 200)},
        "a hundred thousand words": {"enum": [f"w{i}" for i in range(100_000)]},
        "ten thousand words": {"enum": [f"w{i}" for i in range(10_000)]},
        "ten thousand names": {"type": "object", "properties": {f"p{i}": {} for i in range(10_000)}},
        "four thousand names": {"type": "object", "properties": {f"p{i}": {"const": 1} for i in range(4000)}},
        "a very long word": {"const": "x" * 1_000_000},
        "a million letters": {"type": "string", "minLength": 1_000_000},
        "a million items": {"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000},
        "from 5 to 3": {"type": "integer", "minimum": 5, "maximum": 3},
        "longer than long": {"type": "string", "minLength": 5, "maxLength": 3},
        "two kinds at once": {"allOf": [{"type": "string"}, {"type": "integer"}]},
        "two values at once": {"allOf": [{"const": 1}, {"const": 2}]},
        "nothing": False,
        "a required name that is forbidden": {"type": "object", "required": ["a"], "additionalProperties": False},
        "pattern and length": {"type": "string", "pattern": "^a$", "minLength": 9},
        "multiples of a large prime": {"type": "integer", "multipleOf": 999_983},
        "infinity": '{"type": "number", "minimum": 1e999}',
        "not a number": '{"type": "number", "minimum": NaN}',
        "unknown keywords": {f"x{i}": i for i in range(100)},
        "its own options": {"type": "object", "x-guidance": {"lenient": True, "whitespace_pattern": ".*"}},
        "a pattern of ten thousand": {"type": "string", "pattern": "(" * 5000 + "a" + ")" * 5000},
        "counts in counts": {"type": "string", "pattern": "^((a{100}){100}){100}$"},
        "a pattern that goes back": {"type": "string", "pattern": "^(a+)+\\1$"},
        "a pattern to look around": {"type": "string", "pattern": "^(?=.*a)(?!.*b).*$"},
        "patterns of names": {"type": "object", "patternProperties": {f"^(a|b)*{i}": {} for i in range(200)}},
        "half a letter": {"const": "\ud800"},
        "half a letter in a pattern": {"type": "string", "pattern": "\\ud800"},
        "another place": {"$ref": "file:///etc/passwd"},
        "a place in itself": {"$ref": "#/$ref"},
        "no schema": [1, 2],
        "types of everything": {"type": [1, None]},
        "not UTF-8": "\ud800",
        "empty": "",
    }


def others() -> dict[str, Form]:
    """Expressions and grammars."""
    return {
        "counts in counts in counts": Form("regex", "((a{1000}){1000}){1000}"),
        "catastrophic, for others": Form("regex", "(x+x+)+y(a|a)*(.*b){30}"),
        "five thousand brackets": Form("regex", "(" * 5000 + "a" + ")" * 5000),
        "a long expression": Form("regex", "(ab?|c*d)" * 40_000),
        "maybe and surely": Form("regex", "(a?){300}a{300}"),
        "nothing fits": Form("regex", "[^\\s\\S]"),
        "no grammar": Form("grammar", "%%%"),
        "without a beginning": Form("grammar", 'a: "x"'),
        "without an end": Form("grammar", 'start: "a" start'),
        "in every way": Form("grammar", 'start: e\ne: e e e | e e | "a" |'),
        "twenty thousand words": Form("grammar", "start: " + " | ".join(f'"w{i}"' for i in range(20_000))),
        "a billion letters": Form("grammar", 'start: a{1000}\na: b{1000}\nb: "x"{1000}'),
        "a schema inside": Form("grammar", 'start: %json {"type": "object", "x-guidance": {"lenient": true}}'),
        "a token inside": Form("grammar", "start: <[999999999]>"),
    }


def answers(tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """What is said to each, or how far a text comes that keeps to it."""
    forms = {
        name: Form("json_schema", schema if isinstance(schema, str) else json.dumps(schema))
        for name, schema in schemas().items()
    }
    for name, form in [*forms.items(), *others().items()]:
        try:
            constraint = compile_form(form, tokenizer).begin()
        except UserError as error:
            yield name, f"refused: {error}"
            continue
        rng, made = np.random.default_rng(0), 0
        while not constraint.closed and made < 50:
            constraint.take(int(rng.choice(constraint.allowed)))
            made += 1
        yield name, constraint.stuck or f"followed for {made} tokens"


def bounded() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))


def test_one_line_each_in_bounded_time_and_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpt_common.structured.test_hostile"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=bounded,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    said = dict(line.split("\t", 1) for line in done.stdout.splitlines())
    assert said.keys() == {*schemas(), *others()}
    assert len(schemas()) >= 40
    followed = {name for name, text in said.items() if text.startswith("followed")}
    print(*(f"{name}: {text}" for name, text in said.items()), sep="\n")
    assert all(len(text) < 400 for text in said.values())
    assert followed <= {
        "a tree of 2^40",
        "a product of 2^40",
        "catastrophic, for others",
        "in every way",
    }


if __name__ == "__main__":
    for _name, _said in answers(CharTokenizer("\n" + "".join(map(chr, range(32, 127))), end_of_text=True)):
        print(_name, _said, sep="\t")
