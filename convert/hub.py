"""Pretrained models by name, `hf:OWNER/NAME[@REVISION]`: only the files that are needed, through huggingface_hub.

The library decides where from and where to: HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are its own. What a model
is, config.json and the tokenizer tell, so what cannot be converted is refused before its weights are fetched.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.storage.weights import WEIGHTS
from gpt_common.errors import UserError
from gpt_common.progress import Progress
from gpt_common.training.pretrained import PREFIX

TOKENIZER = "tokenizer.json"
OLD_TOKENIZER = ("vocab.json", "merges.txt")
"""What GPT-2's tokenizer was before there was tokenizer.json."""
LARGEST_CONFIG = 1 << 22


@dataclass(frozen=True)
class HubModel:
    """A model on the hub."""

    repository: str
    """OWNER/NAME."""
    revision: str
    """Branch, tag or commit."""

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}" + ("" if self.revision == "main" else f"@{self.revision}")


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
    with _one_line_errors(model):
        config = _file(model, "config.json", model.revision)
        # All files of one commit, whatever happens to the branch meanwhile.
        commit = config.parent.name
        if _optional(model, TOKENIZER, commit) is None:
            for name in OLD_TOKENIZER:
                _optional(model, name, commit)
        check(config.parent)
        weights = next((found for name in WEIGHTS if (found := _optional(model, name, commit))), None)
        if weights is None and _offline():
            raise _not_cached(f"the whole of {model}", offline=True)
        if weights is None:
            raise UserError(f"{model} has no weights that can be read here: {WEIGHTS[0]} or {WEIGHTS[2]}")
        if weights.name.endswith(".index.json"):
            for shard in _shards(model, weights):
                _file(model, shard, commit)
    return config.parent, commit


def _file(model: HubModel, name: str, revision: str) -> Path:
    """One file, downloaded if it is not in the cache, and checked against the hash that the hub gives of it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import tqdm

    with Progress(of_bytes=True) as progress:

        class Bar(tqdm):
            """What the library tells of its downloads, shown as every command shows how far it is."""

            def __init__(self, *args: Any, **settings: Any) -> None:
                super().__init__(*args, **{**settings, "disable": True})  # type: ignore[no-untyped-call]

            def update(self, n: float | None = 1) -> None:
                self.n += n or 0
                progress(f"fetching {name} of {model}", int(self.n), int(self.total or self.n))

        path = Path(hf_hub_download(model.repository, name, revision=revision, tqdm_class=Bar))
    _check_hash(model, path)
    return path


def _optional(model: HubModel, name: str, commit: str) -> Path | None:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return _file(model, name, commit)
    except LocalEntryNotFoundError:
        # Offline, what is not in the cache may be there or not.
        if _offline():
            return None
        raise
    except EntryNotFoundError:
        return None


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _check_hash(model: HubModel, path: Path) -> None:
    """The library compares sizes only; the name of a file in its cache is the hub's hash of its content."""
    stored = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", stored.name):
        digest = hashlib.sha256()
    elif re.fullmatch(r"[0-9a-f]{40}", stored.name):
        digest = hashlib.sha1(f"blob {stored.stat().st_size}\0".encode())  # as git names it
    else:
        return
    with stored.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != stored.name:
        stored.unlink()
        path.unlink(missing_ok=True)
        raise UserError(f"{path.name} of {model} is not what the hub says it is (its hash differs): try again")


def _shards(model: HubModel, index: Path) -> list[str]:
    files = _read_json(model, index).get("weight_map")
    names = sorted(set(files.values())) if isinstance(files, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise UserError(f"{index.name} of {model} does not say which files hold the weights")
    return names


def _read_json(model: HubModel, path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise ValueError("it is too large")
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path.name} of {model} cannot be read: {error}") from None
    return found


@contextmanager
def _one_line_errors(model: HubModel) -> Iterator[None]:
    """What the library says in paragraphs, in a line that says what to do."""
    from huggingface_hub import errors
    from huggingface_hub.utils import logging

    # Its retries are not the person's business.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{model} is gated: accept its terms on its page, then log in with `hf auth login` (or set HF_TOKEN)"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"no model {model}: check the name; a private one needs `hf auth login` or HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{model.repository} has no revision {model.revision!r}: check it, or leave it out") from None
    except errors.OfflineModeIsEnabled:
        raise _not_cached(model, offline=True) from None
    except errors.LocalEntryNotFoundError:
        raise _not_cached(model, offline=_offline()) from None
    except errors.EntryNotFoundError as error:
        raise UserError(f"{model} has no config.json: it is no model of transformers ({_short(error)})") from None
    except (errors.HfHubHTTPError, OSError) as error:
        raise UserError(f"{model} could not be fetched ({_short(error)}): try again") from None
    except Exception as error:
        # Errors of the transport have no base class of the library's own.
        if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests"):
            raise UserError(f"{model} could not be fetched ({_short(error)}): try again") from None
        raise


def _not_cached(what: HubModel | str, *, offline: bool) -> UserError:
    if offline:
        return UserError(
            f"{what} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it: unset it, or set HF_HOME"
        )
    return UserError(f"{what} is not in the cache, and the hub cannot be reached: check the network and HF_ENDPOINT")


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__
