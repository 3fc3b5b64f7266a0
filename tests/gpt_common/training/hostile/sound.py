"""A run that nobody trained and that everything takes: the hostile ones are it, with one thing changed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from gpt_common.config import RunConfig, from_dict, to_dict
from gpt_common.data import open_dataset
from gpt_common.data.__main__ import main as data
from gpt_common.data.tokenizers import identity
from gpt_common.network.init import initial_weights
from gpt_common.network.parameters import optimizer_shapes
from gpt_common.training.checkpoint import write_checkpoint
from gpt_common.training.manifest import MODEL_FILE, OPTIMIZER_FILE, STATE_FILE, TOKENIZER_FILE, Manifest, tensor_hashes
from tests.gpt_common.training.made_up import evaluation, make_run, step

STEP = 3
Damage = Callable[[Path], object]
"""Changes a run's folder."""
Tensors = dict[str, "np.ndarray[Any, Any]"]


def make_corpus(data_dir: Path) -> Path:
    """A prepared text of a few thousand characters, called `letters`; returns `data_dir`."""
    text = data_dir.parent / "letters.txt"
    choose = random.Random(1)
    text.write_text("".join(choose.choice("abcdefgh \n") for _ in range(6000)))
    data(["prepare", "--text", str(text), "--name", "letters", "--tokenizer", "char", "--data-dir", str(data_dir)])
    return data_dir


def configuration(data_dir: Path, vocab_size: int) -> RunConfig:
    """Of a model of a few hundred numbers, which takes milliseconds a step."""
    model = {"vocab_size": vocab_size, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 8}
    train = {"max_steps": 5, "batch_size": 2, "eval_batches": 1, "sample_tokens": 0, "device": "cpu", "report": False}
    train |= {"health_gates": "off", "eval_interval": 0, "checkpoint_interval": 0}
    data = {"dataset": "letters", "data_dir": str(data_dir)}
    return from_dict({"model": model, "train": train, "data": data})


def make_sound(run: Path, data_dir: Path) -> Path:
    """A run stopped after three of five steps, with its log, one checkpoint and all files of it."""
    dataset = open_dataset("letters", data_dir)
    config = configuration(data_dir, dataset.tokenizer.vocab_size)
    rows = [*(step(number) for number in range(1, STEP + 1)), evaluation(STEP, 2.0)]
    make_run(run, rows, config=config, dataset="letters", samples=[{"step": 3, "prompt": "a", "text": "bc"}])
    weights = dict(initial_weights(config.model, 1))
    moments = {
        name: np.full(shape, 0.5, np.float32) for name, shape in optimizer_shapes(config.model, config.optim).items()
    }

    def write_files(checkpoint: Path) -> None:
        save_file(weights, checkpoint / MODEL_FILE)
        save_file(moments, checkpoint / OPTIMIZER_FILE)
        dataset.tokenizer.save(checkpoint / TOKENIZER_FILE)

    manifest = Manifest(
        step=STEP,
        config=to_dict(config),
        tokens=96,
        val_loss=2.0,
        best_step=STEP,
        best_val_loss=2.0,
        dataset={"name": dataset.name, "fingerprint": dataset.fingerprint},
        tokenizer=identity(dataset.tokenizer),
        prompt="a",
        written_by={"program": "torch_gpt"},
    )
    write_checkpoint(run, manifest, write_files=write_files, best=True, keep=2)
    return run


def checkpoint_of(run: Path) -> Path:
    """The run's only checkpoint."""
    return run / "checkpoints" / f"step-{STEP:06d}"


def state(change: Callable[[dict[str, Any]], object]) -> Damage:
    """The manifest with its entries edited in place."""

    def damage(run: Path) -> None:
        path = checkpoint_of(run) / STATE_FILE
        entries = json.loads(path.read_text())
        change(entries)
        path.write_text(json.dumps(entries))

    return damage


def config(table: str, **values: Any) -> Damage:
    """The manifest with another configuration."""
    return state(lambda entries: entries["config"].setdefault(table, {}).update(values))


def tensors(file: str, change: Callable[[Tensors], object], *, hide: bool = True) -> Damage:
    """A tensor file with its tensors edited in place; `hide` makes the manifest agree, as one would who means harm."""

    def damage(run: Path) -> None:
        path = checkpoint_of(run) / file
        found = load_file(path)
        change(found)
        save_file(found, path)
        if hide:
            rehash(run)

    return damage


def rehash(run: Path) -> None:
    """Make the manifest agree with the tensor files."""
    checkpoint = checkpoint_of(run)
    found = {
        file: tensor_hashes(checkpoint / file) for file in (MODEL_FILE, OPTIMIZER_FILE) if (checkpoint / file).exists()
    }
    state(lambda entries: entries.update(tensors=found))(run)


def content(file: str, change: Callable[[bytes], bytes]) -> Damage:
    """A file of the run with other bytes; `file` is a path in it, or the name of a file of its checkpoint."""

    def damage(run: Path) -> None:
        path = place(run, file)
        path.write_bytes(change(path.read_bytes()))

    return damage


def place(run: Path, file: str) -> Path:
    """Where a file of a run lies: its own, or its checkpoint's."""
    return checkpoint_of(run) / file if (checkpoint_of(run) / file).exists() else run / file
