"""What `response_format` asks for: OpenAI's kinds, and `regex` beside them."""

from __future__ import annotations

import json
from typing import Any

from gpt_common.data.tokenizers import Tokenizer
from gpt_common.errors import UserError
from gpt_common.serving.refusals import Refused, wrong
from gpt_common.structured import CompiledForm, Form, compile_form

KINDS = {
    "text": frozenset[str](),
    "json_object": frozenset[str](),
    "json_schema": frozenset({"json_schema"}),
    "grammar": frozenset({"grammar"}),
    "regex": frozenset({"regex"}),
}
"""And what each says beside its type. `grammar` is in OpenAI's client too; `regex` is called as vLLM calls it."""
OF_SCHEMAS = {"name", "description", "schema", "strict"}
ANY_OBJECT = '{"type": "object"}'
PARAM = "response_format"


def form_of(value: Any) -> Form | None:
    """The form that a request asks for; None: any text. Raises Refused."""
    if value is None:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise _wrong("must be an object with a `type`")
    kind = value["type"]
    if kind not in KINDS:
        raise _wrong(f"{json.dumps(kind[:40])} is not supported: choose from {', '.join(KINDS)}", "unsupported")
    others = value.keys() - {"type"} - KINDS[kind]
    if others:
        raise _wrong(f"of the type {kind} has no {json.dumps(min(others)[:40])}")
    if kind == "text":
        return None
    if kind == "json_object":
        return Form("json_schema", ANY_OBJECT, name=f"`{PARAM}`")
    if kind == "json_schema":
        return _schema(value.get("json_schema"))
    text = value.get(kind)
    if not isinstance(text, str):
        raise _wrong(f"of the type {kind} must have a text `{kind}`")
    return Form("regex" if kind == "regex" else "grammar", text, name=f"`{PARAM}`")


def _schema(said: Any) -> Form:
    if not isinstance(said, dict) or "schema" not in said:
        raise _wrong("of the type json_schema must have `json_schema` with a `name` and a `schema`")
    if others := said.keys() - OF_SCHEMAS:
        raise _wrong(f"has {json.dumps(min(others)[:40])} in `json_schema`, which is not known")
    if not isinstance(said.get("name", ""), str) or not isinstance(said.get("strict", True), bool | None):
        raise _wrong("has a `name` that is no text, or a `strict` that is neither true nor false")
    # Strict or not: what a schema asks for is enforced, or refused.
    return Form("json_schema", json.dumps(said["schema"]), name=f"`{PARAM}`")


def compiled(form: Form, tokenizer: Tokenizer) -> CompiledForm:
    """A form for a model; raises Refused where it cannot be kept to, or what does it is not installed."""
    try:
        return compile_form(form, tokenizer)
    except UserError as error:
        raise wrong(PARAM, str(error), code="unsupported") from None


def _wrong(text: str, code: str | None = None) -> Refused:
    return wrong(PARAM, f"`{PARAM}` {text}", code=code)
