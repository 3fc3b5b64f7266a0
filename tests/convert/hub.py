"""A hub of models on this machine."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from tests.hub_server import File, Hub, Refused

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Models(Hub):
    """Folders by OWNER/NAME."""

    models: dict[str, Path] = field(default_factory=dict)

    def found(self, path: list[str]) -> File:
        owner, name, _, revision, *parts = [*path, "", "", "", ""]
        repository, file = f"{owner}/{name}", "/".join(part for part in parts if part)
        if repository not in self.models:
            raise Refused(404, "RepoNotFound")
        if repository in self.gated:
            raise Refused(403, "GatedRepo")
        if revision not in ("main", "v1", COMMIT):
            raise Refused(404, "RevisionNotFound")
        place = self.models[repository] / file
        if not place.is_file():
            raise Refused(404, "EntryNotFound")
        return File(file, place.read_bytes(), COMMIT, digest(place), linked=place.suffix == ".safetensors")


def digest(path: Path) -> str:
    """What the hub gives as a file's hash: SHA-256 of large ones, and of the others what git calls a blob."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
