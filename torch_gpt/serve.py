"""`python -m torch_gpt.serve`: answer over HTTP as OpenAI's API does, with a page to look at models."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_common.cli import answer_early
from gpt_common.errors import run_main
from gpt_common.machine.blas import wait_passively
from gpt_common.serving.command import parse_serving

if __name__ == "__main__":
    answer_early(lambda argv: parse_serving(argv, prog="python -m torch_gpt.serve"))
    wait_passively()  # before PyTorch is imported

from gpt_common.config import TrainConfig
from gpt_common.serving.running import serve
from gpt_common.training.source import Source
from torch_gpt.checkpoint import build_model
from torch_gpt.device import compute_dtype, select_device
from torch_gpt.sample import ContinuousBatch


def main(argv: Sequence[str]) -> None:
    """The command."""
    paths, command = parse_serving(argv, prog="python -m torch_gpt.serve")

    def open_model(source: Source) -> ContinuousBatch:
        device = select_device(command.device)
        dtype = compute_dtype(TrainConfig(dtype=command.dtype), device)
        model = build_model(source.checkpoint, source.model, dtype).to(device)
        return ContinuousBatch(model, source.tokenizer.vocab_size)

    serve(paths, command, open_model, twin="PyTorch")


if __name__ == "__main__":
    run_main(main)
