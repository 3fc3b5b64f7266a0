"""The result file: one schema, versioned, checked on writing and on reading. docs/benchmark-results.md explains it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from gpt_common.errors import UserError
from gpt_common.training.checkpoint import cannot_write, write_atomically

VERSION = 1
"""Raised when a reader of the old version would misunderstand a file."""
SCHEMA_FILE = Path(__file__).with_name("schema.json")


def schema() -> dict[str, Any]:
    """The JSON schema."""
    return dict(json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))


def validate(result: dict[str, Any]) -> None:
    """Raise `jsonschema.ValidationError` if a result is not as the schema says."""
    import jsonschema

    jsonschema.validate(result, schema(), cls=jsonschema.Draft202012Validator)


def finite(value: Any) -> Any:
    """The same with NaN and infinity, which JSON does not know, as null."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_result(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Validate and write; returns what was written.

    Raises:
        UserError: the folder cannot be written to.
    """
    result = finite(result)
    validate(result)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(result, indent=1) + "\n")
    except OSError as error:
        raise cannot_write(path.parent, error) from None
    return result


def read_result(path: Path) -> dict[str, Any]:
    """A result that this or an earlier version of the project wrote.

    Raises:
        UserError: not readable, not a result, or of a newer version.
    """
    import jsonschema

    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        version = result["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a benchmark result: {error}") from None
    if version != VERSION:
        raise UserError(f"{path} has result version {version}, this is for version {VERSION}: update, or measure again")
    try:
        validate(result)
    except jsonschema.ValidationError as error:
        raise UserError(f"{path} is damaged at {error.json_path}: {error.message[:120]}") from None
    return dict(result)
