"""The study of the key-value cache: both sides do the same work."""

from __future__ import annotations

from benchmarks.studies.cache import generation
from gpt_common.config import ModelConfig


def test_both_sides_write_the_same_text() -> None:
    model = ModelConfig(vocab_size=11, block_size=16, n_layer=2, n_head=2, n_embd=16)
    texts = [generation(twin, model, 20, cached=cached)() for twin in ("torch", "mlx") for cached in (True, False)]
    assert len(texts[0]) == 21
    assert all(text == texts[0] for text in texts)
