"""`python -m tests.convert.adapters.sides SIDE FOLDER MEASURE`: three LoRA steps by one trainer, and what they took.

Each side runs in a process of its own on the same work: this project's trainers as anyone starts them, `mlx_lm.lora`,
and peft in a plain loop. Prints JSON: losses of the steps (mlx-lm, which draws its own order and values, has none), and
at its peak the bytes that the framework handed out (`allocated`) or those of the process (`resident`).

FOLDER has hf (a folder of transformers), base (the same as a run), data (the prepared conversations) and chats (the
same as JSON lines, as mlx-lm takes them).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.gpt_common.training.hostile.trying import peak

BLOCK, BATCH, STEPS, SHOWN = 192, 2, 100, 3
RANK, ALPHA, RATE = 8, 16.0, 2e-4
"""SHOWN steps of the STEPS show what memory they take."""
SIDES = {"torch_gpt": "torch", "mlx_gpt": "mlx", "peft": "torch", "mlx_lm": "mlx"}
"""By side: its framework."""
KEYS = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


def flags(folder: Path, out: Path) -> list[str]:
    """Of either trainer of ours."""
    flags: dict[str, Any] = {
        "init-from": folder / "base", "dataset": "chats", "data-dir": folder / "data", "out": out, "device": "cpu",
        "dtype": "float32", "adapter": "lora", "adapter-rank": RANK, "adapter-alpha": ALPHA, "block-size": BLOCK,
        "batch-size": BATCH, "grad-accum-steps": 1, "max-steps": STEPS, "learning-rate": RATE, "min-lr": RATE / 10,
        "warmup-steps": 10, "log-interval": 1, "eval-interval": 0, "eval-batches": 1, "sample-tokens": 0,
    }  # fmt: skip
    return [*(word for name, value in flags.items() for word in (f"--{name}", str(value))), "--no-report"]


def ours(twin: str, folder: Path, out: Path) -> list[float]:
    """The trainer's own command, up to the last of the steps that are shown; gates, which others lack, are off."""
    from tests.twins import losses, train

    train(twin, *flags(folder, out), "--stop-at", str(SHOWN), "--health-gates", "off")
    return list(losses(out).values())


def by_peft(folder: Path, run: Path) -> list[float]:
    """A plain loop, as peft's documentation has it; batches, first values and rates are those of `run`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.nn import functional as F
    from transformers import AutoModelForCausalLM

    from convert.adapters.adapter import layers_of
    from gpt_common.adapting.placement import initial_adapters
    from gpt_common.data import open_dataset
    from gpt_common.data.batches import training_batch
    from gpt_common.network.parameters import parameter_shapes
    from gpt_common.training.checkpoint import find_checkpoint, read_manifest
    from gpt_common.training.schedule import learning_rate

    config = read_manifest(find_checkpoint(run, prefer="latest")).run_config
    network: Any = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)
    targets = [key.rpartition(".")[2] for key in KEYS]
    network = get_peft_model(network, LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules=targets)).train()
    places, names = dict(network.named_parameters()), layers_of(config.model)
    for name, value in initial_adapters(parameter_shapes(config.model), config.adapter, config.train.seed, lambda _: 0):  # type: ignore[arg-type,return-value]
        stem, _, part = name.rpartition(".")
        place = f"base_model.model.{names[stem]}.lora_{part[-1].upper()}.default.weight"
        places[place].data.copy_(torch.from_numpy(value))
    optim, trained = config.optim, [each for each in places.values() if each.requires_grad]
    betas = (optim.beta1, optim.beta2)
    optimizer = torch.optim.AdamW(trained, betas=betas, eps=optim.adam_eps, weight_decay=optim.weight_decay)
    rows, _ = open_dataset("chats", folder / "data").splits(BLOCK, packing=True)
    losses = []
    for step in range(SHOWN):
        batch = training_batch(rows, block_size=BLOCK, batch_size=BATCH, seed=config.train.seed, step=step)
        assert batch.weights is not None
        tokens, labels = (torch.from_numpy(each).long() for each in (batch.tokens, batch.labels))
        weights = torch.from_numpy(batch.weights)
        costs = F.cross_entropy(network(input_ids=tokens).logits.flatten(0, 1), labels.flatten(), reduction="none")
        loss = (costs * weights.flatten()).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, optim.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, optim, config.train.max_steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss))
    return losses


def by_mlx_lm(folder: Path, out: Path) -> list[float]:
    """Its own command."""
    from mlx_lm import lora

    out.mkdir()
    settings = {"lora_parameters": {"rank": RANK, "scale": ALPHA / RANK, "dropout": 0.0, "keys": KEYS}}
    (out / "settings.yaml").write_text(json.dumps(settings))  # JSON is YAML
    sys.argv = ["mlx_lm.lora", "--train", "--mask-prompt", "--config", str(out / "settings.yaml")]
    sys.argv += ["--model", str(folder / "hf"), "--data", str(folder / "chats"), "--adapter-path", str(out)]
    sys.argv += ["--iters", str(SHOWN), "--batch-size", str(BATCH), "--max-seq-length", str(BLOCK + 1)]
    sys.argv += ["--num-layers", "-1", "--learning-rate", str(RATE), "--val-batches", "1", "--optimizer", "adamw"]
    lora.main()
    return []


def main(side: str, folder: Path, measure: str) -> None:
    """Run one side."""
    from gpt_common.machine.blas import load_fast_blas

    load_fast_blas()  # before MLX is imported
    out = folder / f"{side}-{measure}"
    work: dict[str, Callable[[], list[float]]] = {
        "torch_gpt": lambda: ours("torch_gpt", folder, out),
        "mlx_gpt": lambda: ours("mlx_gpt", folder, out),
        "peft": lambda: by_peft(folder, folder / "torch_gpt-allocated"),
        "mlx_lm": lambda: by_mlx_lm(folder, out),
    }
    losses: list[float] = []
    if measure == "allocated" and SIDES[side] == "torch":
        from benchmarks.studies.memory import torch_peak

        allocated = torch_peak(lambda: losses.extend(work[side]()))
    else:
        losses = work[side]()
        allocated = import_module("mlx.core").get_peak_memory() if SIDES[side] == "mlx" else 0
    print("\n" + json.dumps({"losses": losses, "allocated": allocated, "resident": peak()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
