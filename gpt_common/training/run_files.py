"""What a run's folder says of it besides checkpoints and log: config.toml, run.json, and a template if it has one."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpt_common.config import to_toml
from gpt_common.data.conversations.templates import SETTINGS, own_template, settings_of
from gpt_common.data.conversations.written import Template
from gpt_common.errors import UserError
from gpt_common.files import cannot_write, read_json, write_atomically
from gpt_common.machine.provenance import git_state, versions
from gpt_common.training.folder import LARGEST_ABOUT
from gpt_common.training.opening import Opening


def write_run_files(
    opening: Opening,
    *,
    twin: str,
    device: str,
    chip: str,
    power: dict[str, Any] | None = None,
    ranks: int = 1,
    engines: Sequence[str] = (),
) -> None:
    """Claim the run's folder, and write config.toml and run.json, which gains an entry every time it is taken up.

    A new run has its template of conversations beside them, where that is not ours.

    Args:
        power: where watts come from, if they were asked for.
        ranks: how many processes train together.
        engines: what each of them computes with, where they were started by hand.

    Raises:
        UserError: another run has the folder, or it cannot be written.
    """
    opening.hold.claim()
    session = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([f"python -m {twin}.train", *sys.argv[1:]]),
        "first_step": opening.first_step,
        "preset": opening.preset,
        "device": device,
        "chip": chip,
        "power": power,
        "ranks": ranks,
        "rank_engines": list(engines) or None,
        "os": platform.platform(),
        "versions": versions(),
        "git": git_state(),
    }
    path = opening.folder / "run.json"
    sessions = _earlier_sessions(path)
    try:
        opening.folder.mkdir(parents=True, exist_ok=True)
        about = {"dataset": opening.dataset.identity}
        write_atomically(path, json.dumps({**about, "sessions": [*sessions, session]}, indent=1) + "\n")
        write_atomically(opening.folder / "config.toml", to_toml(opening.config))
        if opening.resume_from is None and (template := _template(opening)) is not None:
            write_atomically(opening.folder / SETTINGS, settings_of(template))
    except OSError as error:
        raise cannot_write(opening.folder, error) from None


def _earlier_sessions(path: Path) -> list[Any]:
    """Those that run.json tells of."""
    try:
        sessions = read_json(path, LARGEST_ABOUT)["sessions"]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and repeat") from None
    if not isinstance(sessions, list):
        raise UserError(f"{path} is damaged (sessions is no list): delete it and repeat")
    return sessions


def _template(opening: Opening) -> Template | None:
    """By which conversations are written out for the model: that of its data, or its base's where these are text.

    Raises:
        UserError: there is one that cannot be read.
    """
    if opening.dataset.examples is not None:
        return own_template(Path(opening.config.data.data_dir) / opening.dataset.name)
    return None if opening.init_from is None else own_template(opening.init_from)
