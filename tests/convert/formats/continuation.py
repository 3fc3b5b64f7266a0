"""Both twins on a converted run: logits, greedy text, and training on given batches."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import torch

from gpt_common.commands import SampleSettings
from gpt_common.config import RunConfig, to_dict
from gpt_common.data.batches import Batch
from gpt_common.training.checkpoint import find_checkpoint, read_manifest, validate, write_checkpoint
from gpt_common.training.manifest import OPTIMIZER_FILE, Manifest

TWINS = ("mlx", "torch")
FLOAT32 = {"mlx": mx.float32, "torch": torch.float32}
Array = np.ndarray[Any, Any]
Batches = Iterable[tuple[Array, Array]]


def part(twin: str, name: str) -> Any:
    """Module `name` of a twin."""
    return import_module(f"{twin}_gpt.{name}")


def configuration(run: Path) -> RunConfig:
    """What a run's checkpoint says of itself, after every byte of it was checked."""
    checkpoint = find_checkpoint(run, prefer="latest")
    config = read_manifest(checkpoint).run_config
    validate(checkpoint)
    return config


def load_model(twin: str, run: Path, **changes: Any) -> Any:
    """The model of a run, with fields of its configuration changed."""
    config = dataclasses.replace(configuration(run).model, **changes)
    return part(twin, "checkpoint").build_model(find_checkpoint(run, prefer="latest"), config, FLOAT32[twin])


def logits(twin: str, model: Any, tokens_BT: Array) -> Array:
    """(B, T) token ids -> (B, T, V)."""
    if twin == "mlx":
        return np.array(model(mx.array(tokens_BT)))
    with torch.no_grad():
        return model(torch.from_numpy(tokens_BT)).numpy()


def greedy(twin: str, run: Path, prompt: Sequence[int], count: int) -> list[int]:
    """The likeliest `count` tokens after a prompt, by the twin's own sampler and its KV cache."""
    settings = SampleSettings(max_new_tokens=count, temperature=0.0)
    return list(part(twin, "sample").generate(load_model(twin, run), prompt, settings, itertools.repeat(0.5)))


def relative_error(found: Array, expected: Array) -> float:
    """Relative L2, in float64."""
    difference = found.astype(np.float64) - expected.astype(np.float64)
    return float(np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64)))


class Trainer:
    """A twin's model and AdamW on batches that the test chooses.

    Args:
        mutate: changes the moments (by name) and the step before they are put back: a wrong conversion.
    """

    def __init__(
        self,
        twin: str,
        config: RunConfig,
        run: Path | None = None,
        mutate: Callable[[dict[str, Any], int], int] | None = None,
    ) -> None:
        self.twin, self.config = twin, config
        optim = part(twin, "optim")
        self.model = part(twin, "model").GPT(config.model)
        self.optimizer = optim.build_optimizer(self.model, config.optim)
        self.done = 0
        if run is None:
            self.model.initialise(config.train.seed)
        else:
            checkpoint = find_checkpoint(run, prefer="latest")
            self.done = part(twin, "checkpoint").load_checkpoint(checkpoint, self.model, self.optimizer).step
            if mutate:
                moments = import_module(f"safetensors.{twin}").load_file(checkpoint / OPTIMIZER_FILE)
                step = mutate(moments, self.done)
                optim.load_optimizer_tensors(self.model, self.optimizer, moments, step)
        self.step = part(twin, "train").TrainStep(self.model, self.optimizer, config, False)

    def train(self, batches: Batches, learning_rate: Callable[[int], float]) -> list[float]:
        """Losses of one step per batch."""
        losses = []
        for batch in batches:
            loss, _ = self.step([Batch(*batch)], self.done, learning_rate(self.done))
            losses.append(float(loss))
            self.done += 1
        return losses

    def save(self, run: Path) -> Path:
        """Commit a checkpoint of the run as the trainer does."""
        manifest = Manifest(step=self.done, config=to_dict(self.config), best_val_loss=2.5)
        save_tensors = part(self.twin, "checkpoint").save_tensors
        write_checkpoint(
            run,
            manifest,
            write_files=lambda folder: save_tensors(folder, self.model, self.optimizer),
            best=True,
            keep=1,
        )
        return run
