"""Tensors in and out of a checkpoint folder; layout and validation are gpt_common/training/checkpoint.py."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gpt_common.config import ModelConfig
from gpt_common.data.tokenizers.growth import GROWING, Growth
from gpt_common.network.parameters import NO_ADAPTER
from gpt_common.training.checkpoint import read_manifest, validate
from gpt_common.training.fitting import fitting, grids_at
from gpt_common.training.manifest import MODEL_FILE, OPTIMIZER_FILE, Manifest, base_of
from torch_gpt.kernels import as_words
from torch_gpt.model import GPT
from torch_gpt.optim import Average, Optimizer, load_optimizer_tensors, optimizer_tensors


def save_tensors(folder: Path, model: GPT, optimizer: Optimizer, average: Average | None = None) -> None:
    """Write both tensor files of a checkpoint into `folder`: what is sampled from, and what training goes on with."""
    saved, state = model, optimizer_tensors(model, optimizer)
    if average is not None and average.decay:
        saved = average.model
        state |= {f"weights.{name}": value.detach() for name, value in model.named_parameters()}
    # Beside an adapter the model's own tensors stay where they came from.
    tensors = dict(saved.named_parameters()) if saved.adapters.config.adapts else saved.state_dict()
    save_file({name: p.detach().contiguous() for name, p in tensors.items()}, folder / MODEL_FILE)
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
    """Restore the model alone, of an adapter with its base; position embeddings beyond its block size are left out.

    Args:
        growth: entries of the vocabulary that the checkpoint does not have; their rows are the mean of the others.

    Raises:
        UserError: the checkpoint is damaged or of another shape.
    """
    manifest = validate(checkpoint)
    base = base_of(checkpoint, manifest)
    files = [folder / MODEL_FILE for folder in (base, checkpoint) if folder is not None]
    places, adapter = model.state_dict(), model.adapters.config if base is not None else NO_ADAPTER
    growing = GROWING if growth else ()
    with ExitStack() as stack, torch.no_grad():
        found: dict[str, Any] = {}
        for path in files:
            file = stack.enter_context(safe_open(path, "pt"))
            names = file.keys()
            found |= {name: file.get_slice(name) for name in names}  # what was trained whole is in both
        shapes = {name: tuple(tensor.get_shape()) for name, tensor in found.items()}
        # One by one: all together would be there twice, and take more than any step does.
        for name, rows in fitting(checkpoint, shapes, model.config, adapter, model.quantised.grids, growing).items():
            if growth and name in growing:
                places[name].copy_(torch.from_numpy(growth.rows(found[name][:].float().numpy(), rows)))
            else:
                places[name].copy_(as_words(found[name][:rows]))
    return manifest


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors file, which must have been validated before."""
    return load_file(path)


def build_model(checkpoint: Path, config: ModelConfig, compute_dtype: torch.dtype) -> GPT:
    """A model for generation, with the weights of a checkpoint, and with its adapter."""
    adapter = read_manifest(checkpoint).run_config.adapter
    model = GPT(config, compute_dtype, adapter=adapter, grids=grids_at(checkpoint))
    load_weights(checkpoint, model)
    return model
