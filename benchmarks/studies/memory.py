"""`python benchmarks/studies/memory.py`: the memory that is planned for a step beside the memory that it takes.

Both twins on this CPU, by their trainers' own steps, each in a process of its own. Measured is the peak of what the
framework's allocator has handed out: on MLX its own figure; PyTorch keeps none on a CPU, so every allocation and
release that its profiler reports is added up. The process needs some hundred megabytes more, for code and libraries.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from benchmarks.measuring.work import Batcher, run_steps
from benchmarks.studies.turns import cpu_work
from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.adapting.quantisation import NOT_QUANTISED, Grid, Grids, quantisable
from gpt_common.cli import parse
from gpt_common.config import ModelConfig, OptimConfig, RunConfig, TrainConfig, from_dict, to_dict
from gpt_common.errors import WorkFailed, run_main
from gpt_common.machine.blas import load_fast_blas
from gpt_common.network.memory import Twin, memory_plan
from gpt_common.network.parameters import parameter_shapes

PROG = "python benchmarks/studies/memory.py"
STEPS = 2
"""The first step makes what the second one keeps."""
BAR = 0.15
"""How far the plan may be off."""
TRAIN_FIELDS = ("dtype", "grad_accum_steps", "gradient_checkpointing")


def _config(V: int, T: int, L: int, H: int, D: int, B: int, **changes: Any) -> RunConfig:
    train = {name: changes.pop(name) for name in TRAIN_FIELDS if name in changes}
    optim = OptimConfig(optimizer=changes.pop("optimizer", "adamw"))
    adapter = AdapterConfig(**{name: changes.pop(name) for name in list(changes) if name.startswith("adapter")})
    model = ModelConfig(vocab_size=V, block_size=T, n_layer=L, n_head=H, n_embd=D, **changes)
    return RunConfig(model=model, optim=optim, adapter=adapter, train=TrainConfig(batch_size=B, **train))


LLAMA: dict[str, Any] = {
    "attention": "grouped_query", "n_kv_head": 2, "norm": "rmsnorm", "positions": "rope", "feed_forward": "swiglu",
}  # fmt: skip
DEEPSEEK: dict[str, Any] = {
    "attention": "latent", "q_latent": 96, "kv_latent": 64, "nope_size": 32, "rope_size": 16, "value_size": 32,
    "norm": "rmsnorm", "positions": "rope", "rope_layout": "interleaved", "feed_forward": "moe", "n_dense_layer": 1,
    "n_expert": 8, "n_shared_expert": 1, "experts_per_token": 2, "expert_width": 128, "n_expert_group": 4,
    "groups_per_token": 2, "router": "sigmoid", "balancing": "bias", "tied_head": False,
}  # fmt: skip
CUSTOM: dict[str, Any] = {
    "attention": "latent_per_head", "q_latent": 64, "kv_latent": 64, "nope_size": 16, "rope_size": 16, "value_size": 32,
    "norm": "rmsnorm", "final_norm": False, "positions": "both", "feed_forward": "moe", "n_expert": 7,
    "n_shared_expert": 1, "experts_per_token": 2, "expert_width": 160, "balancing": "bias", "tied_head": False,
    "head_bias": True,
}  # fmt: skip
"""The families' presets in small, apart from their sizes."""

CONFIGURATIONS = {
    "shakespeare-char-cpu": _config(65, 64, 4, 4, 128, 12),
    "long context": _config(65, 512, 2, 8, 64, 2),
    "deep": _config(65, 64, 12, 2, 64, 16),
    "wide": _config(65, 128, 3, 6, 384, 2),
    "vocabulary": _config(5000, 64, 2, 4, 128, 8),
    "vocabulary, one sequence": _config(20000, 64, 2, 4, 128, 1),
    "weights only": _config(65, 64, 6, 8, 384, 1),
    "biases and tanh": _config(500, 64, 4, 4, 192, 8, bias=True, feed_forward="gelu_tanh"),
    "untied head": _config(1000, 128, 4, 4, 128, 4, tied_head=False),
    "dropout": _config(65, 128, 4, 4, 128, 8, dropout=0.2),
    "bfloat16": _config(500, 128, 4, 4, 192, 4, dtype="bfloat16"),
    "three micro-steps": _config(500, 64, 4, 4, 192, 4, grad_accum_steps=3),
    "checkpointing": _config(500, 128, 8, 4, 192, 4, gradient_checkpointing=True),
    "checkpointing, dropout": _config(65, 128, 6, 4, 128, 8, gradient_checkpointing=True, dropout=0.1),
    "llama": _config(500, 128, 4, 4, 128, 8, **LLAMA),
    "llama, bfloat16": _config(500, 128, 4, 4, 192, 4, **LLAMA, dtype="bfloat16"),
    "llama, q/k norms": _config(500, 64, 4, 8, 192, 8, **LLAMA, qk_norm=True),
    "llama, Muon": _config(500, 64, 4, 4, 192, 2, **LLAMA, optimizer="muon"),
    "smollm": _config(2000, 128, 6, 9, 144, 4, **{**LLAMA, "n_kv_head": 3}),
    "smollm, checkpointing": _config(500, 256, 8, 9, 144, 2, **{**LLAMA, "n_kv_head": 3}, gradient_checkpointing=True),
    "deepseek": _config(500, 128, 4, 4, 128, 8, **DEEPSEEK),
    "deepseek, bfloat16": _config(500, 128, 4, 4, 128, 4, **DEEPSEEK, dtype="bfloat16"),
    "deepseek, 16 experts": _config(500, 64, 3, 4, 128, 8, **{**DEEPSEEK, "n_expert": 16, "experts_per_token": 4}),
    "customllm": _config(500, 128, 4, 4, 128, 8, **CUSTOM),
    "customllm, many experts": _config(500, 64, 4, 4, 128, 1, **{**CUSTOM, "n_expert": 16}),
    "customllm, dropout": _config(500, 128, 4, 4, 128, 8, **CUSTOM, dropout=0.1),
    "customllm as 1b": _config(
        2000, 256, 4, 4, 192, 1, **CUSTOM, dropout=0.1, dtype="bfloat16", gradient_checkpointing=True
    ),
    "LoRA": _config(500, 64, 4, 4, 192, 8, bias=True, feed_forward="gelu_tanh", adapter="lora"),
    "LoRA, dropout": _config(500, 64, 4, 4, 192, 8, adapter="lora", adapter_dropout=0.1),
    "LoRA, one matrix": _config(500, 64, 4, 4, 192, 8, adapter="lora", adapter_targets=("qkv_proj",)),
    "LoRA, rank 64": _config(500, 64, 4, 4, 192, 4, adapter="lora", adapter_rank=64),
    "LoRA, head trained whole": _config(
        4000, 64, 4, 4, 128, 4, tied_head=False, adapter="lora", adapter_whole=("token_embedding", "head")
    ),
    "LoRA, two micro-steps": _config(500, 64, 4, 4, 192, 4, adapter="lora", adapter_rank=64, grad_accum_steps=2),
    "LoRA, checkpointing": _config(500, 128, 8, 4, 192, 4, adapter="lora", gradient_checkpointing=True),
    "LoRA, base in bfloat16": _config(
        500, 64, 4, 4, 192, 4, **LLAMA, adapter="lora", adapter_base_dtype="bfloat16", dtype="bfloat16"
    ),
    "DoRA": _config(500, 64, 4, 4, 192, 8, adapter="dora"),
    "llama, LoRA": _config(500, 128, 4, 4, 128, 8, **LLAMA, adapter="lora"),
    "llama, LoRA, q and v": _config(
        500, 128, 4, 4, 128, 8, **LLAMA, adapter="lora", adapter_targets=("q_proj", "v_proj")
    ),
    "llama, LoRA, last layers": _config(500, 128, 6, 4, 128, 8, **LLAMA, adapter="lora", adapter_layers=2),
    "llama, DoRA": _config(500, 128, 4, 4, 128, 8, **LLAMA, adapter="dora"),
    "smollm, LoRA": _config(8000, 128, 6, 9, 144, 2, **{**LLAMA, "n_kv_head": 3}, adapter="lora"),
    "deepseek, LoRA": _config(500, 128, 4, 4, 128, 8, **DEEPSEEK, adapter="lora"),
}
"""One factor after another, small enough for a laptop: at most 150 MB."""
QUANTISED = {
    "QLoRA, 4 bits": (_config(2000, 64, 4, 4, 192, 8, adapter="lora"), 4),
    "QLoRA, 8 bits, llama": (_config(500, 64, 6, 4, 256, 4, **LLAMA, adapter="lora", tied_head=False), 8),
    "QLoRA, weights only": (_config(500, 32, 8, 8, 512, 1, adapter="lora"), 4),
    "QLoRA, DoRA, 3 bits": (_config(500, 64, 4, 4, 192, 8, adapter="dora"), 3),
    "QLoRA, deepseek": (_config(500, 64, 4, 4, 128, 8, **DEEPSEEK, adapter="lora"), 4),
}
"""Adapters beside a base whose matrices are quantised, all of them that can be: configuration and bits."""
GROUP = 32


def grids_of(config: RunConfig, bits: int) -> Grids:
    """All matrices in so many bits."""
    shapes = parameter_shapes(config.model)
    return {name: Grid(bits, GROUP) for name in quantisable(shapes) if shapes[f"{name}.weight"][-1] % GROUP == 0}


CASES = {name: (config, NOT_QUANTISED) for name, config in CONFIGURATIONS.items()} | {
    name: (config, grids_of(config, bits)) for name, (config, bits) in QUANTISED.items()
}
"""All of them, with the quantised matrices of each."""


@dataclass(frozen=True, kw_only=True)
class MemoryCheck:
    """Lay the planned memory of a training step beside the measured one, for both twins on this CPU."""

    twin: Twin | None = None
    """Check this twin only."""
    worker: bool = False
    """For this program's own use: measure configurations from the standard input, print bytes."""


def measured_peaks(cases: Iterable[tuple[RunConfig, Grids]], twin: Twin) -> list[int]:
    """Bytes at the peak of a step of each case, measured in one fresh process on one thread.

    Raises:
        WorkFailed: the process ended with an error.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--worker", "--twin", twin],
        input="\n".join(
            json.dumps([to_dict(config), {n: [g.bits, g.group_size] for n, g in grids.items()}])
            for config, grids in cases
        ),
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        raise WorkFailed(f"measuring {twin} failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return [int(line) for line in done.stdout.split()]


def torch_peak(work: Callable[[], object]) -> int:
    """Bytes that PyTorch's allocator for the CPU has handed out at the peak of some work, beyond those before it."""
    from torch.profiler import ProfilerActivity, profile

    # A model before this one may still be there, in a cycle of references: its end must not count as ours.
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return int(np.cumsum([change for _, change in changes]).max())


def _measure_torch(config: RunConfig, grids: Grids) -> int:
    import torch

    from torch_gpt import kernels

    # The plan is for the products that every machine has. Where a processor has oneDNN's (kernels.py), the two
    # gradients of a tied embedding are added up in place, and a step takes one table less: never more.
    kernels.ONEDNN = False
    torch.set_num_threads(1)
    if grids:  # the model is built in float, in memory that nobody touches, and takes its words then
        work: Any = cpu_work("torch", config, grids)
        held: int = sum(tensor.nbytes for tensor in (*work.model.parameters(), *work.model.buffers()))
        return held + torch_peak(lambda: run_steps(work, config, Batcher(config).take(STEPS)))
    return torch_peak(lambda: run_steps(cpu_work("torch", config, grids), config, Batcher(config).take(STEPS)))


def _measure_mlx(config: RunConfig, grids: Grids) -> int:
    load_fast_blas()  # before MLX is imported

    gc.collect()
    import mlx.core as mx

    before = mx.get_active_memory()
    work = cpu_work("mlx", config, grids)
    work.wait()
    mx.reset_peak_memory()
    run_steps(work, config, Batcher(config).take(STEPS))
    return mx.get_peak_memory() - before


def main(argv: Sequence[str]) -> None:
    """The command."""
    command = parse(MemoryCheck, argv, prog=PROG)
    if command.worker:
        measure = _measure_mlx if command.twin == "mlx" else _measure_torch
        for line in sys.stdin.read().splitlines():
            said, grids = json.loads(line)
            print(measure(from_dict(said), {name: Grid(*grid) for name, grid in grids.items()}), flush=True)
        return
    worst = 0.0
    for twin in [command.twin] if command.twin else get_args(Twin):
        print(f"{twin:<26} {'planned':>9} {'measured':>9}  ratio  at")
        peaks = measured_peaks(CASES.values(), twin)
        for (name, (config, grids)), peak in zip(CASES.items(), peaks, strict=True):
            plan = memory_plan(config, twin, grids=grids)
            worst = max(worst, abs(plan.total / peak - 1))
            sizes = f"{plan.total / 1e6:7.1f}MB {peak / 1e6:7.1f}MB"
            print(f"  {name:<24} {sizes}  {plan.total / peak:5.3f}  {plan.moment}")
    print(f"largest error {worst:.1%}")
    if worst > BAR:
        raise WorkFailed(f"the plan is off by more than {BAR:.0%}")


if __name__ == "__main__":
    run_main(main)
