"""Tensors in and out of a checkpoint folder; layout and validation are gpt_common/training/checkpoint.py."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gpt_common.config import ModelConfig
from gpt_common.training.checkpoint import fitting, validate
from gpt_common.training.manifest import MODEL_FILE, OPTIMIZER_FILE, Manifest
from gpt_common.training.trained.growth import GROWING, Growth
from torch_gpt.model import GPT
from torch_gpt.optim import Average, Optimizer, load_optimizer_tensors, optimizer_tensors


def save_tensors(folder: Path, model: GPT, optimizer: Optimizer, average: Average | None = None) -> None:
    """Write both tensor files of a checkpoint into `folder`: what is sampled from, and what training goes on with."""
    saved, state = model, optimizer_tensors(model, optimizer)
    if average is not None and average.decay:
        saved = average.model
        state |= {f"weights.{name}": value.detach() for name, value in model.named_parameters()}
    save_file({name: p.detach().contiguous() for name, p in saved.state_dict().items()}, folder / MODEL_FILE)
    save_file({name: t.contiguous() for name, t in state.items()}, folder / OPTIMIZER_FILE)


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
            model.load_state_dict(weights, strict=False)
    return manifest


def load_weights(checkpoint: Path, model: GPT, growth: Growth | None = None) -> Manifest:
    """Restore the model alone; position embeddings beyond its block size are left out.

    Args:
        growth: entries of the vocabulary that the checkpoint does not have; their rows are the mean of the others.

    Raises:
        UserError: the checkpoint is damaged or of another shape.
    """
    manifest = validate(checkpoint)
    tensors = read_tensors(checkpoint / MODEL_FILE)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    growing = GROWING if growth else ()
    places = model.state_dict()
    with torch.no_grad():
        for name, rows in fitting(checkpoint, shapes, model.config, growing).items():
            if growth and name in growing:
                tensors[name] = torch.from_numpy(growth.rows(tensors[name].float().numpy(), rows))
            places[name].copy_(tensors[name][:rows])
    return manifest


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors file, which must have been validated before."""
    return load_file(path)


def build_model(checkpoint: Path, config: ModelConfig, compute_dtype: torch.dtype) -> GPT:
    """A model for generation, with the weights of a checkpoint."""
    model = GPT(config, compute_dtype)
    load_weights(checkpoint, model)
    return model
