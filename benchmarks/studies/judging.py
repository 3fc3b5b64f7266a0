"""`python benchmarks/studies/judging.py --run RUN --text FILE`: the loss of a text, here and in lm-eval's `hf` model.

Same weights, same windows (side by side, as lm-eval rolls), same machine; RUN is of GPT-2's or Llama's family with a
byte-level tokenizer, and is exported to transformers for lm-eval. Time is from the text in a file to its figure, of a
model that is loaded. All work in one process and take turns; what is printed is the median of the turns' ratios and
their range, and by how much the two losses differ.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from gpt_common.cli import parse
from gpt_common.errors import UserError, run_main
from gpt_common.judging.texts import Kept, loss_of, read_texts
from gpt_common.training.source import open_source

PROG = "python benchmarks/studies/judging.py"


@dataclass(frozen=True, kw_only=True)
class JudgingStudy:
    """Time the loss of a text here and in lm-eval, in turns."""

    run: Path
    """A run of GPT-2's or Llama's family."""
    text: Path
    """A text, one document."""
    batch_size: tuple[int, ...] = (1, 16)
    """Of lm-eval, each a side of its own; it takes 1 if nothing is said."""
    turns: int = 3
    """Turns of each side, after one that does not count."""

    def __post_init__(self) -> None:
        if self.turns < 1:
            raise UserError(f"turns is {self.turns}: it must be at least 1")


def ours(run: Path, text: Path) -> Callable[[], float]:
    """A function that gives the loss of the text in nats, by the PyTorch twin."""
    import torch

    source = open_source(run, latest=True)
    model = import_module("torch_gpt.checkpoint").build_model(source.checkpoint, source.model, torch.float32)
    scorer = import_module("torch_gpt.evaluate").Scorer(model, source.tokenizer.vocab_size)

    def judge() -> float:
        sources, tokenizer = read_texts([text], source.tokenizer, None), source.tokenizer
        block = scorer.block_size
        return loss_of(scorer, sources, tokenizer, separator=None, stride=block, kept=Kept(None, ""))[0].nats

    return judge


def theirs(run: Path, text: Path, folder: Path, batch_size: int) -> Callable[[], float]:
    """The same by lm-eval."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    block = open_source(run, latest=True).model.block_size
    model: Any = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=batch_size, max_length=block)

    def judge() -> float:
        asked = Instance("loglikelihood_rolling", {}, (text.read_text(encoding="utf-8"),), 0)
        return -float(model.loglikelihood_rolling([asked], disable_tqdm=True)[0])

    return judge


def main(argv: list[str]) -> None:
    """The command."""
    study = parse(JudgingStudy, argv, prog=PROG)
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "exported"
        import_module("convert.__main__").main(["export", str(study.run), "--to", "transformers", "-o", str(exported)])
        sides = {"here": ours(study.run, study.text)}
        for size in study.batch_size:
            sides[f"hf, batch {size}"] = theirs(study.run, study.text, exported, size)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        nats: dict[str, float] = {}
        for turn in range(study.turns + 1):
            for name, judge in sides.items():
                begin = time.perf_counter()
                nats[name] = judge()
                if turn:
                    seconds[name].append(time.perf_counter() - begin)
    for name, found in seconds.items():
        ratios = [one / here for one, here in zip(found, seconds["here"], strict=True)]
        print(
            f"{name:<14} {statistics.median(found):7.2f} s  {statistics.median(ratios):5.2f} times "
            f"({min(ratios):.2f} .. {max(ratios):.2f})  {nats[name]:.4f} nats, {nats[name] / nats['here'] - 1:+.1e}"
        )


if __name__ == "__main__":
    run_main(lambda argv: main(list(argv)))
