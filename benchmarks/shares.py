"""Which share of its peak others reached in training, for a plan that knows no better: published rows, none of ours."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.assumptions import CORE_TFLOPS
from benchmarks.report.published import BATCH, RUNS, SHAKESPEARE_CHAR
from benchmarks.report.published import SOURCE as STATE_OF_MPS
from gpt_common.config import Device, DType, ModelConfig
from gpt_common.machine.peaks import apple_peak, nvidia_peak
from gpt_common.network.flops import flops_per_token_palm
from gpt_common.network.memory import Twin
from gpt_common.words import share


@dataclass(frozen=True)
class Reached:
    """A share of a peak that somebody reached."""

    mfu: float
    """By PaLM's count of operations."""
    framework: Twin
    device: Device
    dtype: DType
    compiled: bool
    what: str
    """Which training, on which machine."""
    source: str
    """Where it is published."""

    def basis(self, twin: Twin, device: Device, dtype: DType) -> str:
        """The words that say where an assumed share comes from, and how near that is."""
        other = [
            there
            for there, here in ((self.framework, twin), (self.device, device), (self.dtype, dtype))
            if there != here
        ]
        names = {"mlx": "MLX", "torch": "PyTorch"}
        aside = f", there {' '.join(names.get(each, each) for each in other)}" if other else ""
        return f"assumed, {share(self.mfu)} as published for {self.what}{aside}: {self.source}"


def nearest_share(twin: Twin, device: Device, dtype: DType, *, compiled: bool) -> Reached:
    """The published row most like what is planned: on the same kind of device, then framework, dtype and compilation.

    Args:
        twin: what computes.
        device: where; "gpu" is MLX's word for Apple's.
        dtype: compute dtype.
        compiled: whether PyTorch compiles; MLX always does on a GPU.
    """

    def likeness(row: Reached) -> tuple[bool, ...]:
        there = {"mps": "gpu"}.get(row.device, row.device) == {"mps": "gpu"}.get(device, device)
        return there, row.framework == twin, row.dtype == dtype, row.compiled == compiled

    return max(rows(), key=likeness)


def rows() -> tuple[Reached, ...]:
    """All of them."""
    return (*_nanogpt_on_a_mac(), _mlx_on_a_mac(), _nanogpt_on_a100())


def _nanogpt_on_a_mac() -> list[Reached]:
    """The runs that stand on a benchmark's page. On the CPU, for which nobody publishes a peak, the share of the one
    that assumptions.py takes: that of the M3 Max's 16 cores."""
    found = []
    for run in RUNS:
        rate = BATCH * SHAKESPEARE_CHAR.block_size / run.seconds_per_step * flops_per_token_palm(SHAKESPEARE_CHAR)
        mfu = run.mfu_published or rate / (16 * CORE_TFLOPS * 1e12)
        device: Device = "mps" if run.on_gpu else "cpu"
        # The name of the post and its day; the page of a benchmark has all of it.
        source = STATE_OF_MPS.split(":")[0]
        what = f"{run.label} on an M3 Max" if run.on_gpu else f"{run.label} of an M3 Max, of a peak so assumed"
        found.append(Reached(mfu, "torch", device, "float32", "compiled" in run.label, what, source))
    return found


def _mlx_on_a_mac() -> Reached:
    """mlx-examples' transformer_lm/main.py --gpu as it was then (commit 27c0a8c0): SGD, 2 sequences of 1024 tokens.

    It counts its parameters, without the embedding, in units of 2^20: 153.883. Steps 20 to 100 of the M2 Max with 38
    cores ran at 2.033 per second in the median.
    """
    parameters, layers, width, tokens = 153.883 * 2**20, 12, 1024, 1024
    rate = 2.033 * 2 * tokens * (6 * parameters + 12 * layers * width * tokens)
    peak = apple_peak("Apple M2 Max", 38, "float32")
    assert peak is not None
    what = "mlx-examples' transformer on an M2 Max"
    source = "github.com/ml-explore/mlx-examples/issues/127 (2023-12-26)"
    return Reached(rate / peak.flops, "mlx", "gpu", "float32", False, what, source)


def _nanogpt_on_a100() -> Reached:
    """nanoGPT's README: about 4 days on 8 A100 for config/train_gpt2.py, 600 000 compiled steps of 491 520 tokens."""
    gpt2 = ModelConfig(vocab_size=50304, block_size=1024, n_layer=12, n_head=12, n_embd=768)
    rate = 600_000 * 491_520 * flops_per_token_palm(gpt2) / (8 * 4 * 86_400)
    peak = nvidia_peak("NVIDIA A100-SXM4-40GB", "bfloat16")
    assert peak is not None
    what, source = "nanoGPT on 8 A100, compiled", "README of github.com/karpathy/nanoGPT (about 4 days)"
    return Reached(rate / peak.flops, "torch", "cuda", "bfloat16", True, what, source)
