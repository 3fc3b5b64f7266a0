"""Hostile and broken inputs, each generated when a test asks for it: nothing here is ever stored as a file.

A case is a function that writes a source into an empty folder and returns its path, together with what the refusal
has to name. Every broken source is a sound one (`SOUND` below, which must convert) with one thing changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from gpt_common.config import ModelConfig, RunConfig, to_dict, to_toml
from gpt_common.network.init import initial_weights
from gpt_common.network.parameters import parameter_shapes
from gpt_common.training.checkpoint import write_checkpoint
from gpt_common.training.manifest import MODEL_FILE, OPTIMIZER_FILE, STATE_FILE, Manifest, tensor_hashes
from tests.convert.formats import nanogpt

SIZES: nanogpt.Sizes = {"vocab_size": 65, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 8}
CANARY = "CANARY"
Make = Callable[[Path], Path]


@dataclass(frozen=True)
class Case:
    """A source that must be refused.

    Args:
        name: what is wrong with it, in words.
        make: writes it into an empty folder and returns the path to give to the command.
        says: regular expressions, ignoring case, that the refusal must match: the tensor, the value, the reason.
        file: name of the file that the refusal must name; that of the source if None.
        command: the command that gets it.
        flags: further arguments.
    """

    name: str
    make: Make
    says: tuple[str, ...]
    file: str | None = None
    command: str = "torch2mlx"
    flags: tuple[str, ...] = ()


def nanogpt_entries() -> dict[str, Any]:
    """The six entries of a nanoGPT checkpoint, after three real updates."""
    model = nanogpt.GPT(nanogpt.GPTConfig(**SIZES, dropout=0.0, bias=True))
    nanogpt.randomise(model, 1, 0.2)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99))
    tokens = torch.arange(32).reshape(2, 16)
    nanogpt.train(model, optimizer, [(tokens, tokens + 1)] * 3)
    return nanogpt.entries(model, optimizer, 3)


def nanogpt_file(edit: Callable[[dict[str, Any]], Any] | None = None, *, legacy: bool = False) -> Make:
    """`ckpt.pt` with its entries edited in place, or replaced by what `edit` returns."""

    def make(folder: Path) -> Path:
        entries = nanogpt_entries()
        replaced = edit(entries) if edit else None
        path = folder / "ckpt.pt"
        torch.save(entries if replaced is None else replaced, path, _use_new_zipfile_serialization=not legacy)
        return path

    return make


def gpt2_tensors() -> dict[str, np.ndarray]:
    """Tensors of a small GPT-2 as transformers names and lays them out (Conv1D: in, out)."""
    D, generator = SIZES["n_embd"], np.random.default_rng(2)
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (SIZES["vocab_size"], D),
        "wpe.weight": (SIZES["block_size"], D),
    }
    for i in range(SIZES["n_layer"]):
        for name, inputs, outputs in (
            ("attn.c_attn", D, 3 * D),
            ("attn.c_proj", D, D),
            ("mlp.c_fc", D, 4 * D),
            ("mlp.c_proj", 4 * D, D),
        ):
            shapes |= {f"h.{i}.{name}.weight": (inputs, outputs), f"h.{i}.{name}.bias": (outputs,)}
        shapes |= {f"h.{i}.{norm}.{part}": (D,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
    shapes |= {"ln_f.weight": (D,), "ln_f.bias": (D,)}
    return {
        f"transformer.{name}": generator.standard_normal(shape, np.float32) * np.float32(0.2)
        for name, shape in shapes.items()
    }


def gpt2_config() -> dict[str, Any]:
    """`config.json` of the same model."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": SIZES["vocab_size"],
        "n_positions": SIZES["block_size"],
        "n_layer": SIZES["n_layer"],
        "n_head": SIZES["n_head"],
        "n_embd": SIZES["n_embd"],
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
    }


def gpt2_folder(
    tensors: Callable[[dict[str, np.ndarray]], Any] | None = None,
    config: Callable[[dict[str, Any]], Any] | None = None,
    finish: Callable[[Path], Any] | None = None,
) -> Make:
    """A transformers folder `gpt2`, with tensors and configuration edited in place, and then the folder itself."""

    def make(folder: Path) -> Path:
        source = folder / "gpt2"
        source.mkdir()
        arrays, settings = gpt2_tensors(), gpt2_config()
        if tensors:
            tensors(arrays)
        if config:
            config(settings)
        save_file(arrays, source / "model.safetensors", metadata={"format": "pt"})
        (source / "config.json").write_text(json.dumps(settings))
        if finish:
            finish(source)
        return source

    return make


def gpt2_shards(edit: Callable[[Path, dict[str, Any]], Any] | None = None) -> Make:
    """The same in two shards with an index, which `edit` may change before it is written."""

    def finish(source: Path) -> None:
        (source / "model.safetensors").unlink()
        arrays = gpt2_tensors()
        names = sorted(arrays)
        halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
        for file, held in halves.items():
            save_file({name: arrays[name] for name in held}, source / file, metadata={"format": "pt"})
        index = {
            "metadata": {"total_size": sum(array.nbytes for array in arrays.values())},
            "weight_map": {name: file for file, held in halves.items() for name in held},
        }
        if edit:
            edit(source, index)
        (source / "model.safetensors.index.json").write_text(json.dumps(index))

    return gpt2_folder(finish=finish)


def gpt2_pickled(finish: Callable[[Path], Any] | None = None) -> Make:
    """The same in one `pytorch_model.bin`, as transformers wrote it up to version 4."""

    def change(source: Path) -> None:
        (source / "model.safetensors").unlink()
        torch.save({name: torch.from_numpy(a) for name, a in gpt2_tensors().items()}, source / "pytorch_model.bin")
        if finish:
            finish(source)

    return gpt2_folder(finish=change)


def native_run(
    model: Callable[[dict[str, np.ndarray]], Any] | None = None,
    optimizer: Callable[[dict[str, np.ndarray]], Any] | None = None,
    state: Callable[[dict[str, Any]], Any] | None = None,
    finish: Callable[[Path], Any] | None = None,
) -> Make:
    """A run of ours with one checkpoint, step 3. Tensors are edited before they are hashed, the manifest after."""

    def make(folder: Path) -> Path:
        run = folder / "run"
        config = RunConfig(model=ModelConfig(**SIZES, bias=True))
        weights = dict(initial_weights(config.model, 1))
        moments = {
            f"{moment}.{name}": np.full(shape, 0.5, np.float32)
            for moment in ("exp_avg", "exp_avg_sq")
            for name, shape in parameter_shapes(config.model).items()
        }
        if model:
            model(weights)
        if optimizer:
            optimizer(moments)

        def write_files(checkpoint: Path) -> None:
            save_file(weights, checkpoint / MODEL_FILE)
            save_file(moments, checkpoint / OPTIMIZER_FILE)

        run.mkdir()
        (run / "config.toml").write_text(to_toml(config))
        manifest = Manifest(step=3, config=to_dict(config), tokens=0, val_loss=2.5, best_val_loss=2.5)
        checkpoint = write_checkpoint(run, manifest, write_files=write_files, best=True, keep=2)
        if state:
            entries = json.loads((checkpoint / STATE_FILE).read_text())
            state(entries)
            (checkpoint / STATE_FILE).write_text(json.dumps(entries))
        if finish:
            finish(checkpoint)
        return run

    return make


def rehash(checkpoint: Path) -> None:
    """Make the manifest agree with the tensor files again, as someone who tampers with care would."""
    entries = json.loads((checkpoint / STATE_FILE).read_text())
    entries["tensors"] = {file: tensor_hashes(checkpoint / file) for file in (MODEL_FILE, OPTIMIZER_FILE)}
    (checkpoint / STATE_FILE).write_text(json.dumps(entries))


SOUND: dict[str, tuple[str, Make]] = {
    "nanogpt": ("torch2mlx", nanogpt_file()),
    "transformers": ("torch2mlx", gpt2_folder()),
    "transformers shards": ("torch2mlx", gpt2_shards()),
    "transformers pickled": ("torch2mlx", gpt2_pickled()),
    "native": ("mlx2torch", native_run()),
}
"""What the corpus is made from: these must convert, or a refusal would prove nothing."""
