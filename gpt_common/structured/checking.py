"""Whether a text that was written without a form fits one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gpt_common.data.tokenizers import Tokenizer
from gpt_common.files import parse_json
from gpt_common.structured.forms import Form, compile_form


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
    form, document = compile_form(Form("json_schema", schema, name="the schema"), _Bytes()), parse_json(schema)

    def fits(value: Any) -> bool:
        text = json.dumps(_ordered(value, [document], document), ensure_ascii=False, separators=(",", ":"))
        try:
            ids = list(text.encode())
        except UnicodeEncodeError:
            return False
        matcher = form.matcher.deep_copy()
        return bool(matcher.consume_tokens(ids) and matcher.is_accepting())

    return fits


def _ordered(value: Any, nodes: Sequence[Any], root: Any) -> Any:
    """A value with its names in the order in which its schemas have them, in which a form asks for them."""
    known = list(_with_their_parts(nodes, root))
    if isinstance(value, list):
        return [
            _ordered(
                one,
                [
                    node["prefixItems"][i] if i < len(node.get("prefixItems", ())) else node.get("items")
                    for node in known
                ],
                root,
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
        name: _ordered(value[name], [names_of[name] for names_of in named if name in names_of] or rest, root)
        for name in names
    }


def _with_their_parts(nodes: Sequence[Any], root: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    for node in nodes:
        if not isinstance(node, dict) or depth > 16:
            continue
        yield node
        parts = [one for key in ("allOf", "anyOf", "oneOf") for one in node.get(key, ())]
        if "$ref" in node:
            found = root
            for step in node["$ref"].split("/")[1:]:
                step = step.replace("~1", "/").replace("~0", "~")
                found = found[int(step)] if isinstance(found, list) else found[step]
            parts.append(found)
        yield from _with_their_parts(parts, root, depth + 1)
