"""Tensors in and out of a checkpoint folder; layout and validation are gpt_common/training/checkpoint.py."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from gpt_common.config import ModelConfig
from gpt_common.data.tokenizers.growth import GROWING, Growth
from gpt_common.network.parameters import NO_ADAPTER
from gpt_common.training.checkpoint import read_manifest, validate
from gpt_common.training.fitting import fitting, grids_at
from gpt_common.training.manifest import MODEL_FILE, OPTIMIZER_FILE, Manifest, base_of
from mlx_gpt.model import GPT
from mlx_gpt.optim import Average, Optimizer, load_optimizer_tensors, optimizer_tensors


def save_tensors(folder: Path, model: GPT, optimizer: Optimizer, average: Average | None = None) -> None:
    """Write both tensor files of a checkpoint into `folder`: what is sampled from, and what training goes on with."""
    saved, state = model, optimizer_tensors(model, optimizer)
    if average is not None and average.decay:
        saved = average.model
        state |= {f"weights.{name}": value for name, value in model.named_parameters()}
    # Beside an adapter the model's own tensors stay where they came from.
    tensors = dict(saved.named_parameters()) if saved.adapters.config.adapts else saved.state_dict()
    mx.save_safetensors(str(folder / MODEL_FILE), tensors)
    mx.save_safetensors(str(folder / OPTIMIZER_FILE), state)


def load_checkpoint(checkpoint: Path, model: GPT, optimizer: Optimizer, average: Average | None = None) -> Manifest:
    """Restore model, optimiser and mean of the weights, after every byte was checked; returns the manifest.

    Raises:
        UserError: the checkpoint is damaged or of another shape.
    """
    manifest = load_weights(checkpoint, model)
    if OPTIMIZER_FILE in manifest.tensors:
        state = read_tensors(checkpoint / OPTIMIZER_FILE)
        load_optimizer_tensors(model, optimizer, state, manifest.step)
        if average is not None and average.decay:
            average.restart()  # the model's file held the mean
            weights = {name: state[f"weights.{name}"] for name, _ in model.named_parameters()}
            model.update(tree_unflatten(list(weights.items())))
        mx.eval(optimizer.state, model.state)
    return manifest


def load_weights(checkpoint: Path, model: GPT, growth: Growth | None = None) -> Manifest:
    """Restore the model alone, of an adapter with its base; position embeddings beyond its block size are left out.

    Args:
        growth: entries of the vocabulary that the checkpoint does not have; their rows are the mean of the others.

    Raises:
        UserError: the checkpoint is damaged or of another shape.
    """
    manifest = validate(checkpoint)
    tensors, base = read_tensors(checkpoint / MODEL_FILE), base_of(checkpoint, manifest)
    if base is not None:
        tensors = read_tensors(base / MODEL_FILE) | tensors  # what was trained whole is in both
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    places, adapter = model.state_dict(), model.adapters.config if base is not None else NO_ADAPTER
    growing = GROWING if growth else ()
    weights = []
    for name, rows in fitting(checkpoint, shapes, model.config, adapter, model.quantised.grids, growing).items():
        if growth and name in growing:
            tensors[name] = mx.array(growth.rows(np.array(tensors[name].astype(mx.float32)), rows))
        weights.append((name, tensors[name][:rows].astype(places[name].dtype)))
    model.update(tree_unflatten(weights))
    # Loads are lazy: read everything now, while the file is the one that was checked.
    mx.eval(model.parameters())
    return manifest


def read_tensors(path: Path) -> dict[str, mx.array]:
    """Every tensor of a safetensors file, which must have been validated before."""
    tensors = mx.load(str(path))
    assert isinstance(tensors, dict)
    return tensors


def build_model(checkpoint: Path, config: ModelConfig, compute_dtype: mx.Dtype) -> GPT:
    """A model for generation, with the weights of a checkpoint, and with its adapter."""
    adapter = read_manifest(checkpoint).run_config.adapter
    model = GPT(config, compute_dtype, adapter=adapter, grids=grids_at(checkpoint))
    load_weights(checkpoint, model)
    return model
