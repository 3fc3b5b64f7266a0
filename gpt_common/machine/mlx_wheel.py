"""For which macOS an installed MLX was built: of its three wheels one alone uses the matrix units of an M5.

pip chooses by the version of macOS that Python reports, and a Python that was itself built before macOS 26 reports 16.0
there (cpython#135675): it is given the wheel for macOS 15.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution

Version = tuple[int, int]
NEEDED: Version = (26, 2)
"""What the wheel with matrix units was built for, and runs on."""


def built_for() -> Version | None:
    """The macOS that the installed MLX was built for; None elsewhere, or if it does not say."""
    try:
        wheel = distribution("mlx-metal").read_text("WHEEL") or ""
    except PackageNotFoundError:
        return None
    found = re.search(r"^Tag: .*-macosx_(\d+)_(\d+)_", wheel, re.MULTILINE)
    return (int(found[1]), int(found[2])) if found else None


def advice(chip: str, built: Version | None, system: str) -> str | None:
    """What an owner of an M5 or later should know of the installed MLX, with the remedy; None if all is well.

    Args:
        chip: "Apple M5 Max".
        built: what `built_for` found.
        system: "macOS 26.1".
    """
    if not _has_matrix_units(chip) or built is None:
        return None
    if built < (26, 0):
        return (
            f"this MLX was built for macOS {built[0]} and leaves the matrix units of an {chip.split()[1]} idle: "
            "on macOS 26.2 or later, `pip install --force-reinstall mlx mlx-metal` with a Python whose "
            "platform.mac_ver() says 26"
        )
    here = _macos(system)
    if here is not None and here < NEEDED:
        return f"this MLX uses matrix units that {system} does not offer yet (ml-explore/mlx#4525): update to 26.2"
    return None


def matrix_units(chip: str, built: Version | None, system: str) -> bool | None:
    """Whether MLX uses the matrix units that an M5 has: False before it, None where it is not known; as `advice`."""
    here = _macos(system)
    if (there := _has_matrix_units(chip)) is not True:
        return there
    return None if built is None or here is None else built >= NEEDED and here >= NEEDED


def _has_matrix_units(chip: str) -> bool | None:
    """Whether they are in it, as from M5 on; None for a chip that is not Apple's."""
    generation = re.match(r"Apple M(\d+)", chip)
    return generation and int(generation[1]) >= 5


def _macos(system: str) -> Version | None:
    found = re.match(r"macOS (\d+)\.(\d+)", system)
    return found and (int(found[1]), int(found[2]))
