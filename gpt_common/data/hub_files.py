"""Files of a hub's models and data sets, through huggingface_hub: fetched with progress, checked, and errors in a line.

The library decides where from and where to: HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are its own.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from gpt_common.data.download import Progress
from gpt_common.errors import UserError
from gpt_common.files import open_file


@dataclass(frozen=True)
class Hosted(ABC):
    """What a hub has by a name; `str` is what the person calls it."""

    name: str
    """OWNER/NAME."""
    revision: str
    """Branch, tag or commit."""

    kind: ClassVar[Literal["model", "dataset"]]
    """What the library calls it."""

    @property
    @abstractmethod
    def unknown(self) -> str:
        """What to say where the hub has none of that name."""

    @abstractmethod
    def out_of_reach(self, *, offline: bool) -> str:
        """What to say where it is not in the cache and the hub cannot be asked, or, offline, must not be."""

    @abstractmethod
    def incomplete(self, reason: str) -> str:
        """What to say where a file is not there that must be."""


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def fetch_file(hosted: Hosted, name: str, revision: str, on_progress: Progress) -> tuple[Path, str | None]:
    """One file in the library's cache, downloaded if it is not there, and the hash that the hub gives of its content.

    None where it gives none; otherwise the file has it. To be called within `one_line_errors`.

    Raises:
        UserError: it is not what its hash says.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        """What the library tells of its downloads, shown as every command shows how far it is."""

        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **{**settings, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            on_progress(f"fetching {name} of {hosted}", int(self.n), int(self.total or self.n))

    path = Path(hf_hub_download(hosted.name, name, repo_type=hosted.kind, revision=revision, tqdm_class=Bar))
    return path, _checked(hosted, path)


def _checked(hosted: Hosted, path: Path) -> str | None:
    """The library compares sizes only; the name of a file in its cache is the hub's hash of its content."""
    stored = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", stored.name):
        digest = hashlib.sha256()
    elif re.fullmatch(r"[0-9a-f]{40}", stored.name):
        digest = hashlib.sha1(f"blob {stored.stat().st_size}\0".encode())  # as git names it
    else:
        return None
    with open_file(stored) as file:
        hashlib.file_digest(file, lambda: digest)
    if digest.hexdigest() != stored.name:
        stored.unlink()
        path.unlink(missing_ok=True)
        raise UserError(f"{path.name} of {hosted} is not what the hub says it is (its hash differs): try again")
    return f"{digest.name}:{stored.name}"


@contextmanager
def one_line_errors(hosted: Hosted) -> Iterator[None]:
    """What the library says in paragraphs, in a line that says what to do. Only for calls of the library."""
    from huggingface_hub import errors
    from huggingface_hub.utils import logging

    # Its retries are not the person's business.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{hosted} is gated: accept its terms on its page, then log in with `hf auth login` (or set HF_TOKEN)"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{hosted.unknown}: check the name; a private one needs `hf auth login` or HF_TOKEN") from None
    except errors.HFValidationError as error:
        raise UserError(f"{hosted.unknown}: no hub has such a name ({_short(error)})") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{hosted.name} has no revision {hosted.revision!r}: check it, or leave it out") from None
    except errors.OfflineModeIsEnabled:
        raise UserError(hosted.out_of_reach(offline=True)) from None
    except errors.LocalEntryNotFoundError:
        raise UserError(hosted.out_of_reach(offline=is_offline())) from None
    except errors.EntryNotFoundError as error:
        raise UserError(hosted.incomplete(_short(error))) from None
    except (errors.HfHubHTTPError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{hosted} could not be fetched ({_short(error)}): try again") from None
    except Exception as error:
        # Errors of the transport have no base class of the library's own.
        if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests"):
            raise UserError(f"{hosted} could not be fetched ({_short(error)}): check the network, try again") from None
        raise


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__
