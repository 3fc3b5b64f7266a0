"""An adapter merged into a quantised base on the grids that this has: what it does not move stays bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from convert.contents import Contents
from convert.quantising.calibrating import Arrays, divergence_of, moments_of
from convert.quantising.material import Material
from convert.storage.grids import as_quantised
from convert.storage.tensors import array, from_array
from gpt_common.adapting.gptq import gptq
from gpt_common.adapting.quantisation import PARTS, Quantised, codes_of, packed, unpacked

F32 = npt.NDArray[np.float32]
LEAST_DIVERGENCE = 1e-6
"""Nats per token, of which no share is worth saying."""


def floats_of(contents: Contents) -> dict[str, F32]:
    """All tensors of a checkpoint, read; of quantised matrices what their words stand for."""
    return {name: array(tensor) for name, tensor in contents.tensors.items()}


def onto_grids(
    merged: Contents, base: Contents, whole: Arrays, adapted: Collection[str], text: Material | None
) -> tuple[Contents, list[str]]:
    """A merged model by codes of the grids that its base has, and what there is to say about it.

    Args:
        merged: what it is in float.
        base: the quantised base.
        whole: the merged model's tensors.
        adapted: layers that have an adapter.
        text: by which codes are chosen that make up for one another (GPTQ); None: the nearest codes.
    """
    before = floats_of(base)
    moments = {} if text is None else moments_of(merged.model, whole, adapted, text)
    words, after, codes, moved = dict(base.words), dict(whole), 0, 0
    for layer in [layer for layer in base.grids if layer in adapted]:
        found, changed = _on_grid(whole[f"{layer}.weight"], base, layer, moments)
        words[f"{layer}.weight"] = from_array(found.words_XW, "U32")
        after[f"{layer}.weight"] = found.dequantised()
        codes, moved = codes + whole[f"{layer}.weight"].size, moved + changed
    # What the adapter does not move stays in the dtype that it has, too.
    same = {name: tensor for name, tensor in base.tensors.items() if np.array_equal(whole[name], before[name])}
    made = dataclasses.replace(merged, tensors=merged.tensors | same, words=words, grids=base.grids)
    said = [f"{moved:,} of {codes:,} codes are others now"]
    if text is None:
        return made, [*said, "every weight went to its nearest code: with --text FILE they make up for one another"]
    lost = divergence_of(merged.model, whole, after, text)
    said.append(f"the grids swallowed {lost:.4f} nats per token of what the adapters add, on {text.name}")
    if all(whole[name].shape == value.shape for name, value in before.items()):
        added = divergence_of(merged.model, whole, before, text)
        share = f": {lost / added:.0%} are lost" if added > LEAST_DIVERGENCE else ""
        said.append(f"the adapters had moved the model by {added:.4f}{share}")
    return made, said


def _on_grid(
    matrix: F32, base: Contents, layer: str, moments: Mapping[str, npt.NDArray[np.float64]]
) -> tuple[Quantised, int]:
    """A matrix (O, I) or (E, O, I) by the scales and biases of a grid that is there, and how many codes are others."""
    words, scales, biases = (base.words[f"{layer}.{part}"] for part in PARTS)
    kept = as_quantised(words, scales, biases, base.grids[layer])
    if layer in moments:
        found = gptq(matrix, moments[layer], kept.grid, kept=kept)
    else:
        groups = matrix.reshape(*kept.scales_XG.shape, kept.grid.group_size)
        codes = codes_of(groups, kept.scales_XG[..., None], kept.biases_XG[..., None], kept.grid)
        packed_XW = packed(codes.reshape(matrix.shape), kept.grid.bits)
        found = Quantised(kept.grid, packed_XW, kept.scales_XG, kept.biases_XG)
    changed = unpacked(found.words_XW, kept.grid.bits) != unpacked(kept.words_XW, kept.grid.bits)
    return found, int(changed.sum())
