"""What can be measured: a framework on a device, eager or compiled, with our model or with somebody else's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from gpt_common.errors import UserError, nearest
from gpt_common.machine import backends


@dataclass(frozen=True)
class Backend(backends.Backend):
    """One row of the result."""

    peer: Literal["", "transformers", "mlx-lm", "nanogpt"] = ""
    """Whose model; empty: ours."""
    source: str = ""
    """Folder of the peer's code where no package has it."""
    half: bool = False
    """In bfloat16 whatever the configuration says: what a Mac trains in, beside what is compared."""
    control: bool = False
    """The same backend a second time, to show what this machine calls a difference where there is none."""

    @property
    def on_ladder(self) -> str:
        """Its name for `convert parity`, whose dtype is a flag."""
        return self.name.removesuffix("-bf16") if self.half else self.name

    @property
    def label(self) -> str:
        """Name in tables."""
        return f"{self.name} again" if self.control else self.name

    def as_control(self) -> Backend:
        """This backend as its own control."""
        return dataclasses.replace(self, control=True)

    def original(self) -> Backend:
        """What a control repeats."""
        return dataclasses.replace(self, control=False)


BACKENDS = {name: Backend(**vars(backend)) for name, backend in backends.BACKENDS.items()}
BACKENDS |= {
    f"{name}-bf16": dataclasses.replace(backend, name=f"{name}-bf16", half=True)
    for name, backend in BACKENDS.items()
    if not backend.compiled
}
PEERS: dict[str, Literal["mlx", "torch"]] = {"transformers": "torch", "mlx-lm": "mlx", "nanogpt": "torch"}
"""Published implementations of the same model, and what they run on."""


def choose_backends(names: str, peers: str = "", nanogpt: str = "") -> list[Backend]:
    """The rows that `--backends a,b --peers p` asks for.

    A peer gets a row per device of its framework among the backends, or one on the CPU if there is none.

    Args:
        nanogpt: folder of nanoGPT's code.

    Raises:
        UserError: an unknown name, or none at all.
    """
    chosen = [BACKENDS[name] for name in _names(names, BACKENDS, "backend")]
    rows = list(chosen)
    for peer in _names(peers, PEERS, "peer"):
        framework = PEERS[peer]
        devices = dict.fromkeys(b.device for b in chosen if b.framework == framework) or {"cpu": None}
        for device in devices:
            where = "mlx" if device == "auto" else device
            source = nanogpt if peer == "nanogpt" else ""
            rows.append(Backend(f"{peer}-{where}", framework, device, peer=peer, source=source))  # type: ignore[arg-type]
    if not chosen:
        raise UserError("no backend: --backends takes names with commas between them, from: " + ", ".join(BACKENDS))
    return rows


def _names(text: str, known: Iterable[str], kind: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in known:
            raise UserError(f"no {kind} '{name}': {nearest(name, known)}")
    return names
