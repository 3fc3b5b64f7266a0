"""`python -m torch_gpt.evaluate`: judge a trained model by texts, tasks, questions and probes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpt_common.cli import answer_early
from gpt_common.errors import run_main
from gpt_common.judging.command import evaluate, parse_evaluation
from gpt_common.machine.blas import wait_passively

if __name__ == "__main__":
    answer_early(lambda argv: parse_evaluation(argv, prog="python -m torch_gpt.evaluate"))
    wait_passively()  # before PyTorch is imported

import numpy as np
import torch

from gpt_common.config import TrainConfig
from gpt_common.data.batches import NumpyBatch, Tokens
from gpt_common.judging.scoring import LOGITS_ON_CPU, LOGITS_ON_GPU
from gpt_common.sampling import Batch
from gpt_common.training.source import Source
from torch_gpt.checkpoint import build_model
from torch_gpt.device import compute_dtype, select_device, tensor
from torch_gpt.kernels import cross_entropy
from torch_gpt.model import GPT
from torch_gpt.probe import TrainingProbe
from torch_gpt.sample import ContinuousBatch


class Scorer:
    """A model as gpt_common/judging asks it: without dropout, over its whole vocabulary.

    Args:
        known: entries of the tokenizer, where the model's vocabulary is padded beyond it; for the text that it writes.
    """

    def __init__(self, model: GPT, known: int | None = None) -> None:
        self.model, self.probe = model, TrainingProbe(model)
        self.block_size = model.config.block_size
        self.vocab_size = model.config.vocab_size
        self.logits_at_once = LOGITS_ON_CPU if model.device.type == "cpu" else LOGITS_ON_GPU
        self.batch: Batch = ContinuousBatch(model, known)

    def losses(self, batches: Iterable[NumpyBatch]) -> list[float]:
        """Mean loss of each batch, nats per token."""
        return self.probe.losses(batches)

    def logits(self, tokens: Tokens) -> np.ndarray:
        """(B, T) ids -> (B, T, V) float32."""
        return self.probe.logits(tokens)

    @torch.no_grad()
    def scores(
        self, tokens: Tokens, labels: Tokens, shared: Sequence[int] = (), *, likeliest: bool = True
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """What each label costs, (B, T) nats, and whether it is the likeliest token.

        Args:
            shared: tokens that stand before every row: gone through once, and cached.
            likeliest: whether that is asked: it takes longer than the nats.
        """
        caches = None
        if shared:
            caches = self.model.new_caches()
            self.model(tensor(np.array([shared]), self.model.device), caches=caches)
            for cache in caches:
                cache.repeat(len(tokens))
        logits_BTV = self.model(tensor(tokens, self.model.device), caches=caches)
        labels_BT = tensor(labels, self.model.device)
        nats_BT = cross_entropy(logits_BTV, labels_BT)
        if not likeliest:
            return nats_BT.cpu().numpy(), None
        return nats_BT.cpu().numpy(), (torch.argmax(logits_BTV, dim=-1) == labels_BT).cpu().numpy()


def main(argv: Sequence[str]) -> None:
    """The command."""
    path, command = parse_evaluation(argv, prog="python -m torch_gpt.evaluate")

    def open_model(source: Source) -> Scorer:
        device = select_device(command.device)
        dtype = compute_dtype(TrainConfig(dtype=command.dtype), device)
        model = build_model(source.checkpoint, source.model, dtype).to(device)
        return Scorer(model, source.tokenizer.vocab_size)

    evaluate(path, command, open_model)


if __name__ == "__main__":
    run_main(main)
