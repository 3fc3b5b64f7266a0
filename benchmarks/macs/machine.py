"""`python -m benchmarks.macs.machine`: this machine and this checkout as JSON, for the self-test and for a reader who
compares a file that he was sent with a checkout of his own. Loads no framework.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

from benchmarks.macs.record import Checkout, Machine
from gpt_common.errors import UserError, run_main
from gpt_common.files import write_atomically
from gpt_common.machine.hardware import detect
from gpt_common.machine.mlx_wheel import advice, built_for, matrix_units
from gpt_common.machine.provenance import versions

ROOT = Path(__file__).parents[2]
PACKAGES = ("benchmarks", "convert", "gpt_common", "mlx_gpt", "torch_gpt")
SOURCES = (".py", ".toml", ".jinja")
WHEELS = ("mlx", "mlx-metal", "mlx-cpu", "torch", "numpy")


def describe_machine() -> Machine:
    """Where this runs."""
    hardware, built = detect(), built_for()
    return Machine(
        hardware=hardware,
        versions=versions(),
        python_platform=sysconfig.get_platform(),
        matrix_units=matrix_units(hardware.chip, built, hardware.os),
        advice=advice(hardware.chip, built, hardware.os),
    )


def describe_checkout(root: Path = ROOT) -> Checkout:
    """With what this runs."""
    installed = sorted({f"{_canonical(found.name)}=={found.version}" for found in distributions() if found.name})
    status = _git(root, "status", "--porcelain", "--untracked-files=no")
    return Checkout(
        commit=_git(root, "rev-parse", "--verify", "HEAD"),
        changed=None if status is None else bool(status),
        source_sha256=source_digest(root),
        packages=len(installed),
        packages_sha256=hashlib.sha256("\n".join(installed).encode()).hexdigest(),
        wheels={name: tags for name in WHEELS if (tags := wheel_tags(name))},
    )


def source_digest(root: Path) -> str:
    """SHA-256 of names and contents of the packages' files, in the order of their names."""
    digest = hashlib.sha256()
    files = (path for package in PACKAGES for path in (root / package).rglob("*") if path.suffix in SOURCES)
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in files):
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def wheel_tags(package: str) -> str:
    """The tags of an installed wheel, as its builder wrote them; "" if it is not installed or does not say."""
    try:
        text = distribution(package).read_text("WHEEL") or ""
    except PackageNotFoundError:
        return ""
    return " ".join(re.findall(r"^Tag: *(\S+)", text, re.MULTILINE))[:120]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _git(root: Path, *words: str) -> str | None:
    """What git says; None where there is no checkout or no git. A checkout around `root` is not this one."""
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "--no-optional-locks", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def main(argv: Sequence[str]) -> None:
    """Print both, or write them to the file that is named."""
    if len(argv) > 1 or (argv and argv[0].startswith("-")):
        raise UserError("python -m benchmarks.macs.machine takes the name of a file to write, or nothing")
    parts = {"machine": describe_machine().model_dump(), "checkout": describe_checkout().model_dump()}
    text = json.dumps(parts, indent=1)
    if argv:
        write_atomically(Path(argv[0]), text)
    else:
        print(text)


if __name__ == "__main__":
    run_main(main, sys.argv[1:])
