"""Whether a value fits a JSON schema, by the words of draft 2020-12 and nothing of what is tested."""

from __future__ import annotations

import datetime
import ipaddress
import json
import re
import uuid
import warnings
from decimal import Context, Decimal, InvalidOperation
from typing import Any

EXACT = Context(prec=2000)
"""More digits than a text of these tests has."""
KINDS: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "string": (str,),
    "array": (list,),
    "object": (dict,),
}


def parsed(text: str) -> Any:
    """JSON with its numbers as they are written."""
    return json.loads(text, parse_int=Decimal, parse_float=_number)


def _number(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent that no machine has
        return Decimal("NaN")


def fits(value: Any, schema: Any, root: Any = None) -> bool:
    """Whether a value fits; numbers are Decimals. Raises KeyError over a keyword that is not known here."""
    if isinstance(schema, bool):
        return schema
    root = schema if root is None else root
    return all(_holds(key, value, schema, root) for key in schema)


def _holds(key: str, value: Any, schema: dict[str, Any], root: Any) -> bool:
    asked = schema[key]
    if key in ("$defs", "$schema", "title", "description", "default", "examples", "definitions"):
        return True
    if key == "$ref":
        found = root
        for step in asked.split("/")[1:]:
            found = found[step.replace("~1", "/").replace("~0", "~")]
        return fits(value, found, root)
    if key == "type":
        return any(_is(value, name) for name in ([asked] if isinstance(asked, str) else asked))
    if key == "const":
        return _equal(value, asked)
    if key == "enum":
        return any(_equal(value, one) for one in asked)
    if key in ("allOf", "anyOf", "oneOf"):
        right = sum(fits(value, one, root) for one in asked)
        return {"allOf": right == len(asked), "anyOf": right > 0, "oneOf": right == 1}[key]
    if isinstance(value, Decimal):
        return _number_holds(key, value, asked)
    if isinstance(value, str):
        return _string_holds(key, value, asked)
    if isinstance(value, list):
        return _array_holds(key, value, schema, root)
    if isinstance(value, dict):
        return _object_holds(key, value, schema, root)
    return True


def _is(value: Any, name: str) -> bool:
    if name == "integer":
        return isinstance(value, Decimal) and value == value.to_integral_value()
    return isinstance(value, Decimal) if name == "number" else isinstance(value, KINDS[name])


def _equal(value: Any, other: Any) -> bool:
    if isinstance(other, list):
        return isinstance(value, list) and len(value) == len(other) and all(map(_equal, value, other))
    if isinstance(other, dict):
        return (
            isinstance(value, dict) and value.keys() == other.keys() and all(_equal(value[k], other[k]) for k in other)
        )
    if isinstance(value, Decimal) and isinstance(other, int | float) and not isinstance(other, bool):
        return value == Decimal(str(other))
    return type(value) is type(other) and bool(value == other)


def _number_holds(key: str, value: Decimal, asked: Any) -> bool:
    holds = {
        "minimum": lambda: value >= Decimal(str(asked)),
        "maximum": lambda: value <= Decimal(str(asked)),
        "exclusiveMinimum": lambda: value > Decimal(str(asked)),
        "exclusiveMaximum": lambda: value < Decimal(str(asked)),
        "multipleOf": lambda: EXACT.remainder(value, Decimal(str(asked))) == 0,
    }
    return key not in holds or holds[key]()


def _string_holds(key: str, value: str, asked: Any) -> bool:
    if key == "minLength":
        return len(value) >= int(asked)
    if key == "maxLength":
        return len(value) <= int(asked)
    if key == "pattern":
        return _found(asked, value)
    return key != "format" or _is_of_format(value, asked)


def _found(pattern: str, text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of signs that may mean something else one day
        return re.search(pattern, text, re.ASCII) is not None


def _is_of_format(value: str, name: str) -> bool:
    try:
        if name == "date":
            datetime.date.fromisoformat(value.replace("0000", "2000", 1) if value.startswith("0000") else value)
        elif name in ("time", "date-time"):
            day, _, time = value.rpartition("T")
            datetime.time.fromisoformat(re.sub(r"\.\d+", "", time))
            return name == "time" or _is_of_format(day, "date")
        elif name == "uuid":
            return str(uuid.UUID(value)) == value.lower()
        elif name in ("ipv4", "ipv6"):
            ipaddress.ip_address(value)
        else:
            raise KeyError(name)
    except ValueError:
        return False
    return True


def _array_holds(key: str, value: list[Any], schema: dict[str, Any], root: Any) -> bool:
    asked, first = schema[key], schema.get("prefixItems", [])
    if key == "minItems":
        return len(value) >= int(asked)
    if key == "maxItems":
        return len(value) <= int(asked)
    if key == "prefixItems":
        return all(fits(one, each, root) for one, each in zip(value, asked, strict=False))
    return key != "items" or all(fits(one, asked, root) for one in value[len(first) :])


def _object_holds(key: str, value: dict[str, Any], schema: dict[str, Any], root: Any) -> bool:
    asked, named = schema[key], schema.get("properties", {})
    patterns = schema.get("patternProperties", {})
    if key == "required":
        return all(name in value for name in asked)
    if key == "minProperties":
        return len(value) >= int(asked)
    if key == "maxProperties":
        return len(value) <= int(asked)
    if key == "properties":
        return all(fits(value[name], one, root) for name, one in asked.items() if name in value)
    if key == "patternProperties":
        return all(
            fits(one, each, root)
            for pattern, each in asked.items()
            for name, one in value.items()
            if _found(pattern, name)
        )
    if key == "additionalProperties":
        rest = (n for n in value if n not in named and not any(_found(p, n) for p in patterns))
        return all(fits(value[name], asked, root) for name in rest)
    return True
