"""What a rung is given: the twins on their material, and the comparison of what they computed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from convert.parity import material
from convert.parity.compare import KEY_SIZE, Array, Arrays, Measurement, distances, key_bias_is_idle
from convert.parity.gates import COARSE_NOISE, GATES, ORACLE_RATIO, ROUNDING, Precision
from convert.parity.twins.backends import open_twin
from convert.parity.twins.choices import Choices
from convert.parity.twins.twin import Twin
from gpt_common.adapting.quantisation import Grids, rounded_to
from gpt_common.config import RunConfig
from gpt_common.machine.backends import BACKENDS, Backend
from gpt_common.network.parameters import buffer_shapes, parameter_shapes

ORACLE = "float64"
COARSENED = tuple(f"{ORACLE}, weights one unit in the last place off, {i}" for i in range(3))
"""Oracles that make the noise where gates are not calibrated."""
Result = TypeVar("Result")
DTYPES = {"strict": "float32", "tf32": "float32", "bf16": "bfloat16"}


@dataclass
class Climb:
    """One climb: configuration, backends, class, and what the rungs share.

    The first PyTorch backend is the one that the others are compared with; every one is also compared with the
    oracle, PyTorch in float64 on the CPU.
    """

    config: RunConfig
    backends: Sequence[Backend]
    precision: Precision = "strict"
    checkpoint_weights: Arrays | None = None
    """Climb with these weights, and not with fresh and widened ones."""
    real: RunConfig | None = None
    """The same before it was made small, for rung S; None: nothing was."""
    most_flops: float = math.inf
    """FLOPs that one pass of rung S may take; what takes more is left out."""
    trajectory_steps: int = 300
    switch_steps: int = 100
    optimizer_steps: int = 200
    tokens: int = 256
    """Length of generated texts."""
    long_sums: bool = True
    """Whether L1 includes the canary shapes."""
    worlds: Sequence[int] = (2, 4)
    """How many processes train together in rung R."""
    grids: Grids = field(default_factory=dict)
    """Matrices that are quantised in every twin."""
    progress: Callable[[str, int, int], None] = lambda *_: None
    """Is told what is under way, how far it is, and of how much."""
    curves: dict[str, list[float]] = field(default_factory=dict)
    """Trajectories for the report, by name."""
    loss_noise: float = 0.0
    """How far apart two backends compute one loss from the same weights: L4 leaves it for L7."""
    uninterrupted: list[float] = field(default_factory=list)
    """Losses of the reference: L7 leaves them for L8."""
    perturbed: list[list[float]] = field(default_factory=list)
    """Losses of the reference from weights one unit in the last place off: L7 leaves them for L8."""
    followed: list[Choices] = field(default_factory=list)
    """What the reference's routers preferred in each step of that trajectory."""
    notes: dict[str, str] = field(default_factory=dict)
    """By rung: what it climbed with, or why it was left out."""
    _open: dict[tuple[Backend | str, RunConfig], Twin] = field(default_factory=dict)

    def at_real_size(self) -> Climb:
        """The same at real size, with twins of its own."""
        config = material.at_real_size(self.real or self.config)
        weights = self.checkpoint_weights
        if weights is not None:
            kept = parameter_shapes(config.model) | buffer_shapes(config.model)
            weights = {name: value for name, value in weights.items() if name in kept}
        return dataclasses.replace(self, config=config, checkpoint_weights=weights, _open={})

    @property
    def reference(self) -> str:
        """Name of the backend that the others are compared with."""
        return next((b.name for b in self.backends if b.framework == "torch"), self.backends[0].name)

    @property
    def names(self) -> list[str]:
        """The backends, the reference first."""
        return sorted((b.name for b in self.backends), key=lambda name: name != self.reference)

    def states(self) -> dict[str, Arrays]:
        """Weights to climb with, by name."""
        if self.checkpoint_weights is not None:
            return {"trained": self.checkpoint_weights}
        return {"fresh": material.fresh(self.config), "widened": material.widened(self.config)}

    def start(self) -> Arrays:
        """Weights that training starts from."""
        return self.checkpoint_weights or material.fresh(self.config)

    def gate(self, name: str) -> float:
        """A gate of this climb's class."""
        return GATES[self.precision][name]

    def has_gate(self, name: str) -> bool:
        """Whether this climb's class has such a gate."""
        return name in GATES[self.precision]

    @property
    def uncalibrated(self) -> bool:
        """Whether gates follow the noise: those of bf16 were measured on GPT-2's kinds of layers (gates.py)."""
        model = self.config.model
        known = model.attention == "multi_head" and model.feed_forward in ("gelu", "gelu_tanh")
        return self.precision == "bf16" and not known

    def rounded(self, values: Array) -> Array:
        """float32 numbers as this climb's class has them: a comparison of arithmetic starts from the same numbers.

        Routers that see different ones choose different experts.
        """
        return rounded_to("bfloat16", values) if self.precision == "bf16" else values

    def twins(self, config: RunConfig | None = None, *, eager: bool = False) -> dict[str, Twin]:
        """A twin per backend, reference first; opened once per configuration.

        Args:
            eager: not compiled, whatever the backend.
        """
        config = config or self.config
        found = {}
        for backend in sorted(self.backends, key=lambda backend: backend.name != self.reference):
            used = dataclasses.replace(backend, compiled=backend.compiled and not eager)
            if (used, config) not in self._open:
                self._open[used, config] = open_twin(used, config, DTYPES[self.precision], self.grids)  # type: ignore[arg-type]
            found[backend.name] = self._open[used, config]
        return found

    def oracle(self, config: RunConfig | None = None, name: str = ORACLE) -> Twin:
        """PyTorch in float64 on the CPU, without gradient checkpointing: what is right."""
        config = config or self.config
        if (name, config) not in self._open:
            plain = dataclasses.replace(config, train=dataclasses.replace(config.train, gradient_checkpointing=False))
            self._open[name, config] = open_twin(BACKENDS["cpu"], plain, "float64", self.grids)
        return self._open[name, config]

    def loaded(self, weights: Arrays) -> dict[str, Twin]:
        """The oracle and every twin with these weights; where gates are not calibrated, oracles a little off too."""
        twins = {ORACLE: self.oracle(), **self.twins()}
        for twin in twins.values():
            twin.set_weights(weights)
        if self.uncalibrated:
            for seed, name in enumerate(COARSENED):
                twins[name] = self.oracle(name=name)
                twins[name].set_weights(material.coarsened(weights, seed))
        return twins

    def routed_alike(
        self, twins: Mapping[str, Twin], call: Callable[[Twin], Result]
    ) -> tuple[dict[str, Result], dict[str, Choices]]:
        """What `call` gives for every twin while all routers follow the first's, and what they would have preferred."""
        results: dict[str, Result] = {}
        own: dict[str, Choices] = {}
        followed: Choices = []
        for name, twin in twins.items():
            with twin.choosing(followed or None) as own[name]:
                results[name] = call(twin)
            followed = followed or own[name]
        return results, {name: choices for name, choices in own.items() if name not in COARSENED}

    def compare(
        self,
        found: Mapping[str, Arrays],
        gate: float,
        state: str = "",
        *,
        split_bias: bool = True,
        ratio: bool = True,
    ) -> Iterator[Measurement]:
        """Every backend against the oracle, every other one against the reference, and MLX's error against PyTorch's.

        Args:
            found: tensors by backend and name; the oracle's too, where it was asked.
            gate: largest relative distance.
            state: which weights they come from.
            split_bias: see `distances`.
            ratio: compare the errors of MLX and PyTorch; False where a few elements make them.
        """
        split_bias = split_bias and key_bias_is_idle(self.config.model)
        exact = found.get(ORACLE)
        noise: dict[str, float] = {}
        for name in found.keys() & COARSENED:
            for tensor, error in distances(found[name], exact or {}, split_bias=split_bias):
                noise[tensor] = max(noise.get(tensor, 0.0), error)
        found = {name: tensors for name, tensors in found.items() if name not in (ORACLE, *COARSENED)}
        worst = dict.fromkeys(found, 0.0)
        for name, tensors in found.items():
            pairs = [] if exact is None else [(ORACLE, exact)]
            if name != self.reference and self.reference in found:
                pairs.append((self.reference, found[self.reference]))
            for other, wanted in pairs:
                for tensor, error in distances(tensors, wanted, split_bias=split_bias):
                    measured = Measurement(
                        tensor=tensor, error=error, gate=gate, between=f"{name} ~ {other}", state=state
                    )
                    yield measured.allowing(noise.get(tensor, 0.0), COARSE_NOISE)
                    if other == ORACLE and not tensor.endswith(KEY_SIZE):
                        worst[name] = max(worst[name], error)
        # A single number may be right by luck.
        if ratio and exact is not None and any(value.size > 1 for value in exact.values()):
            yield from self.ratios(worst, state)

    def ratios(self, errors: Mapping[str, float], state: str = "") -> Iterator[Measurement]:
        """MLX's error as a multiple of PyTorch's on the CPU, where both are there."""
        if "cpu" not in errors:
            return
        for name, error in errors.items():
            if BACKENDS[name].framework == "mlx":
                yield Measurement(
                    tensor="worst error beside PyTorch's",
                    error=error / max(errors["cpu"], ROUNDING[self.precision]),
                    gate=ORACLE_RATIO,
                    between=f"{name} : cpu",
                    state=state,
                    times=True,
                )


def top1_disagreements(a: Array, b: Array, margin: float) -> int:
    """At how many positions the likeliest token differs although b's leads by more than `margin` times the error."""
    error = float(np.abs(a.astype(np.float64) - b).max())
    top = np.sort(b, axis=-1)
    clear = top[..., -1] - top[..., -2] > margin * error if b.shape[-1] > 1 else np.zeros(b.shape[:-1], bool)
    return int((clear & (a.argmax(-1) != b.argmax(-1))).sum())
