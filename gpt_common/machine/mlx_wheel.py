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
    generation = re.match(r"Apple M(\d+)", chip)
    if generation is None or int(generation[1]) < 5 or built is None:
        return None
    if built < (26, 0):
        return (
            f"this MLX was built for macOS {built[0]} and leaves the matrix units of an {chip.split()[1]} idle: "
            "on macOS 26.2 or later, `pip install --force-reinstall mlx mlx-metal` with a Python whose "
            "platform.mac_ver() says 26"
        )
    here = re.fullmatch(r"macOS (\d+)\.(\d+).*", system)
    if here is not None and (int(here[1]), int(here[2])) < NEEDED:
        return f"this MLX uses matrix units that {system} does not offer yet (ml-explore/mlx#4525): update to 26.2"
    return None
