"""Figures that others published, to set ours beside. They are not ours: other software, other days, other care."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_common.config import ModelConfig, RunConfig
from gpt_common.machine.peaks import apple_peak
from gpt_common.network.flops import A100_BF16_PEAK, flops_per_token_palm, mfu

SHAKESPEARE_CHAR = ModelConfig(vocab_size=65, block_size=256, n_layer=6, n_head=6, n_embd=384, dropout=0.2)
"""Shape of nanoGPT's config/train_shakespeare_char.py."""
BATCH = 64


SOURCE = (
    "blog post 'State of PyTorch Metal support' (2025-09-02): nanoGPT, config/train_shakespeare_char.py, iterations 10 "
    "to 50 of its log, PyTorch nightly, MacBook Pro M3 Max 64 GB, macOS 15.6.1"
)
CHIP, GPU_CORES = "Apple M3 Max", 40


@dataclass(frozen=True)
class Published:
    """One published run."""

    label: str
    seconds_per_step: float
    on_gpu: bool = True

    @property
    def tokens_per_second(self) -> float:
        """Throughput."""
        return BATCH * SHAKESPEARE_CHAR.block_size / self.seconds_per_step

    @property
    def mfu_published(self) -> float | None:
        """Against the chip's published peak, by our formulas; None on its processor."""
        peak = apple_peak(CHIP, GPU_CORES, "float32") if self.on_gpu else None
        return mfu(self._rate, peak.flops if peak else None)

    @property
    def mfu_a100(self) -> float:
        """Against an A100's, as nanoGPT logs it."""
        return self._rate / A100_BF16_PEAK

    @property
    def _rate(self) -> float:
        return self.tokens_per_second * flops_per_token_palm(SHAKESPEARE_CHAR)


RUNS = (
    Published("nanoGPT on MPS", 0.221),
    Published("nanoGPT on MPS, compiled", 0.306),
    Published("nanoGPT on the CPU", 1.986, on_gpu=False),
)


def same_work(config: RunConfig) -> bool:
    """Whether a case measured the work of these runs."""
    model, train = config.model, config.train
    shape = ("block_size", "n_layer", "n_head", "n_embd", "vocab_size")
    sequences = train.batch_size * train.grad_accum_steps
    return sequences == BATCH and all(getattr(model, key) == getattr(SHAKESPEARE_CHAR, key) for key in shape)
