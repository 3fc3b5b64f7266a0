"""`python benchmarks/studies/batching.py`: what it saves to continue eight texts together, in both twins.

stories-cpu's model at its initial weights, greedy, on this CPU: eight prompts of eight lengths, 96 tokens each, past
the end of the block. One by one they are what `generate` makes, together what `sample --num-samples 8` and the server
make. Each side works in a process of its own, and they take turns, A B B A; what is printed is the median of the turns'
ratios and their range.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import repeat
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.studies.turns import cpu_work, start_side, take_turns, work_on_request
from gpt_common.cli import parse
from gpt_common.commands import SampleSettings
from gpt_common.config import ModelConfig, RunConfig, load_preset
from gpt_common.errors import UserError, run_main
from gpt_common.sampling import Continuation, continue_together

PROG = "python benchmarks/studies/batching.py"
TOKENS = 96
VOCABULARY = 69
"""stories' characters."""
Twin = Literal["torch", "mlx"]
Side = Literal["one by one", "together"]


@dataclass(frozen=True, kw_only=True)
class BatchingStudy:
    """Measure what it saves to continue several texts together."""

    twin: Twin | None = None
    """Measure this twin only."""
    texts: int = 8
    """That are continued together."""
    equal: bool = False
    """Texts of one length, which need no mask."""
    turns: int = 6
    """Turns per twin; each gives one ratio."""
    seconds: float = 2.0
    """Least time of one side's turn."""
    side: Side | None = None
    """For this program's own use: generate as long as the standard input says."""

    def __post_init__(self) -> None:
        for name in ("turns", "texts"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")


def generation(
    twin: Twin, config: ModelConfig, lengths: Sequence[int], tokens: int, side: Side
) -> Callable[[], list[list[int]]]:
    """A function that continues texts of these lengths by `tokens`; gives what is new."""
    model = cpu_work(twin, RunConfig(model=config)).model
    sample = import_module(f"{twin}_gpt.sample")
    prompts = [[(7 * i + j) % config.vocab_size for j in range(length)] for i, length in enumerate(lengths)]
    settings = SampleSettings(max_new_tokens=tokens, temperature=0)

    def one_by_one() -> list[list[int]]:
        return [list(sample.generate(model, prompt, settings, repeat(0.0))) for prompt in prompts]

    def together() -> list[list[int]]:
        found: list[list[int]] = [[] for _ in prompts]
        sequences = [Continuation(list(prompt), settings, repeat(0.0)) for prompt in prompts]
        for number, token in continue_together(
            sample.ContinuousBatch(model), sequences, len(lengths), lambda *_: False
        ):
            if token is not None:
                found[number].append(token)
        return found

    return together if side == "together" else one_by_one


def start(command: BatchingStudy, twin: str, side: str) -> subprocess.Popen[str]:
    """One side of the comparison."""
    return start_side(__file__, side, twin, "--texts", str(command.texts), *["--equal"] * command.equal)


def main(argv: Sequence[str]) -> None:
    """The command, or one side of it in a child process."""
    command = parse(BatchingStudy, argv, prog=PROG)
    if command.side is not None:
        model = load_preset("stories-cpu").with_vocabulary(VOCABULARY).model
        lengths = [5 if command.equal else 5 + 9 * i for i in range(command.texts)]
        work_on_request(generation(command.twin or "torch", model, lengths, TOKENS, command.side))
        return
    print(f"{'one by one / together':22} {'median':>7} {'range':>16}   tokens a second of each side")
    for twin in [command.twin] if command.twin else ["torch", "mlx"]:
        pairs = take_turns(("one by one", "together"), partial(start, command, twin), command.turns, command.seconds)
        ratios = [alone / together for alone, together in pairs]
        spread = f"{min(ratios):.2f} .. {max(ratios):.2f}"
        made = command.texts * TOKENS
        rates = " / ".join(f"{made / statistics.median(side):,.0f}" for side in zip(*pairs, strict=True))
        print(f"{twin + ' cpu':22} {statistics.median(ratios):7.2f} {spread:>16}   {rates}", flush=True)


if __name__ == "__main__":
    run_main(main)
