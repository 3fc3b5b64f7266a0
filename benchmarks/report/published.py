"""Figures that others published, to set ours beside. They are not ours: other software, other days, other care."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_common.config import ModelConfig, RunConfig
from gpt_common.machine.peaks import apple_peak
from gpt_common.network.flops import A100_BF16_PEAK, flops_per_token_palm, mfu

SHAKESPEARE_CHAR = ModelConfig(vocab_size=65, block_size=256, n_layer=6, n_head=6, n_embd=384, dropout=0.2)
"""Shape of nanoGPT's config/train_shakespeare_char.py."""
BATCH = 64


@dataclass(frozen=True)
class Published:
    """One published run."""

    label: str
    seconds_per_step: float
    chip: str
    gpu_cores: int | None
    """For the chip's peak; None for a run on the processor."""
    source: str

    @property
    def tokens_per_second(self) -> float:
        """Throughput."""
        return BATCH * SHAKESPEARE_CHAR.block_size / self.seconds_per_step

    @property
    def mfu_published(self) -> float | None:
        """Against the chip's published peak, by our formulas."""
        peak = apple_peak(self.chip, self.gpu_cores, "float32") if self.gpu_cores else None
        return mfu(self._rate, peak.flops if peak else None)

    @property
    def mfu_a100(self) -> float:
        """Against an A100's, as nanoGPT logs it."""
        return self._rate / A100_BF16_PEAK

    @property
    def _rate(self) -> float:
        return self.tokens_per_second * flops_per_token_palm(SHAKESPEARE_CHAR)


M3_MAX = (
    "blog post 'State of PyTorch Metal support' (2025-09-02): nanoGPT, config/train_shakespeare_char.py, iterations 10 "
    "to 50 of its log, PyTorch nightly, MacBook Pro M3 Max 64 GB, macOS 15.6.1"
)
RUNS = (
    Published("nanoGPT on MPS", 0.221, "Apple M3 Max", 40, M3_MAX),
    Published("nanoGPT on MPS, compiled", 0.306, "Apple M3 Max", 40, M3_MAX),
    Published("nanoGPT on the CPU", 1.986, "Apple M3 Max", None, M3_MAX),
)


def same_work(config: RunConfig) -> bool:
    """Whether a case measured the work of these runs."""
    model, train = config.model, config.train
    shape = ("block_size", "n_layer", "n_head", "n_embd", "vocab_size")
    sequences = train.batch_size * train.grad_accum_steps
    return sequences == BATCH and all(getattr(model, key) == getattr(SHAKESPEARE_CHAR, key) for key in shape)
