"""What can be measured: a framework on a device, eager or compiled, with our model or with somebody else's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from benchmarks.grids import GROUP_SIZE
from gpt_common.adapting.quantisation import Grid
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
    bits: int = 0
    """Of each weight, where its matrices are quantised; 0: they are float."""
    group_size: int = 0
    """Weights that share a scale and a bias then."""
    control: bool = False
    """The same backend a second time, to show what this machine calls a difference where there is none."""

    @property
    def on_ladder(self) -> str:
        """Its name for `convert parity`, whose dtype is a flag."""
        name = self.name.removesuffix(ending(self.grid)) if self.grid else self.name
        return name.removesuffix("-bf16") if self.half else name

    @property
    def grid(self) -> Grid | None:
        """That on which its matrices are; None if they are float."""
        return Grid(self.bits, self.group_size) if self.bits else None

    @property
    def label(self) -> str:
        """Name in tables."""
        return f"{self.name} again" if self.control else self.name

    def quantised(self, grid: Grid) -> Backend:
        """The same with matrices on this grid."""
        name = self.name + ending(grid)
        return dataclasses.replace(self, name=name, bits=grid.bits, group_size=grid.group_size)

    def as_control(self) -> Backend:
        """This backend as its own control."""
        return dataclasses.replace(self, control=True)

    def original(self) -> Backend:
        """What a control repeats."""
        return dataclasses.replace(self, control=False)


def ending(grid: Grid) -> str:
    """What a row on a grid is called behind its backend."""
    return f"-{grid.bits}bit" + ("" if grid.group_size == GROUP_SIZE else f"-g{grid.group_size}")


BACKENDS = {name: Backend(**vars(backend)) for name, backend in backends.BACKENDS.items()}
BACKENDS |= {
    f"{name}-bf16": dataclasses.replace(backend, name=f"{name}-bf16", half=True)
    for name, backend in BACKENDS.items()
    if not backend.compiled
}
PEERS: dict[str, Literal["mlx", "torch"]] = {"transformers": "torch", "mlx-lm": "mlx", "nanogpt": "torch"}
"""Published implementations of the same model, and what they run on."""


def choose_backends(names: str, peers: str = "", nanogpt: str = "", grid: Grid | None = None) -> list[Backend]:
    """The rows that `--backends a,b --peers p` asks for.

    A peer gets a row per device of its framework among the backends, or one on the CPU if there is none.

    Args:
        nanogpt: folder of nanoGPT's code.
        grid: each of ours gets a second row, with quantised matrices.

    Raises:
        UserError: an unknown name, or none at all.
    """
    chosen = [BACKENDS[name] for name in _names(names, BACKENDS, "backend")]
    rows = [row for backend in chosen for row in (backend, *([backend.quantised(grid)] if grid else []))]
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
