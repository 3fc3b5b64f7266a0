"""What merging an adapter into bfloat16 costs, as a loss on the text that its run was judged by.

It stands here because the twins are asked; of all that converts, parity alone knows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convert.trained_on import trained_on
from gpt_common.data.batches import estimated_on, evaluation_batches, mean_loss
from gpt_common.training.manifest import Manifest

BATCHES = 4
"""Of the validation split: enough to see whether the cost is 1e-2 or 1e-5, in about the time that merging takes."""


@dataclass(frozen=True)
class Cost:
    """Losses on the same tokens, nats per token."""

    adapted: float
    """Of the frozen base with its adapter beside it, in float32."""
    merged: float
    """Of the merged matrices rounded to bfloat16; everything else, and the computing, in float32."""
    tokens: int
    dataset: str


def cost_of_rounding(adapter: Path, manifest: Manifest, merged: Path, matrices: Sequence[str]) -> Cost:
    """Ask the PyTorch twin, on the CPU.

    Args:
        adapter: checkpoint of the run, whose manifest is `manifest`.
        merged: checkpoint of the same in float32.
        matrices: names of the weights that were merged.

    Raises:
        UserError: the run's data is not here any more, or another.
    """
    import torch

    from torch_gpt.checkpoint import build_model
    from torch_gpt.probe import TrainingProbe

    config = manifest.run_config
    dataset = trained_on(config, manifest)
    block, rows = config.model.block_size, config.train.batch_size
    _, val = dataset.splits(block, packing=config.data.packing)
    batches = list(evaluation_batches(val, block_size=block, batch_size=rows, batches=BATCHES))
    found = []
    for checkpoint, rounded in ((adapter, ()), (merged, matrices)):
        model = build_model(checkpoint, config.model, torch.float32)
        places = model.state_dict()
        with torch.no_grad():
            for name_ in rounded:
                places[name_].copy_(places[name_].bfloat16())
        found.append(mean_loss(batches, TrainingProbe(model).losses(batches)))
    tokens = estimated_on(val, block_size=block, batch_size=rows, batches=BATCHES)
    return Cost(found[0], found[1], tokens, dataset.name)
