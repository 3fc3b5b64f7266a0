"""Figures that others published, to set ours beside. They are not ours: other software, other days, other care."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gpt_common.config import ModelConfig, RunConfig
from gpt_common.machine.peaks import apple_peak
from gpt_common.network.flops import A100_BF16_PEAK, flops_per_token_palm

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


M3_MAX = (
    "blog post 'State of PyTorch Metal support' (2025-09-02): nanoGPT, config/train_shakespeare_char.py, iterations 10 "
    "to 50 of its log, PyTorch nightly, MacBook Pro M3 Max 64 GB, macOS 15.6.1"
)
RUNS = (
    Published("nanoGPT on MPS", 0.221, "Apple M3 Max", 40, M3_MAX),
    Published("nanoGPT on MPS, compiled", 0.306, "Apple M3 Max", 40, M3_MAX),
    Published("nanoGPT on the CPU", 1.986, "Apple M3 Max", None, M3_MAX),
)


def published_rows() -> list[dict[str, Any]]:
    """The runs with throughput and both MFUs by our formulas."""
    rows = []
    for run in RUNS:
        tokens = BATCH * SHAKESPEARE_CHAR.block_size / run.seconds_per_step
        rate = tokens * flops_per_token_palm(SHAKESPEARE_CHAR)
        peak = apple_peak(run.chip, run.gpu_cores, "float32") if run.gpu_cores else None
        rows.append(
            {
                **asdict(run),
                "tokens_per_second": tokens,
                "mfu_published": rate / peak.flops if peak else None,
                "mfu_a100": rate / A100_BF16_PEAK,
            }
        )
    return rows


def same_work(config: RunConfig) -> bool:
    """Whether a case measured the work of these runs."""
    model, train = config.model, config.train
    shape = ("block_size", "n_layer", "n_head", "n_embd", "vocab_size")
    sequences = train.batch_size * train.grad_accum_steps
    return sequences == BATCH and all(getattr(model, key) == getattr(SHAKESPEARE_CHAR, key) for key in shape)
