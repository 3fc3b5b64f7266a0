"""Tensors in and out of a checkpoint folder; layout and validation are gpt_common/training/checkpoint.py."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gpt_common.config import ModelConfig
from gpt_common.training.checkpoint import fitting, validate
from gpt_common.training.manifest import MODEL_FILE, OPTIMIZER_FILE, Manifest
from torch_gpt.model import GPT
from torch_gpt.optim import Optimizer, load_optimizer_tensors, optimizer_tensors


def save_tensors(folder: Path, model: GPT, optimizer: Optimizer) -> None:
    """Write both tensor files of a checkpoint into `folder`."""
    save_file({name: p.detach().contiguous() for name, p in model.state_dict().items()}, folder / MODEL_FILE)
    save_file(
        {name: t.contiguous() for name, t in optimizer_tensors(model, optimizer).items()}, folder / OPTIMIZER_FILE
    )


def load_checkpoint(checkpoint: Path, model: GPT, optimizer: Optimizer) -> Manifest:
    """Restore model and optimiser from a checkpoint, after every byte was checked; returns its manifest.

    Raises:
        UserError: the checkpoint is damaged or of another shape.
    """
    manifest = load_weights(checkpoint, model)
    if OPTIMIZER_FILE in manifest.tensors:
        load_optimizer_tensors(model, optimizer, read_tensors(checkpoint / OPTIMIZER_FILE), manifest.step)
    return manifest


def load_weights(checkpoint: Path, model: GPT) -> Manifest:
    """Restore the model alone; position embeddings beyond its block size are left out.

    Raises:
        UserError: the checkpoint is damaged or of another shape.
    """
    manifest = validate(checkpoint)
    tensors = read_tensors(checkpoint / MODEL_FILE)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    places = model.state_dict()
    with torch.no_grad():
        for name, rows in fitting(checkpoint, shapes, model.config).items():
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
