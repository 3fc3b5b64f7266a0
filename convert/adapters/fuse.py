"""`python -m convert fuse RUN`: an adapter merged into its base, as a whole model in float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
from tyro.conf import arg

from convert.adapters.exchange import held, tensors_of
from convert.adapters.keeping import floats_of, onto_grids
from convert.contents import Contents
from convert.destination import beside, check_run_free
from convert.formats import native
from convert.options import ReadOptions, Source, WriteOptions
from convert.quantising.material import material_if_any
from convert.storage.tensors import from_array
from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.adapting.placement import Placed, placed, trained_whole
from gpt_common.adapting.quantisation import rounded_to
from gpt_common.config import ModelConfig
from gpt_common.data.conversations.templates import own_template
from gpt_common.data.tokenizers import load_tokenizer
from gpt_common.errors import UserError
from gpt_common.files import written_whole
from gpt_common.network.parameters import parameter_shapes
from gpt_common.training.checkpoint import find_checkpoint
from gpt_common.training.manifest import TOKENIZER_FILE, Manifest, base_of
from gpt_common.words import say

Arrays = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Fuse:
    """Merge a run's adapter into its base: a whole model in float32, which every command and export takes."""

    examples: ClassVar[tuple[str, ...]] = ("runs/FIRST-lora", "runs/FIRST-lora -o runs/FUSED")
    src: Source
    """A run with an adapter, or one of its checkpoints."""
    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    """Folder of the merged run; if not given, beside SRC with -fused."""
    latest: bool = False
    """Of a run folder, take the latest checkpoint and not the best."""
    keep_grid: bool = False
    """Of a quantised base: onto the grids that it has, so that what the adapter does not move stays bit for bit."""
    text: Path | None = None
    """With --keep-grid: text to choose codes by; if not given, the run's own dataset."""
    overwrite: bool = False
    """Replace an earlier result."""


def fuse(command: Fuse) -> Path:
    """Merge; returns the new run.

    Raises:
        UserError: the source has no adapter, its base is missing, or the destination is not free.
    """
    found = held(command.src, command.latest)
    if found is None:
        raise UserError(f"{command.src} is no run with an adapter: there is nothing to merge")
    checkpoint, manifest = found
    base = base_of(checkpoint, manifest)
    assert base is not None
    destination = command.out or beside(command.src, "-fused")
    check_run_free(destination, command.overwrite, (command.src, base))
    config, tensors = manifest.run_config, tensors_of(checkpoint)
    before = native.read(base, ReadOptions(optimizer=False))
    if command.keep_grid and not before.grids:
        raise UserError(f"{base} is not quantised: there is no grid to keep; leave out --keep-grid")
    whole, kept = merged(config.model, config.adapter, floats_of(before), tensors)
    adapted = [one.name for one in placed(parameter_shapes(config.model), config.adapter)]
    tokenizer = load_tokenizer(checkpoint / TOKENIZER_FILE) if (checkpoint / TOKENIZER_FILE).exists() else None
    contents = Contents(
        path=checkpoint,
        format=f"{config.adapter.adapter} run",
        config=dataclasses.replace(config, adapter=AdapterConfig()),
        tensors={name: from_array(value, "F32") for name, value in whole.items()},
        step=manifest.step,
        tokens=manifest.tokens,
        val_loss=manifest.val_loss,
        best_val_loss=manifest.best_val_loss,
        best_step=manifest.best_step,
        dataset=manifest.dataset,
        prompt=manifest.prompt,
    )
    said = [
        f"{destination}: {len(kept)} adapters merged into {base}, in float32",
        f"in bfloat16 the merged matrices would round away {rounded_away(kept):.2%} of what the adapters add",
    ]
    if command.keep_grid:
        text, missing = material_if_any(config, manifest, tokenizer, command.text)
        contents, said = onto_grids(contents, before, whole, adapted, text)
        contents = dataclasses.replace(contents, val_loss=None, best_val_loss=None)  # those of the unmerged
        if text is None:
            said.append(f"no text to choose codes by, since {missing}")
        said = [f"{destination}: {len(kept)} adapters merged into {base}, on its grids", *said]
    options = WriteOptions(tokenizer=tokenizer, template=own_template(checkpoint))
    with written_whole(destination) as folder:
        native.write(contents, folder, options)
    for line in said:
        say(line)
    if not command.keep_grid:
        say(f"merging into bfloat16 {_cost(checkpoint, manifest, destination)}")
    return destination


def _cost(checkpoint: Path, manifest: Manifest, merged: Path) -> str:
    """What merging into bfloat16 costs in loss, or why that is not known; where it is much, float32 is for export."""
    from convert.parity.merging import cost_of_rounding

    names = [
        f"{one.name}.weight" for one in placed(parameter_shapes(manifest.run_config.model), manifest.run_config.adapter)
    ]
    try:
        cost = cost_of_rounding(checkpoint, manifest, find_checkpoint(merged, prefer="best"), names)
    except UserError as error:
        return f"costs a loss that was not measured: {error}"
    return (
        f"costs {cost.merged - cost.adapted:+.1e} nats/token: {cost.merged:.6f} for {cost.adapted:.6f}, on "
        f"{cost.tokens:,} tokens of {cost.dataset}"
    )


Kept = list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]
"""Of every adapter the merged matrix, and what was added to the base's."""


def merged(model: ModelConfig, config: AdapterConfig, base: Arrays, adapter: Arrays) -> tuple[dict[str, Any], Kept]:
    """All tensors of the whole model, float32; worked out in float64 and rounded once.

    Args:
        base: tensors of the base's model file.
        adapter: of the adapter's.

    Raises:
        UserError: what comes out is not finite.
    """
    shapes = parameter_shapes(model)
    tensors = dict(base)
    if "position_embedding.weight" in tensors:  # of a run on a shorter block
        tensors["position_embedding.weight"] = tensors["position_embedding.weight"][: model.block_size]
    kept: Kept = []
    for one in placed(shapes, config):
        before = base[f"{one.name}.weight"]
        if config.adapter_base_dtype == "bfloat16":
            before = rounded_to("bfloat16", before)
        with np.errstate(all="ignore"):
            after = matrix(one, before, adapter)
        if not np.isfinite(after).all():
            raise UserError(f"{one.name} with its adapter holds NaN or infinity: this adapter is not for this base")
        tensors[f"{one.name}.weight"] = after
        kept.append((after, after.astype(np.float64) - before))
    return tensors | {name: adapter[name] for name in trained_whole(shapes, config)}, kept


def matrix(one: Placed, base: npt.NDArray[np.float32], adapter: Arrays) -> npt.NDArray[np.float32]:
    """W + s B A, or of DoRA m (W + s B A) / |W + s B A| by rows."""
    a, b = (adapter[f"{one.name}.{part}"].astype(np.float64) for part in ("lora_a", "lora_b"))
    whole = base + one.scale * (b @ a)
    magnitude = adapter.get(f"{one.name}.magnitude")
    if magnitude is not None:
        whole *= (magnitude / np.sqrt(np.square(whole).sum(axis=-1)))[:, None]
    found: npt.NDArray[np.float32] = whole.astype(np.float32)
    return found


def rounded_away(kept: Kept) -> float:
    """The error of the matrices in bfloat16 in parts of what the adapters add, over all of them."""
    lost = sum(float(np.square(rounded_to("bfloat16", after) - after.astype(np.float64)).sum()) for after, _ in kept)
    added = sum(float(np.square(change).sum()) for _, change in kept)
    return float(np.sqrt(lost / max(added, 1e-300)))
