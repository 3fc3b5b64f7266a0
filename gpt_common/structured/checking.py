"""Whether a text that was written without a form fits one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any

from gpt_common.data.tokenizers import Tokenizer
from gpt_common.files import parse_json
from gpt_common.structured.forms import Form, compile_form


def same_json(one: Any, other: Any) -> bool:
    """Whether two values of JSON are one: the order of names does not count, and 1.0 is 1."""
    return json.dumps(plain_numbers(one), sort_keys=True) == json.dumps(plain_numbers(other), sort_keys=True)


_BEYOND = 10**309
"""A whole number that no float holds."""


class _Bytes(Tokenizer):
    """A token for every byte: any text can be written."""

    kind = "bytes"

    def __init__(self) -> None:
        super().__init__({i: bytes([i]) for i in range(256)}, {"kind": self.kind}, None)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def last_cut(self, text: str) -> int:
        return len(text)


def checker(schema: str) -> Callable[[Any], bool]:
    """A function that says of a value of JSON whether it fits a schema; the order of its names does not count.

    Args:
        schema: the JSON of it.

    Raises:
        UserError: as `compile_form`.
    """
    compile_form(Form("json_schema", schema, name="the schema"), _Bytes())
    document = plain_numbers(parse_json(schema))
    form = compile_form(Form("json_schema", json.dumps(document), name="the schema"), _Bytes())
    # llguidance wants multiples of 0.25 with both of their decimals.
    decimals = {0, *(len(str(factor).partition(".")[2]) for factor in _factors(document))}

    def fits(value: Any) -> bool:
        try:
            return _fits(plain_numbers(value))
        except RecursionError:  # nested deeper than any schema here
            return False

    def _fits(value: Any) -> bool:
        # Whatever order is accepted, the value fits. Of schemas in schemas llguidance takes some names first.
        orders = (value, *(_ordered(value, [document], document, inner_first=first) for first in (False, True)))
        texts = {_text(one, places) for one in orders for places in decimals}
        return any(_accepted(form.matcher.deep_copy(), text.replace("\x7f", "\\u007f")) for text in texts)

    return fits


def _accepted(matcher: Any, text: str) -> bool:
    try:
        return bool(matcher.consume_tokens(list(text.encode())) and matcher.is_accepting())
    except UnicodeEncodeError:
        return False


def _factors(node: Any) -> Iterator[Any]:
    for name, one in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if name == "multipleOf" and isinstance(one, int | float):
            yield Decimal(str(one)).normalize()
        yield from _factors(one)


def _text(value: Any, places: int) -> str:
    """Compact JSON, with so many decimals at least."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_text(name, 0)}:{_text(one, places)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_text(one, places) for one in value) + "]"
    if isinstance(value, float) and float(f"{value:.{places}f}") == value:
        return f"{value:.{places}f}"
    return json.dumps(value, ensure_ascii=False)


def plain_numbers(value: Any) -> Any:
    """A value of JSON with every whole number written as one: to JSON 1.0 and 1 are the same, and both are integers."""
    if isinstance(value, float):
        if math.isinf(value):  # what JSON can say and a float cannot hold
            return _BEYOND if value > 0 else -_BEYOND
        return int(value) if value.is_integer() else value
    if isinstance(value, list):
        return [plain_numbers(one) for one in value]
    return {name: plain_numbers(one) for name, one in value.items()} if isinstance(value, dict) else value


def _ordered(value: Any, nodes: Sequence[Any], root: Any, *, inner_first: bool) -> Any:
    """A value with its names in the order in which its schemas have them, in which a form asks for them.

    Args:
        inner_first: the names of the schemas in a schema come before its own.
    """
    known = list(_with_their_parts(nodes, root, inner_first))
    for node in known:
        for one in [node["const"]] if "const" in node else node.get("enum", ()):
            if isinstance(one, dict | list) and same_json(one, value):
                return one
    if isinstance(value, list):
        return [
            _ordered(
                one,
                [
                    node["prefixItems"][i] if i < len(node.get("prefixItems", ())) else node.get("items")
                    for node in known
                ],
                root,
                inner_first=inner_first,
            )
            for i, one in enumerate(value)
        ]
    if not isinstance(value, dict):
        return value
    named = [node.get("properties", {}) for node in known]
    rest = [node.get("additionalProperties") for node in known]
    rest += [one for node in known for one in node.get("patternProperties", {}).values()]
    order = dict.fromkeys(name for names in (*named, *(node.get("required", ()) for node in known)) for name in names)
    names = [*(name for name in order if name in value), *(name for name in value if name not in order)]
    return {
        name: _ordered(
            value[name],
            [names_of[name] for names_of in named if name in names_of] or rest,
            root,
            inner_first=inner_first,
        )
        for name in names
    }


def _with_their_parts(nodes: Sequence[Any], root: Any, inner_first: bool, depth: int = 0) -> Iterator[dict[str, Any]]:
    for node in nodes:
        if not isinstance(node, dict) or depth > 16:
            continue
        if not inner_first:
            yield node
        parts = [one for key in ("allOf", "anyOf", "oneOf") for one in node.get(key, ())]
        if "$ref" in node:
            found = root
            for step in node["$ref"].split("/")[1:]:
                step = step.replace("~1", "/").replace("~0", "~")
                found = found[int(step)] if isinstance(found, list) else found[step]
            parts.append(found)
        yield from _with_their_parts(parts, root, inner_first, depth + 1)
        if inner_first:
            yield node
