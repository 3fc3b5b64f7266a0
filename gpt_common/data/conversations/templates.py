"""The template of conversations that stands beside a tokenizer, in a folder of ours or of another program."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt_common.data.conversations.written import CHATML, LARGEST_TEMPLATE, Template
from gpt_common.errors import UserError
from gpt_common.files import read_bytes, read_json

SETTINGS = "tokenizer_config.json"
JINJA = "chat_template.jinja"
LARGEST_SETTINGS = 1 << 24


def settings_of(template: Template) -> str:
    """What `tokenizer_config.json` says of a template and of the tokens that it knows."""
    settings = {"bos_token": template.begin, "eos_token": template.end, "chat_template": template.source}
    return json.dumps(settings, indent=1) + "\n"


def folder_beside(tokenizer: Path) -> Path:
    """Where a template of a tokenizer would lie: in the folder of it; of a checkpoint's in the run's."""
    folder = tokenizer if tokenizer.is_dir() else tokenizer.parent
    return folder.parent.parent if folder.parent.name == "checkpoints" else folder


def own_template(tokenizer: Path) -> Template | None:
    """The template beside a tokenizer; None where there is none, or ours.

    Raises:
        UserError: there is one that cannot be read.
    """
    found = template_beside(None, str(tokenizer))
    return None if found.source in (None, CHATML) else found


def template_beside(choice: str | None, tokenizer: str) -> Template:
    """The template that was asked for, or the one beside the tokenizer; ChatML where there is none.

    Args:
        tokenizer: the path of one, or of its folder.

    Raises:
        UserError: it cannot be read.
    """
    beside = folder_beside(Path(tokenizer))
    settings = _settings(beside / SETTINGS) if Path(tokenizer).exists() else {}
    tokens = {"begin": _token(settings.get("bos_token")), "end": _token(settings.get("eos_token"))}
    if choice == "chatml":
        return Template()
    if choice is not None:
        return replace(_jinja(Path(choice)), **tokens)
    if Path(tokenizer).exists() and (beside / JINJA).is_file():
        return replace(_jinja(beside / JINJA), **tokens)
    own = settings.get("chat_template")
    if isinstance(own, list):  # several by name
        own = next(
            (each.get("template") for each in own if isinstance(each, dict) and each.get("name") == "default"), 0
        )
    if own is None:
        return Template()
    if not isinstance(own, str) or len(own) > LARGEST_TEMPLATE:
        raise UserError(
            f"the chat_template in {beside / SETTINGS} is no text, or endless: --template chatml does without"
        )
    return Template(own, str(beside / SETTINGS), **tokens)


def _jinja(path: Path) -> Template:
    try:
        return Template(read_bytes(path, LARGEST_TEMPLATE).decode("utf-8"), str(path))
    except FileNotFoundError:
        raise UserError(f"--template {path}: no such file; it is chatml, or a file of Jinja") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read template {path}: {error}") from None


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path, LARGEST_SETTINGS)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    return found if isinstance(found, dict) else {}


def _token(value: Any) -> str:
    """The text of a special token in somebody's settings."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""
