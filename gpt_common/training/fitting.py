"""Whether a checkpoint's tensors go into a model, and in which form they are there: floats, or words of a few bits."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.adapting.placement import trained_whole
from gpt_common.adapting.quantisation import NOT_QUANTISED, Grids, grids_of, stored_shapes
from gpt_common.config import ModelConfig, RunConfig
from gpt_common.data.tokenizers.growth import GROWING, Growth
from gpt_common.errors import UserError
from gpt_common.network.parameters import Shapes, parameter_shapes, tensor_shapes, trained_shapes
from gpt_common.training.checkpoint import described
from gpt_common.training.manifest import MODEL_FILE, base_of, read_header


def fitting(
    checkpoint: Path,
    shapes: Shapes,
    model: ModelConfig,
    adapter: AdapterConfig,
    grids: Grids = NOT_QUANTISED,
    growing: Collection[str] = (),
) -> dict[str, int]:
    """How many rows of each tensor a model takes: all of them, or fewer positions for a shorter block.

    Args:
        shapes: shape of every tensor in the checkpoint's model file, and in that of its base.
        model: the shape of the model that is to hold them.
        adapter: what stands beside it, if that is in the checkpoint.
        grids: its quantised matrices.
        growing: tensors that may have fewer rows than the model.

    Raises:
        UserError: a tensor is missing, superfluous or of another shape; a block longer than the checkpoint's.
    """
    wanted = stored_shapes(tensor_shapes(model), grids)
    wanted |= trained_shapes(model, adapter) if adapter.adapts else {}
    for name in sorted(wanted.keys() ^ shapes.keys()):
        what = f"tensor {name} is missing" if name in wanted else f"unexpected tensor {name}"
        raise UserError(f"{checkpoint} does not fit the configuration: {what}")
    for name, shape in wanted.items():
        rows, alike = shapes[name][0], shapes[name][1:] == shape[1:]
        longer = name == "position_embedding.weight" and alike
        if longer and rows < shape[0]:
            raise UserError(f"block_size {shape[0]} is beyond the checkpoint's {rows}: use --block-size {rows} or less")
        grows = name in growing and alike and rows <= shape[0]
        if shapes[name] != shape and not longer and not grows:
            raise UserError(
                f"{checkpoint} does not fit the configuration: {name} has shape {shapes[name]}, the model needs {shape}"
            )
    return {name: shape[0] for name, shape in wanted.items()}


def grids_at(checkpoint: Path) -> Grids:
    """The quantised matrices of a checkpoint, or of the base that it stands beside.

    Raises:
        UserError: the checkpoint is damaged.
    """
    manifest = described(checkpoint)
    if (base := base_of(checkpoint, manifest)) is not None:
        return grids_at(base)
    found = {name: shape for name, (_, shape) in read_header(checkpoint / MODEL_FILE).items()}
    return grids_of(found, tensor_shapes(manifest.run_config.model))


def trainable_grids(config: RunConfig, source: Path | None, growth: Growth | None) -> Grids:
    """The quantised matrices that a run starts with: it trains adapters beside them, and them never.

    Args:
        source: the checkpoint to start from, if there is one.
        growth: what the vocabulary lacks.

    Raises:
        UserError: it would train one of them.
    """
    grids = grids_at(source) if source is not None else NOT_QUANTISED
    if grids and not config.adapter.adapts:
        raise UserError(f"{source} is quantised: --adapter lora trains beside it, or start from what it was made of")
    whole = trained_whole(parameter_shapes(config.model), config.adapter)
    for name in (*whole, *(GROWING if growth else ())):
        if (layer := name.removesuffix(".weight")) in grids:
            raise UserError(f"{layer} of {source} is quantised and cannot be trained: quantise with --keep {layer}")
    return grids
