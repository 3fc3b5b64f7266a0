"""`python benchmarks/studies/cache.py`: what the key-value cache saves, 256 tokens with it and without, in both twins.

shakespeare-char's model at its initial weights, greedy, on this CPU. Each side works in a process of its own, and they
take turns, A B B A; what is printed is the median of the turns' ratios and their range.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.studies.turns import cpu_work, start_side, take_turns, work_on_request
from gpt_common.cli import parse
from gpt_common.commands import SampleSettings
from gpt_common.config import ModelConfig, RunConfig, load_preset
from gpt_common.errors import UserError, run_main
from gpt_common.sampling import choose

PROG = "python benchmarks/studies/cache.py"
TOKENS = 256
Twin = Literal["torch", "mlx"]


@dataclass(frozen=True, kw_only=True)
class CacheStudy:
    """Measure what the key-value cache saves when 256 tokens are generated."""

    twin: Twin | None = None
    """Measure this twin only."""
    turns: int = 6
    """Turns per twin; each gives one ratio."""
    seconds: float = 2.0
    """Least time of one side's turn."""
    side: Literal["cache", "no cache"] | None = None
    """For this program's own use: generate as long as the standard input says."""

    def __post_init__(self) -> None:
        if self.turns < 1:
            raise UserError(f"turns is {self.turns}: it must be at least 1")


def generation(twin: Twin, config: ModelConfig, tokens: int, *, cached: bool) -> Callable[[], list[int]]:
    """A function that generates tokens after one, with the cache or with a whole pass for each; gives them all."""
    work = cpu_work(twin, RunConfig(model=config))

    def with_cache() -> list[int]:
        return [0, *work.generate([0], tokens)]

    def without_cache() -> list[int]:
        context, settings = [0], SampleSettings(temperature=0)
        for _ in range(tokens):
            context.append(choose(last_logits(twin, work.model, context[-config.block_size :]), settings, 0.0))
        return context

    return with_cache if cached else without_cache


def last_logits(twin: Twin, model: Any, context: list[int]) -> Any:
    """Logits after a context, by a pass over all of it."""
    import numpy as np

    if twin == "mlx":
        import mlx.core as mx

        return np.array(model(mx.array([context]))[0, -1])
    import torch

    with torch.inference_mode():
        return model(torch.tensor([context]))[0, -1].numpy()


def main(argv: Sequence[str]) -> None:
    """The command, or one side of it in a child process."""
    command = parse(CacheStudy, argv, prog=PROG)
    if command.side is not None:
        model = load_preset("shakespeare-char").with_vocabulary(65).model
        work_on_request(generation(command.twin or "torch", model, TOKENS, cached=command.side == "cache"))
        return
    print(f"{'without cache / with':22} {'median':>7} {'range':>16}   median time of each side")
    for twin in [command.twin] if command.twin else ["torch", "mlx"]:
        start = partial(start_side, __file__, twin=twin)
        pairs = take_turns(("no cache", "cache"), start, command.turns, command.seconds)
        ratios = [without / cached for without, cached in pairs]
        spread = f"{min(ratios):.2f} .. {max(ratios):.2f}"
        times = " / ".join(f"{1000 * statistics.median(side):.1f}" for side in zip(*pairs, strict=True))
        print(f"{twin + ' cpu':22} {statistics.median(ratios):7.2f} {spread:>16}   {times} ms", flush=True)


if __name__ == "__main__":
    run_main(main)
