"""Schemas that ask for themselves again and again: what no finite text fits is taken out, so that nobody enters it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def without_endless(root: Any, definitions: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A schema and its definitions with false in place of whatever never ends.

    The least fixed point: a definition ends if it does without those that are not known to.
    """
    ending: set[str] = set()
    while True:
        more = {name for name, node in definitions.items() if name not in ending and _ends(node, ending)}
        if not more:
            break
        ending |= more
    return _pruned(root, ending), {name: _pruned(node, ending) for name, node in definitions.items()}


def _ends(node: Any, ending: set[str]) -> bool:
    """Whether some text that fits a schema is finite, where of the definitions these are known to end."""
    if isinstance(node, bool):
        return node
    if "$ref" in node and node["$ref"].removeprefix("#/$defs/") not in ending:
        return False
    if not all(_ends(one, ending) for one in node.get("allOf", ())):
        return False
    for key in ("anyOf", "oneOf"):
        if key in node and not any(_ends(one, ending) for one in node[key]):
            return False
    kinds = [node["type"]] if isinstance(node.get("type"), str) else node.get("type", ())
    return not kinds or any(_kind_ends(kind, node, ending) for kind in kinds)


def _kind_ends(kind: str, node: dict[str, Any], ending: set[str]) -> bool:
    if kind == "object":
        rest = node.get("additionalProperties", True)
        named = node.get("properties", {})
        return all(_ends(named.get(name, rest), ending) for name in node.get("required", ()))
    if kind == "array":
        first, fewest = node.get("prefixItems", []), node.get("minItems", 0)
        needed = [*first[:fewest], *([node.get("items", True)] if fewest > len(first) else [])]
        return all(_ends(one, ending) for one in needed)
    return True


def _pruned(node: Any, ending: set[str]) -> Any:
    if not _ends(node, ending):
        return False
    if isinstance(node, bool):
        return node
    made = dict(node)
    for key in ("properties", "patternProperties"):
        if key in made:
            made[key] = {name: _pruned(one, ending) for name, one in made[key].items()}
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if key in made:
            made[key] = [_pruned(one, ending) for one in made[key]]
    for key in ("items", "additionalProperties"):
        if key in made:
            made[key] = _pruned(made[key], ending)
    return made
