"""A: a trajectory of adapters beside a frozen base, changes of framework on the way, and the adapters merged."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from convert.adapters.fuse import merged
from convert.parity.climb import Climb
from convert.parity.compare import Arrays, Measurement, relative
from convert.parity.material import batches, widened
from convert.parity.rungs.trajectories import has_routers, rung_switch, rung_trajectory
from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.adapting.placement import initial_adapters
from gpt_common.config import RunConfig
from gpt_common.network.parameters import parameter_shapes

RANK, DROPOUT = 4, 0.1
RATE = 1e-3
"""At a preset's own rate, of 1e-2, adapters of experts amplify rounding: one unit in the last place of the first
weights becomes 1.6e-3 of the loss, and no twin could keep to L7's gate."""
MERGED = 2e-6
"""How far logits of merged matrices may be from those of the adapters beside them, in float32."""


def adapter_config(config: RunConfig) -> RunConfig:
    """A configuration with adapters beside all matrices: DoRA, or LoRA where there are experts, for which DoRA has no
    form."""
    kind = AdapterConfig(
        adapter="lora" if has_routers(config) else "dora",
        adapter_rank=RANK,
        adapter_alpha=3.0 * RANK,
        adapter_dropout=DROPOUT,
    )
    optim = config.optim
    gentle = dataclasses.replace(optim, learning_rate=min(optim.learning_rate, RATE), min_lr=min(optim.min_lr, RATE))
    return dataclasses.replace(config, adapter=kind, optim=gentle)


def adapted_climb(climb: Climb) -> Climb:
    """The same climb with adapters at their beginning, and twins of its own."""
    config = adapter_config(climb.config)
    start = with_adapters(config, climb.start())
    return dataclasses.replace(
        climb, config=config, checkpoint_weights=start, curves={}, uninterrupted=[], perturbed=[],
        followed=[], _open={},
    )  # fmt: skip


def with_adapters(config: RunConfig, base: Arrays) -> Arrays:
    """These weights, and adapters at their beginning."""
    shapes = parameter_shapes(config.model)
    return {
        **base,
        **dict(initial_adapters(shapes, config.adapter, config.train.seed, lambda layer: base[f"{layer}.weight"])),
    }


def rung_adapters(climb: Climb) -> Iterator[Measurement]:
    """Losses and adapters within the gates of L7, changes of framework within that of L8, merged logits the same."""
    adapted = adapted_climb(climb)
    yield from _named(rung_trajectory(adapted))
    yield from _named(rung_switch(adapted))
    if climb.precision == "strict":
        yield from _merged(adapted)


def _named(measurements: Iterator[Measurement]) -> Iterator[Measurement]:
    for one in measurements:
        yield dataclasses.replace(one, state="adapters")


def _merged(climb: Climb) -> Iterator[Measurement]:
    """Logits of every twin that has adapters beside those of itself without, their matrices merged."""
    config = climb.config
    tokens = batches(config, 0)[0].tokens
    # Wide ones: where attention is about uniform, a cache whose queries are wrong would not show.
    start = with_adapters(config, widened(config))
    plain = climb.twins(dataclasses.replace(config, adapter=AdapterConfig()))
    for name, twin in climb.twins(config).items():
        twin.set_weights(start)
        for step in range(3):  # B is 0 at first
            twin.step(batches(config, step), step, 1e-2)
        trained: Arrays = twin.weights()
        base = {key: value for key, value in start.items() if key not in trained}
        whole, _ = merged(config.model, config.adapter, base, trained)
        plain[name].set_weights(whole)
        error = relative(plain[name].logits(tokens), twin.logits(tokens))
        between, state = f"{name} ~ itself", "adapters"
        yield Measurement(tensor="logits of merged matrices", error=error, gate=MERGED, between=between, state=state)
        error = relative(twin.cached_logits(tokens), twin.logits(tokens))
        yield Measurement(
            tensor="logits from the cache", error=error, gate=climb.gate("L3"), between=between, state=state
        )
