"""The study of batched generation: both sides do the same work."""

from __future__ import annotations

from benchmarks.studies.batching import generation
from gpt_common.config import ModelConfig


def test_both_sides_write_the_same_texts() -> None:
    model = ModelConfig(vocab_size=11, block_size=32, n_layer=2, n_head=2, n_embd=16)
    for twin in ("torch", "mlx"):
        alone, together = (generation(twin, model, [5, 14, 23], 40, side)() for side in ("one by one", "together"))
        assert [len(text) for text in alone] == [40] * 3
        assert alone == together
