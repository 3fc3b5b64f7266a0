"""LoRA by peft and by mlx-lm, from our weights: what adapters.py compares with."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.studies.turns import requests
from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.config import RunConfig
from gpt_common.data.batches import NumpyBatch
from gpt_common.machine.blas import load_fast_blas, wait_passively

MODELS = {"peft": "transformers", "mlx-lm": "mlx-lm"}
"""How the base is exported for a peer."""
FOREVER = 10**12
"""Steps."""
Step = Callable[[NumpyBatch], float]
"""A training step, waited for; gives its loss."""


def write_for_peers(folder: Path, config: RunConfig, sides: Sequence[str]) -> None:
    """Base and adapter at their first values, for every peer among the sides, in the form that it reads.

    Raises:
        UserError: its library has no such model.
    """
    from convert.__main__ import main as convert
    from convert.adapters.adapter import Adapter
    from convert.adapters.exchange import LIBRARIES
    from convert.contents import Contents
    from convert.formats import native
    from convert.options import WriteOptions
    from convert.storage.tensors import from_array
    from gpt_common.adapting.placement import initial_adapters
    from gpt_common.network.init import initial_weights
    from gpt_common.network.parameters import parameter_shapes

    weights, shapes = dict(initial_weights(config.model, config.train.seed)), parameter_shapes(config.model)
    plain = dataclasses.replace(config, adapter=AdapterConfig())
    tensors = {name: from_array(value, "F32") for name, value in weights.items()}
    native.write(Contents(path=folder, config=plain, tensors=tensors), folder / "base", WriteOptions())
    first = dict(initial_adapters(shapes, config.adapter, config.train.seed, lambda layer: weights[f"{layer}.weight"]))
    adapter = Adapter(model=config.model, config=config.adapter, tensors=first)
    for peer in MODELS.keys() & set(sides):
        with contextlib.redirect_stdout(io.StringIO()):
            convert(["export", str(folder / "base"), "--to", MODELS[peer], "-o", str(folder / peer)])
        LIBRARIES[peer].write(adapter, folder / f"{peer}-adapter", "base")


def peft(folder: Path, config: RunConfig) -> Step:
    """peft's layers in transformers' model, and the loop that everybody writes."""
    wait_passively()  # before PyTorch is imported, as our trainer does
    import torch
    from peft import PeftModel
    from torch.nn import functional as F
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder / "peft", dtype=torch.float32)
    network: Any = PeftModel.from_pretrained(base, str(folder / "peft-adapter"), is_trainable=True).train()
    optim = config.optim
    optimizer = torch.optim.AdamW(
        [parameter for parameter in network.parameters() if parameter.requires_grad], lr=optim.learning_rate,
        betas=(optim.beta1, optim.beta2), eps=optim.adam_eps, weight_decay=optim.weight_decay, fused=True,
    )  # fmt: skip

    def step(batch: NumpyBatch) -> float:
        labels = torch.from_numpy(np.where(batch.weights == 0, -100, batch.labels)).long()
        logits = network(input_ids=torch.from_numpy(batch.tokens).long(), use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def work_as_mlx_lm(folder: Path, config: RunConfig, batches: Sequence[NumpyBatch]) -> None:
    """mlx-lm's layers, loss and loop: it asks for a batch when a step is done, and there turns are taken."""
    load_fast_blas()  # before MLX is imported, as our trainer does
    import mlx.core as mx
    from mlx.optimizers import AdamW
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    trainer: Any = import_module("mlx_lm.tuner.trainer")
    network: Any = load_model(folder / "mlx-lm")[0]
    network.freeze()
    load_adapters(network, str(folder / "mlx-lm-adapter"))
    optim, losses = config.optim, list[float]()
    args = trainer.TrainingArgs(
        iters=FOREVER, steps_per_report=1, steps_per_save=FOREVER, adapter_file=str(folder / "trained.safetensors")
    )

    def feed(**_settings: Any) -> Iterator[tuple[Any, Any]]:
        for batch in batches:
            yield as_mlx_lm(batch)
        args.steps_per_report = trainer.TrainingArgs.steps_per_report
        print(json.dumps(losses), flush=True)
        again = cycle(batches)
        for _ in requests():
            yield as_mlx_lm(next(again))

    def as_mlx_lm(batch: NumpyBatch) -> tuple[Any, Any]:
        """A row with its last label, and from which label to which it counts, from 1 and both included."""
        assert batch.weights is not None
        places = [np.flatnonzero(row) + 1 for row in batch.weights]
        rows = np.concatenate([batch.tokens, batch.labels[:, -1:]], axis=1)
        return mx.array(rows), mx.array([[int(place[0]), int(place[-1])] for place in places])

    trainer.TrainUI = Silent
    trainer.train(
        model=network,
        optimizer=AdamW(
            optim.learning_rate, [optim.beta1, optim.beta2], optim.adam_eps, optim.weight_decay, bias_correction=True
        ),
        train_dataset=None,
        args=args,
        iterate_batches=feed,
        training_callback=SimpleNamespace(on_train_loss_report=lambda told: losses.append(told["train_loss"])),
    )


class Silent:
    """In place of mlx-lm's progress display, whatever it is told."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_, **__: None
