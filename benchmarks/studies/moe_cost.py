"""`python benchmarks/studies/moe_cost.py`: what experts cost, a step against a dense model of the same active size.

8 experts, of which every token is sent to 2, each half as wide as the dense feed-forward layer: a token meets the same
parameters, but for the router. What is more is the sorting, and the optimiser's work on four times the weights. Both
twins on this CPU, in float32.

A round starts the two models in processes of their own, and they take turns, A B B A; its ratio is the geometric mean
of the turns'. What is printed is the median of the rounds, their range, and a 95 % interval of their mean
(benchmarks/report/pairs.py).
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.report.pairs import MINIMUM_ROUNDS
from benchmarks.studies.turns import (
    Note,
    ratios_of,
    start_side,
    take_rounds,
    take_turns,
    twin_step,
    work_on_request,
)
from gpt_common.cli import parse
from gpt_common.config import ModelConfig, RunConfig, TrainConfig
from gpt_common.errors import UserError, WorkFailed, run_main
from gpt_common.network.flops import active_parameter_count, parameter_count

PROG = "python benchmarks/studies/moe_cost.py"
BAR = 1.6
"""At most so much longer may a step of the PyTorch twin take."""
EXPERTS, CHOSEN = 8, 2
TURNS = 2
Side = Literal["experts", "dense"]


@dataclass(frozen=True, kw_only=True)
class MoeCost:
    """Measure a training step with 8 experts top 2 against a dense one with as many active parameters."""

    twin: Literal["torch", "mlx"] | None = None
    """Measure this twin only."""
    n_layer: int = 4
    """Blocks of both models."""
    n_embd: int = 256
    """Width of both models, a multiple of 64; the dense feed-forward layer is 4 times as wide."""
    block_size: int = 128
    """Tokens per sequence."""
    batch_size: int = 12
    """Sequences per step."""
    rounds: int = MINIMUM_ROUNDS
    """Rounds per twin; each gives one ratio."""
    seconds: float = 3.0
    """Least time of one side's turn."""
    json: Path | None = None
    """Also write the figures here."""
    side: Side | None = None
    """For this program's own use: train this model as long as the standard input says."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UserError(f"rounds is {self.rounds}: it must be at least 1")
        if self.n_embd % 64 or self.n_embd < 64:
            raise UserError(f"n_embd is {self.n_embd}: it must be a multiple of 64, the width of a head")


def configuration(command: MoeCost, side: Side) -> RunConfig:
    """A Llama with a dense SwiGLU, or with experts of half its width."""
    width = 4 * command.n_embd
    kind: dict[str, Any] = {"feed_forward": "swiglu", "feed_forward_width": width}
    if side == "experts":
        kind = {"feed_forward": "moe", "n_expert": EXPERTS, "experts_per_token": CHOSEN, "balancing": "bias"}
        kind["expert_width"] = width // CHOSEN
    model = ModelConfig(
        vocab_size=65,
        block_size=command.block_size,
        n_layer=command.n_layer,
        n_head=command.n_embd // 64,
        n_embd=command.n_embd,
        attention="grouped_query",
        norm="rmsnorm",
        positions="rope",
        **kind,
    )
    return RunConfig(model=model, train=TrainConfig(batch_size=command.batch_size, device="cpu"))


def measure(command: MoeCost, twin: str) -> list[tuple[float, float]]:
    """Seconds per step with experts and without, one pair per round."""
    sizes = ("n_layer", "n_embd", "block_size", "batch_size")
    flags = [f"--{name.replace('_', '-')}={getattr(command, name)}" for name in sizes]

    def turns_of(sides: Sequence[str], note: Note) -> list[tuple[float, ...]]:
        return take_turns(sides, lambda side: start_side(__file__, side, twin, *flags), TURNS, command.seconds, note)

    seconds = take_rounds(("experts", "dense"), turns_of, command.rounds)
    return list(zip(seconds["experts"], seconds["dense"], strict=True))


def main(argv: Sequence[str]) -> None:
    """The command, or one model of it in a child process."""
    command = parse(MoeCost, argv, prog=PROG)
    if command.side is not None:
        work_on_request(twin_step(command.twin or "torch", configuration(command, command.side)))
        return
    experts, dense = configuration(command, "experts").model, configuration(command, "dense").model
    print(f"experts: {parameter_count(experts):,} parameters, {active_parameter_count(experts):,} active")
    print(f"dense:   {parameter_count(dense):,} parameters")
    print(f"{'experts / dense':16} {'median':>7} {'range':>14} {'95 % interval':>15}   median time of a step")
    results: dict[str, Any] = {}
    for twin in [command.twin] if command.twin else ["torch", "mlx"]:
        rounds = measure(command, twin)
        results[twin] = figures(rounds)
        print(row(f"{twin} cpu", results[twin]), flush=True)
    if command.json is not None:
        command.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    check(results)


def figures(rounds: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Ratio of each round, their median, range and interval, and both sides' median seconds per step."""
    with_experts, dense = zip(*rounds, strict=True)
    return {
        **ratios_of(with_experts, dense),
        "seconds": {"experts": statistics.median(with_experts), "dense": statistics.median(dense)},
    }


def row(name: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    spread = f"{min(found['ratios']):.2f} .. {max(found['ratios']):.2f}"
    interval = f"{found['interval'][0]:.2f} .. {found['interval'][1]:.2f}" if found["interval"] else "-"
    times = " / ".join(f"{1000 * found['seconds'][side]:.1f}" for side in ("experts", "dense"))
    return f"{name:16} {found['median']:7.2f} {spread:>14} {interval:>15}   {times} ms"


def check(results: dict[str, Any]) -> None:
    """Raises WorkFailed if experts cost the PyTorch twin more than they may."""
    median = results["torch"]["median"] if "torch" in results else -math.inf
    if median > BAR:
        raise WorkFailed(f"a step with experts takes {median:.2f} times as long in PyTorch: at most {BAR} is the aim")


if __name__ == "__main__":
    run_main(main)
