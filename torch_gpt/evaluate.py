"""`python -m torch_gpt.evaluate`: put questions to a trained model, and count the answers that are right."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_common.cli import answer_early
from gpt_common.errors import run_main
from gpt_common.machine.blas import wait_passively
from gpt_common.training.judged import open_judged, parse_evaluation, print_judged

if __name__ == "__main__":
    answer_early(lambda argv: parse_evaluation(argv, prog="python -m torch_gpt.evaluate"))
    wait_passively()  # before PyTorch is imported

from gpt_common.config import TrainConfig
from torch_gpt.checkpoint import build_model
from torch_gpt.device import compute_dtype, select_device
from torch_gpt.probe import TrainingProbe
from torch_gpt.sample import ContinuousBatch


def main(argv: Sequence[str]) -> None:
    """The command."""
    path, command = parse_evaluation(argv, prog="python -m torch_gpt.evaluate")
    judged = open_judged(path, command)
    device = select_device(command.device)
    dtype = compute_dtype(TrainConfig(dtype=command.dtype), device)
    model = build_model(judged.source.checkpoint, judged.source.model, dtype).to(device)
    print_judged(
        judged, command, ContinuousBatch(model, judged.source.tokenizer.vocab_size), TrainingProbe(model).losses
    )


if __name__ == "__main__":
    run_main(main)
