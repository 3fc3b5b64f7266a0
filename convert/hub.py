"""Pretrained models by name, `hf:OWNER/NAME[@REVISION]`: only the files that are needed, through huggingface_hub.

What a model is, config.json and the tokenizer tell, so what cannot be converted is refused before its weights are
fetched.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from convert.storage.weights import WEIGHTS
from gpt_common.data.hub_files import Hosted, fetch_file, is_offline, one_line_errors
from gpt_common.errors import UserError
from gpt_common.files import read_json
from gpt_common.progress import Progress
from gpt_common.training.pretrained import PREFIX

TOKENIZER = "tokenizer.json"
OLD_TOKENIZER = ("vocab.json", "merges.txt")
"""What GPT-2's tokenizer was before there was tokenizer.json."""
LARGEST_INDEX = 1 << 22


class HubModel(Hosted):
    """A model on the hub."""

    kind = "model"

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}" + ("" if self.revision == "main" else f"@{self.revision}")

    @property
    def unknown(self) -> str:
        return f"no model {self}"

    def out_of_reach(self, *, offline: bool) -> str:
        return _not_cached(str(self), offline=offline)

    def incomplete(self, reason: str) -> str:
        return f"{self} has no config.json: it is no model of transformers ({reason})"


def named(source: str | Path) -> HubModel | None:
    """The model that a source means; None where it is a path.

    Raises:
        UserError: it begins with hf: and is no name of a model.
    """
    text = str(source)
    if not text.startswith(PREFIX):
        return None
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", text.removeprefix(PREFIX))
    if found is None:
        raise UserError(f"{text!r} is no name of a model: write {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION")
    return HubModel(found[1], found[2] or "main")


def fetch(model: HubModel, check: Callable[[Path], None]) -> tuple[Path, str]:
    """The folder with a model's files in the library's cache, and the commit that they are of.

    Args:
        check: is given the folder when configuration and tokenizer are there and no weights; raises UserError for what
            cannot be converted.

    Raises:
        UserError: no such model, revision or file; gated; offline; an answer that broke off or is not what it claims
            to be; what `check` refuses.
    """
    with one_line_errors(model):
        config = _file(model, "config.json", model.revision)
        # All files of one commit, whatever happens to the branch meanwhile.
        commit = config.parent.name
        if _optional(model, TOKENIZER, commit) is None:
            for name in OLD_TOKENIZER:
                _optional(model, name, commit)
    check(config.parent)
    with one_line_errors(model):
        weights = next((found for name in WEIGHTS if (found := _optional(model, name, commit))), None)
    if weights is None:
        raise _missing(model, f"has no weights that can be read here: {WEIGHTS[0]} or {WEIGHTS[2]}")
    for shard in _shards(model, weights) if weights.name.endswith(".index.json") else ():
        with one_line_errors(model):
            found = _optional(model, shard, commit)
        if found is None:
            raise _missing(model, f"has no {shard}, which its {weights.name} lists")
    return config.parent, commit


def _file(model: HubModel, name: str, revision: str) -> Path:
    with Progress(of_bytes=True) as progress:
        return fetch_file(model, name, revision, progress)[0]


def _optional(model: HubModel, name: str, commit: str) -> Path | None:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return _file(model, name, commit)
    except LocalEntryNotFoundError:
        # Offline, what is not in the cache may be there or not.
        if is_offline():
            return None
        raise
    except EntryNotFoundError:
        return None


def _shards(model: HubModel, index: Path) -> list[str]:
    try:
        written = read_json(index, LARGEST_INDEX)
    except (OSError, ValueError) as error:
        raise UserError(f"{index.name} of {model} cannot be read: {error}") from None
    files = written.get("weight_map") if isinstance(written, dict) else None
    names = list(files.values()) if isinstance(files, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise UserError(f"{index.name} of {model} does not say which files hold the weights")
    return sorted(set(names))


def _missing(model: HubModel, what: str) -> UserError:
    return UserError(_not_cached(f"the whole of {model}", offline=True) if is_offline() else f"{model} {what}")


def _not_cached(what: str, *, offline: bool) -> str:
    if offline:
        return f"{what} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it: unset it, or set HF_HOME"
    return f"{what} is not in the cache, and the hub cannot be reached: check the network and HF_ENDPOINT"
