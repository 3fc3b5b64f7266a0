"""Data sets on a hub: which commit a name means now, which files hold a split, and the files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_common.data.download import Progress
from gpt_common.data.hub_files import Hosted, fetch_file, one_line_errors
from gpt_common.errors import UserError, nearest

READABLE = ((".parquet",), (".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst", ".ndjson.gz", ".json.gz", ".json.zst"))
"""Endings of files of rows; where there are files of the first kind, those of the second are the same once more."""
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval"),
}
"""How files are called that hold a split, where the data set does not list them."""


class Repository(Hosted):
    """A data set on the hub."""

    kind = "dataset"

    def __str__(self) -> str:
        return self.name if self.revision == "main" else f"{self.name} at {self.revision}"

    @property
    def unknown(self) -> str:
        return f"no data set {self.name} on the hub"

    def out_of_reach(self, *, offline: bool) -> str:
        why = "HF_HUB_OFFLINE forbids it: unset it" if offline else "check the network and HF_ENDPOINT"
        return f"{self} cannot be asked for: {why}"

    def incomplete(self, reason: str) -> str:
        return f"{self} lacks a file that it lists ({reason}): try again"


@dataclass(frozen=True)
class Described:
    """What the hub says of a data set."""

    commit: str
    files: Sequence[str]
    configs: Sequence[Mapping[str, Any]]
    """What its card lists: name and files of each configuration."""


def repository(name: str, revision: str | None) -> Repository:
    """A data set by its name.

    Raises:
        UserError: it is no name, or no revision.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise UserError(f"--hub {name!r} is no name of a data set: write OWNER/NAME")
    if revision is not None and not re.fullmatch(r"[\w./-]+", revision):
        raise UserError(f"--revision {revision!r} is no name of a branch, tag or commit")
    return Repository(name, revision or "main")


def describe(data: Repository) -> Described:
    """Commit, files and configurations of a data set.

    Raises:
        UserError: no such data set or revision; gated; offline; no answer that makes sense.
    """
    from huggingface_hub import HfApi

    with one_line_errors(data):
        found = HfApi().dataset_info(data.name, revision=data.revision)
    written: Any = found.card_data
    card = written.to_dict() if written is not None else {}
    configs = card.get("configs")
    files = sorted(each.rfilename for each in found.siblings or ())
    if not isinstance(found.sha, str) or not re.fullmatch(r"[0-9a-f]{40}", found.sha):
        raise UserError(f"the hub does not say which commit of {data} it has: try again")
    return Described(
        found.sha,
        [file for file in files if ".." not in file.split("/") and not file.startswith("/")],
        [each for each in configs if isinstance(each, dict)] if isinstance(configs, list) else [],
    )


def files_of(data: Repository, described: Described, config: str | None, split: str) -> list[str]:
    """The files that hold a split, by name: as its card lists them, else those that are called by the split's name.

    Raises:
        UserError: no such configuration or split, several to choose from, or no file that can be read here.
    """
    readable = [file for file in described.files if file.endswith(tuple(e for kind in READABLE for e in kind))]
    if not readable:
        raise UserError(
            f"{data} has no file of parquet or JSON lines; many data sets have a copy in parquet: "
            "--revision refs/convert/parquet"
        )
    listed = _listed(data, described, config)
    if listed is not None:
        if split not in listed:
            raise UserError(f"{data} has no split '{split}': {nearest(split, listed)}")
        patterns = [_pattern(glob) for glob in listed[split]]
        found = [file for file in readable if any(pattern.fullmatch(file) for pattern in patterns)]
    else:
        if config is not None:
            folders = {folder for file in readable for folder in file.split("/")[:-1]}
            if config not in folders:
                raise UserError(f"{data} has no configuration '{config}': {nearest(config, folders or {'none'})}")
            readable = [file for file in readable if config in file.split("/")[:-1]]
        words = SPLIT_WORDS | ({} if split in SPLIT_WORDS else {split: (split,)})
        by_split = {name: [file for file in readable if _called(file, words[name])] for name in words}
        present = [name for name, files in by_split.items() if files]
        if not present:
            by_split, present = {"train": readable}, ["train"]
        if split not in present:
            raise UserError(f"{data} has no split '{split}': {nearest(split, present)}")
        found = by_split[split]
    for kind in READABLE:
        if chosen := sorted(file for file in found if file.endswith(kind)):
            return chosen
    raise UserError(f"{data}: no file of split '{split}' is parquet or JSON lines")


def fetch(data: Repository, name: str, commit: str, on_progress: Progress) -> tuple[Path, str]:
    """A file in the library's cache, downloaded if it is not there, and the hash that the hub gives of its content.

    Raises:
        UserError: it cannot be had, or is not what its hash says.
    """
    with one_line_errors(data):
        path, found = fetch_file(data, name, commit, on_progress)
    if found is None:
        raise UserError(f"the hub does not say which hash {path.name} of {data} has")
    return path, found


def _listed(data: Repository, described: Described, config: str | None) -> dict[str, list[str]] | None:
    """Patterns of files by split, as the card lists them for a configuration; None where it lists none."""
    by_name = {str(each.get("config_name", "default")): each for each in described.configs if each.get("data_files")}
    if not by_name:
        return None
    if config is None:
        default = [name for name, each in by_name.items() if each.get("default") is True or name == "default"]
        if not default and len(by_name) > 1:
            raise UserError(f"{data} has several configurations: --config, and {nearest('', by_name)}")
        config = (default or list(by_name))[0]
    if config not in by_name:
        raise UserError(f"{data} has no configuration '{config}': {nearest(config, by_name)}")
    files = by_name[config]["data_files"]
    splits: dict[str, list[str]] = {}
    for entry in files if isinstance(files, list) else [files]:
        split, paths = (entry.get("split", "train"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        splits.setdefault(str(split), []).extend(map(str, paths if isinstance(paths, list) else [paths]))
    return splits


def _called(file: str, words: Sequence[str]) -> bool:
    """Whether a path has one of these words."""
    return re.search(rf"(?:^|[^a-z0-9])(?:{'|'.join(map(re.escape, words))})(?:[^a-z0-9]|$)", file.lower()) is not None


def _pattern(glob: str) -> re.Pattern[str]:
    """A pattern of paths as cards have them: `*` stays in a folder, `**` does not."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", glob)
    said = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(said.get(part, re.escape(part)) for part in parts))
