"""Which software computed something: versions of what computes, and the commit of this program."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from gpt_common.machine.mlx_wheel import built_for


def versions() -> dict[str, str]:
    """Versions of what computes."""
    found = {"python": platform.python_version()}
    for package in ("mlx-torch-gpt", "mlx", "torch", "numpy"):
        try:
            found[package] = version(package)
        except ModuleNotFoundError:
            continue
    if (built := built_for()) is not None:
        found["mlx built for"] = "macOS {}.{}".format(*built)
    return found


def git_state(root: Path = Path(__file__).parents[2]) -> str | None:
    """Commit of a checkout, by default of this program's, and whether its files were changed since; None outside one.

    Args:
        root: the folder that was checked out.
    """
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
