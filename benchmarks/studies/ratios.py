"""`python benchmarks/studies/ratios.py`: three ratios that a user may rely on, against what they would otherwise have.

1. A training step of our PyTorch twin against transformers' GPT-2 of the same size: same work, same weights' shapes.
2. A training step of the MLX twin on a Linux CPU, with MLX's own BLAS against a fast one.
3. Generating 256 tokens with and without the key-value cache, in both twins.

Each side works in a process of its own; the two take turns, A B B A, and a ratio is taken within each turn, so that a
machine that slows down slows both. What is printed is the median of the ratios and their range.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from gpt_common.cli import parse
from gpt_common.errors import WorkFailed, run_main

SIDES = {
    "torch step / transformers step": ("torch_step", "transformers_step"),
    "MLX step, own BLAS / fast BLAS": ("mlx_step_own_blas", "mlx_step"),
    "torch 256 tokens, no cache / cache": ("torch_no_cache", "torch_cache"),
    "MLX 256 tokens, no cache / cache": ("mlx_no_cache", "mlx_cache"),
}


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """Measure three ratios: ours against transformers, a fast BLAS against MLX's own, a cache against none."""

    preset: str = "shakespeare-char-cpu"
    """Shape of the training steps."""
    turns: int = 6
    """Turns per ratio; each gives one ratio."""
    seconds: float = 2.0
    """Least time of one side's turn."""
    json: Path | None = None
    """Also write the figures here."""


def main(argv: Sequence[str]) -> None:
    """The command, or one side of it in a child process."""
    if argv[:1] == ["--side"]:
        serve(argv[1], argv[2])
        return
    command = parse(Ratios, argv, prog="python benchmarks/studies/ratios.py")
    results = {}
    print(f"{'ratio':38} {'median':>7} {'range':>15}   median time of each side")
    for name, (left, right) in SIDES.items():
        pairs = take_turns((left, right), partial(start, preset=command.preset), command.turns, command.seconds)
        ratios = [a / b for a, b in pairs]
        results[name] = {"ratios": ratios, "seconds": pairs}
        middle = [1000 * statistics.median(side) for side in zip(*pairs, strict=True)]
        spread = f"{min(ratios):.2f} .. {max(ratios):.2f}"
        print(
            f"{name:38} {statistics.median(ratios):7.2f} {spread:>15}   {middle[0]:.1f} / {middle[1]:.1f} ms",
            flush=True,
        )
    if command.json is not None:
        command.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def take_turns(
    names: tuple[str, str], start: Callable[[str], subprocess.Popen[str]], turns: int, seconds: float
) -> list[tuple[float, float]]:
    """Seconds per unit of work of both sides, for each turn.

    Args:
        names: the sides; `start` brings one up in a process of its own, which answers as `work_on_request` does.
        turns: how many, each in the other order than the one before.
        seconds: least time of one side's turn.
    """
    sides = {name: start(name) for name in names}
    try:
        for side in sides.values():
            ask(side, seconds)  # warm
        pairs = []
        for turn in range(turns):
            times = {name: ask(sides[name], seconds) for name in (names if turn % 2 == 0 else names[::-1])}
            pairs.append((times[names[0]], times[names[1]]))
        return pairs
    finally:
        for side in sides.values():
            side.kill()
            side.communicate()


def start(name: str, preset: str) -> subprocess.Popen[str]:
    """One side in a process of its own."""
    environment = {**os.environ, "MLX_GPT_BLAS": "off"} if name == "mlx_step_own_blas" else dict(os.environ)
    return subprocess.Popen(
        [sys.executable, __file__, "--side", name, preset],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def ask(side: subprocess.Popen[str], seconds: float) -> float:
    """Let a side work for a while; returns its seconds per unit of work."""
    assert side.stdin is not None
    assert side.stdout is not None
    side.stdin.write(f"{seconds}\n")
    side.stdin.flush()
    answer = side.stdout.readline()
    if not answer:
        raise WorkFailed("one side of the comparison ended early: its error stands above")
    return float(answer)


def serve(name: str, preset: str) -> None:
    """A child: does its work for as long as each line of standard input says, and answers with seconds per unit."""
    work = {
        "torch_step": lambda: twin_step("torch", settled(preset)),
        "mlx_step": lambda: twin_step("mlx", settled(preset)),
        "mlx_step_own_blas": lambda: twin_step("mlx", settled(preset)),
        "transformers_step": lambda: transformers_step(preset),
        "torch_cache": lambda: generation("torch", cached=True),
        "torch_no_cache": lambda: generation("torch", cached=False),
        "mlx_cache": lambda: generation("mlx", cached=True),
        "mlx_no_cache": lambda: generation("mlx", cached=False),
    }[name]()
    work_on_request(work)


def work_on_request(work: Callable[[], object]) -> None:
    """Work for as long as each line of the standard input says, in seconds, and answer with seconds per unit."""
    for line in sys.stdin:
        units, began = 0, time.perf_counter()
        while time.perf_counter() - began < float(line):
            work()
            units += 1
        print((time.perf_counter() - began) / units, flush=True)


def settled(preset: str) -> Any:
    """A preset with a vocabulary, biases (transformers' GPT-2 has no other form) and no dropout."""
    from gpt_common.config import from_dict, load_preset

    model = {"vocab_size": 65, "bias": True, "dropout": 0.0}
    return from_dict({"model": model, "train": {"device": "cpu"}}, base=load_preset(preset))


def batch_of(config: Any) -> Any:
    """One random batch."""
    import numpy as np

    from gpt_common.data.batches import training_batch

    tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, 100_000)
    return training_batch(
        tokens, block_size=config.model.block_size, batch_size=config.train.batch_size, seed=0, step=0
    )


def twin_step(twin: str, config: Any) -> Callable[[], None]:
    """A training step of one twin on the CPU, waited for."""
    from importlib import import_module

    part = {name: import_module(f"{twin}_gpt.{name}") for name in ("device", "model", "optim", "train")}
    device = part["device"].select_device("cpu")
    model = part["model"].GPT(config.model)
    model.initialise(0)
    optimizer = part["optim"].build_optimizer(model, config.optim)
    step = part["train"].TrainStep(model, optimizer, config, False)
    batch, number = batch_of(config), iter(range(1 << 62))

    def work() -> None:
        step([batch], next(number), 1e-3)
        part["device"].synchronise(device)

    return work


def transformers_step(preset: str) -> Callable[[], None]:
    """The same step with transformers' GPT-2 and PyTorch's AdamW, as a user would write it."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = settled(preset)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.model.vocab_size,
            n_positions=config.model.block_size,
            n_embd=config.model.n_embd,
            n_layer=config.model.n_layer,
            n_head=config.model.n_head,
            activation_function="gelu",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
    batch = batch_of(config)

    def work() -> None:
        tokens, labels = (torch.from_numpy(ids).long() for ids in batch)
        logits = model(tokens).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return work


def generation(twin: str, *, cached: bool) -> Callable[[], None]:
    """256 greedy tokens from one, at block 256 with shakespeare-char's model, with or without the cache."""
    from importlib import import_module
    from itertools import repeat

    import numpy as np

    from gpt_common.commands import SampleSettings
    from gpt_common.sampling import choose

    config = settled("shakespeare-char")
    part = {name: import_module(f"{twin}_gpt.{name}") for name in ("device", "model", "sample")}
    part["device"].select_device("cpu")
    model = part["model"].GPT(config.model)
    model.initialise(0)
    settings = SampleSettings(max_new_tokens=256, temperature=0)

    def last_logits(context: list[int]) -> Any:
        if twin == "mlx":
            import mlx.core as mx

            return np.array(model(mx.array([context]))[0, -1])
        import torch

        with torch.inference_mode():
            return model(torch.tensor([context]))[0, -1].numpy()

    def without_cache() -> None:
        context = [0]
        for _ in range(256):
            context.append(choose(last_logits(context[-256:]), settings, 0.0))

    def with_cache() -> None:
        list(part["sample"].generate(model, [0], settings, repeat(0.0)))

    return with_cache if cached else without_cache


if __name__ == "__main__":
    run_main(main)
