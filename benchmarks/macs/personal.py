"""Nothing personal leaves: names, hosts, paths and numbers that point at a person are taken out of texts, and what is
to be shared is looked through once more before it is written."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATH, USER, HOST, NUMBER, ADDRESS = "<path>", "<user>", "<host>", "<number>", "<address>"

_NAMES_FOR_ALL = ("root", "runner", "user", "admin", "localhost", "local")
_NAMES_OF_MACS = ("mac", "macbook", "imac", "air", "mini", "studio", "apple", "max", "pro", "ultra", "virtual")
_OUR_WORDS = ("mlx", "torch", "mps", "cpu", "gpu", "cuda", "metal", "gpt", "python", "linux", "macos")
_WORDS_OF_LINES = re.findall(
    r"\w+",
    """
after an and apart at backend be bf16 bfloat16 built by canaries changed checkout commit cores could described energy
failed fails figures file float32 for gate gib here holds in interrupted its ktok losses machine made matrix measured
mib mid more most nats nearest no none not of on out packages parameters parity parts passed pytorch reference right
rounds run selftest shown source speed state steps that timed to tok tried unchanged units unknown used wheel wrong
""",
)
NOBODY = frozenset({*_NAMES_FOR_ALL, *_NAMES_OF_MACS, *_OUR_WORDS, *_WORDS_OF_LINES})
"""Names of users and machines that tell nothing, and stand in every such file: Max may own an M3 Max, and whose login
is `at` or `in` would be found in every line."""

_PLACES = re.compile(
    r"""(?P<url>https?://[^\s'"<>]+)"""
    r"""|(?P<quote>['"])(?:file:/|~|/)[^'"\n]*(?P=quote)"""
    r"""|(?<![\w/.>])(?:file:/+|~?/)(?=[\w.~@-])[^\s'",;:()\[\]<>]*"""
)
_NUMBERS = re.compile(
    r"\b[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}\b"  # identifiers of hardware
    r"|\b(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}\b"  # of network interfaces
    r"|\b(?=[A-Z]*\d)(?=\d*[A-Z])[A-Z0-9]{10,12}\b"  # Apple's serial numbers
)
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")


@dataclass(frozen=True)
class Personal:
    """Whose machine this is, so that it can be left out."""

    users: frozenset[str] = frozenset()
    """Login and full name."""
    hosts: frozenset[str] = frozenset()
    """The machine's name, with its domain and without."""
    homes: frozenset[str] = frozenset()
    """Home folders, as they are written."""
    folders: Mapping[str, str] = field(default_factory=dict)
    """Folders that may be named by another name: the checkout, a scratch folder."""

    def clean(self, text: str) -> str:
        """`text` without names, hosts, absolute paths, serial numbers and addresses."""
        for folder in sorted(self.folders, key=len, reverse=True):
            text = re.sub(re.escape(folder) + r"(?![\w.-])", lambda _, f=folder: self.folders[f], text)  # type: ignore[misc]
        for home in sorted(self.homes, key=len, reverse=True):
            text = re.sub(re.escape(home) + r"(?![\w.-])", "~/-", text)
        text = _PLACES.sub(_place, text)
        text = _NUMBERS.sub(NUMBER, _EMAIL.sub(ADDRESS, text))
        for names, instead in ((self.hosts, HOST), (self.users, USER)):
            for name in sorted(names, key=len, reverse=True):
                text = _word(name).sub(instead, text)
        return text

    def clean_all(self, value: Any) -> Any:
        """The same for every text in a document; its keys are names of properties, packages and kinds of cores."""
        if isinstance(value, str):
            return self.clean(value)
        if isinstance(value, dict):
            return {key: self.clean_all(content) for key, content in value.items()}
        return [self.clean_all(item) for item in value] if isinstance(value, list) else value

    def found_in(self, text: str) -> str | None:
        """What personal thing `text` still holds, in words; None if there is none that is known."""
        if any(home in text for home in self.homes):
            return "the home folder"
        if any(_word(name).search(text) for name in self.users):
            return "the user's name"
        if any(_word(name).search(text) for name in self.hosts):
            return "the machine's name"
        return "an absolute path" if holds_path(text) else None


def holds_path(text: str) -> bool:
    """Whether an absolute path, or one below a home folder, stands in `text`; addresses of the web are none."""
    return any(match.group("url") is None for match in _PLACES.finditer(text))


def texts(value: Any) -> Iterator[str]:
    """Every text in a document but its keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for content in value.values():
            yield from texts(content)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def this_person(folders: Mapping[Path, str]) -> Personal:
    """Who runs this, where.

    Args:
        folders: what to call the checkout and the scratch folder.
    """
    homes = {os.environ.get("HOME", ""), os.path.expanduser("~")}
    homes |= {os.path.realpath(home) for home in homes if home}
    users = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER")} | set(_account())
    hosts = {platform.node(), socket.gethostname()}
    hosts |= {host.partition(".")[0] for host in hosts}
    called = {str(form): name for folder, name in folders.items() for form in (folder, folder.resolve())}
    return Personal(_telling(users), _telling(hosts), frozenset(home for home in homes if len(home) > 1), called)


def _account() -> Iterator[str]:
    """Login and full name of the account."""
    try:
        import pwd

        entry = pwd.getpwuid(os.getuid())
        yield entry.pw_name
        yield entry.pw_gecos.partition(",")[0]
    except (ImportError, KeyError):  # no such account: a container's
        pass
    with contextlib.suppress(OSError, KeyError):
        yield getpass.getuser()


def _telling(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name for name in names if len(name) > 1 and name.lower() not in NOBODY)


def _word(name: str) -> re.Pattern[str]:
    """The name where it is not a part of another word."""
    return re.compile(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", re.IGNORECASE)


def _place(match: re.Match[str]) -> str:
    if url := match.group("url"):
        return ADDRESS if "@" in url else url
    return PATH
