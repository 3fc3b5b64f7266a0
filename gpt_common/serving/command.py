"""What `serve` is told, and the command line that says it."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from gpt_common.cli import parse
from gpt_common.errors import UserError
from gpt_common.training.folder import named_or_newest
from gpt_common.words import one_line

TOKEN_VARIABLE = "MLX_TORCH_GPT_TOKEN"
SHORTEST_TOKEN = 16


@dataclass(frozen=True, kw_only=True)
class ServeCommand:
    """Answer over HTTP as OpenAI's API does, with a page to look at models. CKPT ... are checkpoints or runs."""

    examples: ClassVar[tuple[str, ...]] = ("--port 8080 --beside 8000", "--batch-size 32 --max-tokens 1000")
    host: str = "127.0.0.1"
    """Address to listen at; one that others can reach needs a --token."""
    port: int = 8000
    """Port to listen at; 0 takes a free one."""
    token: str | None = None
    """What clients must say (Authorization: Bearer); also from MLX_TORCH_GPT_TOKEN."""
    batch_size: int = 16
    """Answers that are written together."""
    queue: int = 256
    """Answers that may wait; more are refused with 429."""
    max_tokens: int = 4096
    """Tokens that one answer may have."""
    time_limit: float = 300.0
    """Seconds that one answer may take, its waiting included."""
    loaded: int = 3
    """Checkpoints in memory at once; the one that was idle longest makes room."""
    beside: int | None = None
    """Port of the other twin's server on this machine, whose models the page shows as well."""
    latest: bool = False
    """Of a run folder, take the latest checkpoint and not the best."""
    device: Literal["auto", "cpu", "gpu", "mps", "cuda"] = "auto"
    """Where to compute."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype; auto: bfloat16 on MLX GPU and CUDA, float32 on MPS and CPU."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "queue", "max_tokens", "loaded"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("port", "beside"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < 1 << 16:
                raise UserError(f"{name} is {getattr(self, name)}: a port is a number from 0 to 65535")
        if not 0 < self.time_limit < float("inf"):
            raise UserError(f"time_limit is {self.time_limit:g}: it must be above 0 seconds")
        if self.secret is None and not is_loopback(self.host):
            raise UserError(
                f"--host {one_line(self.host)} can be reached by others: say with --token what they must know, or "
                f"set {TOKEN_VARIABLE}"
            )
        if self.secret is not None and not (self.secret.isascii() and self.secret.isprintable()):
            raise UserError("the token has characters that a header cannot hold: letters, digits and signs of ASCII")
        if self.secret is not None and (len(self.secret) < SHORTEST_TOKEN or " " in self.secret):
            raise UserError(
                f"the token must have {SHORTEST_TOKEN} characters or more and no blank: others may try many"
            )

    @property
    def secret(self) -> str | None:
        """What clients must say, if anything."""
        return self.token if self.token is not None else os.environ.get(TOKEN_VARIABLE) or None


def parse_serving(argv: Sequence[str], *, prog: str) -> tuple[list[Path], ServeCommand]:
    """The serving command line: checkpoints or run folders, if not the newest run is meant, then flags."""
    words = list(argv)
    named = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    command = parse(ServeCommand, words[named:], prog=f"{prog} CKPT ...")
    return named_or_newest(words[:named], "serving"), command


def is_loopback(host: str) -> bool:
    """Whether an address, as it is listened at or as a client says it, is this machine's own and nobody else's."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(authority: str) -> str | None:
    """The host in what a `Host` header says, `NAME[:PORT]` or `[ADDRESS][:PORT]`; None where it says something else."""
    match = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::(\d{1,5}))?", authority.lower())
    if match is None or (match[3] and not 0 < int(match[3]) < 1 << 16):
        return None
    return match[1] or match[2]
