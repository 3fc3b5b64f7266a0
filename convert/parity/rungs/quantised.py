"""Q: quantised matrices: MLX's words in numpy, the same numbers and logits in all twins, and adapters beside them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from convert.parity import material
from convert.parity.climb import Climb
from convert.parity.compare import Arrays, Measurement, relative
from convert.parity.rungs.adapters import adapter_config, with_adapters
from convert.parity.rungs.passes import logits
from convert.parity.rungs.trajectories import rung_trajectory
from gpt_common.adapting.quantisation import (
    BITS,
    GROUP_SIZES,
    Grid,
    quantisable,
    quantised,
    rounded_to,
    stored,
)
from gpt_common.config import RunConfig
from gpt_common.network.parameters import parameter_shapes

GROUP = GROUP_SIZES[0]
FINE = (4, 5, 6, 8)
"""Bits of the matrices that a model computes with: in fewer it learns nothing that could be compared."""
ROWS = 8
"""Of each matrix whose words are compared with MLX's in every number of bits."""


def rung_quantised(climb: Climb) -> Iterator[Measurement]:
    """Words to the bit; logits within L3 of those of the matrices that the words stand for; adapters within L7."""
    if climb.precision != "strict":
        climb.notes["Q"] = "left out: words are compared in float32 alone"
        return
    config = wide_enough(climb.config)
    weights = material.widened(config)
    yield from _words(climb, weights)
    shapes = parameter_shapes(config.model)
    chosen = [name for name in quantisable(shapes) if shapes[f"{name}.weight"][-1] % GROUP == 0]
    grids = {layer: Grid(FINE[i % len(FINE)], GROUP) for i, layer in enumerate(chosen)}
    matrices = {layer: quantised(weights[f"{layer}.weight"], grid) for layer, grid in grids.items()}
    floats = {**weights, **{f"{layer}.weight": matrix.dequantised() for layer, matrix in matrices.items()}}
    plain = dataclasses.replace(climb, config=config, checkpoint_weights=floats, _open={})
    held = stored(weights, matrices)
    words = dataclasses.replace(climb, config=config, checkpoint_weights=held, grids=grids, _open={})
    yield from _as_floats(plain, words)
    tokens = material.batches(config, 0)[0].tokens
    yield from logits(words, "words", held, tokens)
    adapted = adapter_config(config)
    fresh = material.fresh(config)
    matrices = {layer: quantised(fresh[f"{layer}.weight"], grid) for layer, grid in grids.items()}
    floats = {**fresh, **{f"{layer}.weight": matrix.dequantised() for layer, matrix in matrices.items()}}
    adapters = {name: value for name, value in with_adapters(adapted, floats).items() if name not in floats}
    start = stored(fresh, matrices) | adapters
    trained = dataclasses.replace(
        climb, config=adapted, checkpoint_weights=start, grids=grids, curves={}, uninterrupted=[], perturbed=[],
        followed=[], _open={},
    )  # fmt: skip
    for one in rung_trajectory(trained):
        yield dataclasses.replace(one, state="adapters beside words")


def wide_enough(config: RunConfig) -> RunConfig:
    """The same model with rows that are whole groups, at least where they are as wide as the model."""
    model = config.model
    unit = math.lcm(GROUP, 2 * model.n_head)
    width = -(-model.n_embd // unit) * unit
    return dataclasses.replace(config, model=dataclasses.replace(model, n_embd=width))


def _words(climb: Climb, weights: Arrays) -> Iterator[Measurement]:
    """Words, scales and biases of some rows of each matrix in every number of bits, beside `mx.quantize`'s."""
    if not any(backend.framework == "mlx" for backend in climb.backends):
        return
    import mlx.core as mx

    for name, value in weights.items():
        layer = name.removesuffix(".weight")
        for bits in BITS if name != layer and value.ndim > 1 and value.shape[-1] % GROUP == 0 else ():
            different = 0
            for dtype in ("float32", "bfloat16"):
                rows = rounded_to(dtype, value.reshape(-1, value.shape[-1])[:ROWS])
                ours = quantised(rows, Grid(bits, GROUP), dtype)
                with mx.stream(mx.cpu):
                    theirs = mx.quantize(mx.array(rows).astype(getattr(mx, dtype)), group_size=GROUP, bits=bits)
                    words, scales, biases = (
                        np.array(part.astype(mx.uint32 if i == 0 else mx.float32)) for i, part in enumerate(theirs)
                    )
                for mine, wanted in ((ours.words_XW, words), (ours.scales_XG, scales), (ours.biases_XG, biases)):
                    different += int((mine != wanted).sum())
            tensor = f"{layer} in {bits} bits: words, scales and biases that differ"
            yield Measurement(tensor=tensor, error=float(different), gate=0.0, between="numpy ~ MLX", state="words")


def _as_floats(plain: Climb, words: Climb) -> Iterator[Measurement]:
    """Logits from words beside those from the matrices that they stand for, of every twin, with and without a cache."""
    tokens = material.batches(plain.config, 0)[0].tokens
    floats = plain.twins()
    for name, twin in words.twins().items():
        twin.set_weights(words.start())
        floats[name].set_weights(plain.start())
        expected, between = floats[name].logits(tokens), f"{name} ~ itself in floats"
        for what, found in (("logits", twin.logits(tokens)), ("logits from the cache", twin.cached_logits(tokens))):
            error = relative(found, expected)
            yield Measurement(tensor=what, error=error, gate=plain.gate("L3"), between=between, state="words")
