"""JSON schemas read with suspicion: what would not be enforced to the letter is refused, by name and place.

A schema is read as draft 2020-12 has it. What comes out has the same values in it and only keywords that llguidance
enforces; each place that a `$ref` leads to is one of its `$defs`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from gpt_common.errors import UserError, nearest
from gpt_common.structured import formats
from gpt_common.structured.endless import without_endless
from gpt_common.structured.keywords import ENFORCED, NOT_ENFORCED, NOTES
from gpt_common.structured.patterns import class_of, translated
from gpt_common.structured.vocabulary import Vocabulary

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
COUNTS = ("minProperties", "maxProperties", "minItems", "maxItems", "minLength", "maxLength")
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
DEEPEST, MOST_PLACES, MOST_VALUES, LARGEST_COUNT = 64, 5000, 5000, 10_000
LARGEST_WHOLE = 1 << 53
"""Beyond it llguidance, which reads numbers as floats, would mean another one."""
LARGEST_FACTOR = 1000
"""Of `multipleOf`, without its point: what it takes grows with the square."""


def read_schema(document: Any, vocabulary: Vocabulary) -> Schema:
    """A schema for llguidance.

    Args:
        document: the JSON of it.
        vocabulary: what must be able to write what it asks for.

    Raises:
        UserError: something in it that is wrong, would not be enforced, or cannot be written.
    """
    reader = _Reader(document, vocabulary)
    root = reader.read(document, "#", 0, None)
    while reader.waiting:
        pointer = reader.waiting.pop()
        reader.definitions[reader.names[pointer]] = reader.read(reader.pointed[pointer], pointer, 0, None)
    root, definitions = without_endless(root, reader.definitions)
    if root is False:
        raise UserError(
            "#: nothing fits: what it asks for is impossible, or never ends because it asks for itself again and again"
        )
    return Schema({} if root is True else root, definitions, reader.places)


@dataclass
class Schema:
    """What `read_schema` makes of a schema."""

    root: dict[str, Any]
    definitions: dict[str, Any]
    places: list[tuple[str, Any]]
    """Every place that was read and what was made of it, the innermost first."""

    def text(self, node: Any = None) -> str:
        """For llguidance: the whole, or what stands at one of its places."""
        node = self.root if node is None else node
        return json.dumps({**node, "$defs": self.definitions} if isinstance(node, dict) else node)


@dataclass
class _Reader:
    document: Any
    vocabulary: Vocabulary
    names: dict[str, str] = field(default_factory=dict)
    """Of the definitions, by the places that a `$ref` leads to."""
    pointed: dict[str, Any] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    definitions: dict[str, Any] = field(default_factory=dict)
    places: list[tuple[str, Any]] = field(default_factory=list)
    values: int = 0

    def read(self, node: Any, where: str, depth: int, types: Sequence[str] | None) -> Any:
        """A schema at a place.

        Args:
            types: what may stand here by what is around it.
        """
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            raise UserError(f"{where}: a schema must be an object, true or false")
        if depth > DEEPEST:
            raise UserError(f"{where[:80]}...: the schema is nested more than {DEEPEST} deep")
        if len(self.places) >= MOST_PLACES:
            raise UserError(f"the schema has more than {MOST_PLACES} places: it is too large")
        for key in node:
            self._check_keyword(key, node, where)
        types = self._types(node, where, types)
        self._check_numbers(node, where, types)
        self._check_written(node, where, types)
        made: dict[str, Any] = {}
        for key, value in node.items():
            if key not in NOTES and not (key == "uniqueItems" and value is False):
                made[key] = self._made(key, value, where, depth, types)
        made, more = formats.without_format(made)
        patterns = [pattern for pattern in (made.pop("pattern", None), more) if pattern]
        if (patterns or "format" in made) and self.vocabulary.characters is not None:
            patterns.append(f"^{class_of(self._decoded())}*$")
        if patterns:
            # Behind the others, and an intersection: its place tells nothing.
            made["pattern"] = patterns[0]
            if patterns[1:]:
                made["allOf"] = [*made.get("allOf", []), *({"pattern": one} for one in patterns[1:])]
        self._check_duplicates(made, where, types)
        self.places.append((where, made))
        return made

    def _check_keyword(self, key: str, node: dict[str, Any], where: str) -> None:
        if key == "uniqueItems" and node[key] is False:
            return
        if key == "$id" and where == "#" and isinstance(node[key], str):
            raise UserError(f"{where}: '$id' is not supported: references are local (#/$defs/NAME); leave it out")
        if key in NOT_ENFORCED:
            raise UserError(f"{where}: '{key}' is not supported, and would not be enforced: leave it out")
        if key not in ENFORCED and key not in NOTES:
            hint = nearest(key[:40], (*ENFORCED, *NOTES))
            hint = hint if hint.startswith("did") else "leave it out"
            raise UserError(f"{where}: {_shown(key)} is no keyword of a JSON schema: {hint}")
        if key == "$schema" and "json-schema.org/draft" not in str(node[key]):
            raise UserError(f"{where}: $schema {_shown(node[key])} is not known: a JSON schema is meant")

    def _types(self, node: dict[str, Any], where: str, around: Sequence[str] | None) -> Sequence[str]:
        """What may stand at a place, by name."""
        if "type" in node:
            said = node["type"]
            names = [said] if isinstance(said, str) else said
            if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
                raise UserError(f"{where}/type: it must be a name, or a list of names")
            for name in names:
                if name not in TYPES:
                    raise UserError(f"{where}/type: {_shown(name)} is no type: {nearest(name[:40], TYPES)}")
            return names
        if "const" in node or "enum" in node or "$ref" in node:
            return ()  # the values say it
        if around is not None:
            return around
        if any(key in node for key in ("anyOf", "oneOf", "allOf")):
            return ()
        return TYPES

    def _check_numbers(self, node: dict[str, Any], where: str, types: Sequence[str]) -> None:
        for key in COUNTS:
            if key in node and not (_is_whole(node[key]) and 0 <= node[key] <= LARGEST_COUNT):
                raise UserError(f"{where}/{key}: it must be a whole number from 0 to {LARGEST_COUNT}")
        for key in (*BOUNDS, "multipleOf"):
            if key in node:
                self._check_number(node[key], f"{where}/{key}")
        for key in ("exclusiveMinimum", "exclusiveMaximum"):
            if key in node and ("number" in types or not types):
                raise UserError(
                    f"{where}: '{key}' is enforced for the type integer alone: numbers would reach the bound itself"
                )
        if "multipleOf" in node:
            digits = Decimal(str(node["multipleOf"])).normalize().as_tuple().digits
            factor = Decimal(str(node["multipleOf"]))
            scaled = int("".join(map(str, digits))) * 10 ** max(0, int(factor.normalize().as_tuple().exponent))
            if factor <= 0 or scaled > LARGEST_FACTOR:
                raise UserError(
                    f"{where}/multipleOf: it must be above 0, with a value of {LARGEST_FACTOR} at most "
                    "without its point"
                )

    def _check_number(self, value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{where}: it must be a number")
        if not math.isfinite(value) or abs(value) > LARGEST_WHOLE:
            raise UserError(f"{where}: the number must be between -2^53 and 2^53, or another one would be meant")

    def _check_value(self, value: Any, where: str, depth: int = 0) -> None:
        """Refuse values of `const` and `enum` that llguidance would read as others, or too many."""
        self.values += 1
        if self.values > MOST_VALUES or depth > DEEPEST:
            raise UserError(f"{where}: the schema has more than {MOST_VALUES} values, or too deep ones")
        if isinstance(value, int | float) and not isinstance(value, bool):
            self._check_number(value, where)
        for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            self._check_value(one, where, depth + 1)

    def _made(self, key: str, value: Any, where: str, depth: int, types: Sequence[str]) -> Any:
        """The value of a keyword, for llguidance."""
        here = f"{where}/{key}"
        if key in ("properties", "patternProperties"):
            if not isinstance(value, dict):
                raise UserError(f"{here}: it must be an object")
            names = {name: translated(name, here) if key == "patternProperties" else name for name in value}
            return {
                names[name]: self.read(one, f"{here}/{_step(name)}", depth + 1, None) for name, one in value.items()
            }
        if key in ("anyOf", "oneOf", "allOf", "prefixItems"):
            if not isinstance(value, list) or not value:
                raise UserError(f"{here}: it must be a list of schemas")
            around = None if key == "prefixItems" else types or None
            return [self.read(one, f"{here}/{i}", depth + 1, around) for i, one in enumerate(value)]
        if key in ("items", "additionalProperties"):
            if isinstance(value, list):
                raise UserError(f"{here}: a list of schemas is called prefixItems today")
            return self.read(value, here, depth + 1, None)
        if key == "$ref":
            return f"#/$defs/{self._referred(value, here)}"
        if key == "pattern":
            if not isinstance(value, str):
                raise UserError(f"{here}: it must be a text")
            return translated(value, here)
        if key == "format" and value not in formats.KNOWN:
            raise UserError(f"{here}: {_shown(value)} is not enforced: choose from {', '.join(formats.KNOWN)}")
        if key in ("const", "enum"):
            if key == "enum" and (not isinstance(value, list) or not value):
                raise UserError(f"{here}: it must be a list of values")
            self._check_value(value, here)
        if key == "required" and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
            raise UserError(f"{here}: it must be a list of names")
        return value

    def _referred(self, reference: Any, where: str) -> str:
        """The name of the definition that a `$ref` leads to."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise UserError(f"{where}: {_shown(reference)} is not in this schema: references are local (#/$defs/NAME)")
        pointer = unquote(reference)
        if pointer in ("#", "#/"):
            pointer = "#"
        if pointer not in self.names:
            found = self.document
            for step in pointer.split("/")[1:] if pointer != "#" else ():
                step = step.replace("~1", "/").replace("~0", "~")
                if isinstance(found, list) and step.isdigit() and int(step) < len(found):
                    found = found[int(step)]
                elif isinstance(found, dict) and step in found:
                    found = found[step]
                else:
                    raise UserError(f"{where}: there is nothing at {_shown(reference)}")
            if pointer != "#" and not pointer.startswith("#/"):
                raise UserError(f"{where}: {_shown(reference)} is not supported: write #/$defs/NAME")
            self.names[pointer] = str(len(self.names))
            self.pointed[pointer] = found
            self.waiting.append(pointer)
        return self.names[pointer]

    def _check_duplicates(self, node: dict[str, Any], where: str, types: Sequence[str]) -> None:
        """Names beyond `properties` may come twice, and a reader takes them for one: there can be too few then."""
        fewest = node.get("minProperties", 0)
        if (
            fewest > 1
            and "object" in (types or TYPES)
            and len(set(node.get("required", ()))) < fewest
            and (node.get("additionalProperties", True) is not False or node.get("patternProperties"))
        ):
            raise UserError(
                f"{where}: 'minProperties' above 1 is enforced only where all names stand in 'properties' or 'required'"
            )

    # ---- what the vocabulary can write -------------------------------------------------------------------------------

    def _check_written(self, node: dict[str, Any], where: str, types: Sequence[str]) -> None:
        """Refuse what a vocabulary that lacks letters could begin and never end."""
        if self.vocabulary.characters is None:
            return
        needed: list[str] = []
        if "object" in types:
            needed += ["{}", *('":,' if node.get(key) else "" for key in ("properties", "required"))]
            if node.get("additionalProperties", True) is not False or node.get("patternProperties"):
                needed.append('":,')
        if "array" in types:
            needed.append("[]" + ("," if node.get("maxItems", 2) > 1 else ""))
        needed += ['"' if "string" in types else "", "truefalse" if "boolean" in types else ""]
        needed += ["null" if "null" in types else "", "0123456789" if {"integer", "number"} & {*types} else ""]
        values = [node["const"]] if "const" in node else node.get("enum") or []
        for value in [*values, *node.get("properties", {}), *node.get("required", ())]:
            needed.append(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
        for text in needed:
            letter = self.vocabulary.lacking(text)
            if letter is not None:
                what = f" of {_shown(text)}" if len(text) > 1 and text not in ("truefalse", "0123456789") else ""
                raise UserError(f"{where}: the vocabulary of this model cannot write {letter!r}{what}")

    def _decoded(self) -> set[str]:
        """Characters that a JSON string may have, with or without a backslash."""
        characters, escapes = self.vocabulary.characters or frozenset(), self.vocabulary.escapes
        plain = {c for c in characters if c >= " " and c not in '"\\'}
        meant = {"n": "\n", "r": "\r", "b": "\b", "t": "\t", "f": "\f", "\\": "\\", '"': '"'}
        return plain | {meant[letter] for letter in escapes if letter in meant}


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _step(name: str) -> str:
    shown = name.replace("~", "~0").replace("/", "~1")
    return shown if len(shown) <= 40 else shown[:37] + "..."
