"""The cache of every kind of attention: as large as planned, and what it gives is what the whole forward pass gives."""

from __future__ import annotations

import importlib
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gpt_common.commands import SampleSettings
from gpt_common.config import ModelConfig
from gpt_common.keyed import keyed_generator
from gpt_common.network.memory import full_kv_bytes_per_token, kv_cache_bytes_per_token
from gpt_common.network.parameters import parameter_shapes
from tests.twins import TWINS

Logits = npt.NDArray[np.float32]

V, T = 50, 24
BASE = {"vocab_size": V, "block_size": T, "n_layer": 2, "n_head": 4, "n_embd": 32, "norm": "rmsnorm"}
LATENT = {"positions": "rope", "kv_latent": 12, "nope_size": 8, "rope_size": 4, "value_size": 10}
KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "multi-head": ({}, 2 * 4 * 8),
    "multi-head, rotary, norms of heads": ({"positions": "both", "qk_norm": True, "head_size": 10}, 2 * 4 * 10),
    "grouped queries": ({"attention": "grouped_query", "n_kv_head": 2, "positions": "rope"}, 2 * 2 * 8),
    "latent": ({**LATENT, "attention": "latent", "q_latent": 16, "rope_layout": "interleaved"}, 12 + 4),
    "latent, whole queries": ({**LATENT, "attention": "latent"}, 12 + 4),
    "latent, keys per head": ({**LATENT, "attention": "latent_per_head", "q_latent": 16}, 12 + 4 * 4),
}
"""Fields of the configuration, and numbers that one layer keeps of a token: 2 H K, 2 G K, R + rope, R + H rope."""

PIECES = {"one by one": [1] * T, "a prompt, then one by one": [9] + [1] * (T - 9), "in two": [10, T - 10]}


def tokens() -> npt.NDArray[np.int32]:
    """Two sequences."""
    return np.random.default_rng(5).integers(0, V, (2, T), dtype=np.int32)


def weights(config: ModelConfig) -> dict[str, npt.NDArray[np.float32]]:
    """Random, of standard deviation 0.2 (norms around 1): at 0.02 attention is near uniform and hides its mistakes."""
    return {
        name: np.float32(0.2) * keyed_generator(3, name).standard_normal(shape, np.float32) + np.float32("norm" in name)
        for name, shape in parameter_shapes(config).items()
    }


def run_torch(config: ModelConfig, pieces: list[int] | None) -> tuple[Logits, list[Any]]:
    """Logits of all positions and the caches, the tokens in pieces; without pieces all at once and no cache."""
    import torch

    from torch_gpt.model import GPT

    model = GPT(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weights(config)[name]))
        inputs = torch.from_numpy(tokens()).long()
        if pieces is None:
            return model(inputs).numpy(), []
        caches = model.new_caches()
        found = [model(piece, caches=caches).numpy() for piece in inputs.split(pieces, dim=1)]
    return np.concatenate(found, axis=1), caches


def run_mlx(config: ModelConfig, pieces: list[int] | None) -> tuple[Logits, list[Any]]:
    """See run_torch."""
    import mlx.core as mx

    from mlx_gpt.model import GPT

    with mx.stream(mx.cpu):
        model = GPT(config)
        model.load_weights([(name, mx.array(value)) for name, value in weights(config).items()], strict=False)
        inputs = mx.array(tokens())
        if pieces is None:
            return np.array(model(inputs)), []
        caches = model.new_caches()
        parts = mx.split(inputs, np.cumsum(pieces)[:-1].tolist(), axis=1)
        return np.concatenate([np.array(model(piece, caches=caches)) for piece in parts], axis=1), caches


RUN = {"mlx_gpt": run_mlx, "torch_gpt": run_torch}


def difference(found: Logits, expected: Logits) -> float:
    """Relative L2."""
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64)))


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("kind", KINDS)
def test_cached_logits_are_those_of_the_whole_forward_pass(kind: str, twin: str) -> None:
    config = ModelConfig(**{**BASE, **KINDS[kind][0]})
    whole, _ = RUN[twin](config, None)
    for pieces in PIECES.values():
        cached, caches = RUN[twin](config, pieces)
        assert difference(cached, whole) < 5e-6
        assert {cache.bytes_per_token for cache in caches} == {4 * KINDS[kind][1]}
        assert sum(cache.bytes_per_token for cache in caches) == kv_cache_bytes_per_token(config)


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_that_forgets_is_found(kind: str, twin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: what was kept last is lost before the next piece comes."""
    cache = importlib.import_module(f"{twin}.attention").KVCache
    append = cache.append

    def forgetful(self: Any, keys: Any, values: Any) -> Any:
        found = append(self, keys, values)
        if self.keys is not None and self.length == 10:
            self.keys[:, :, 9:10] = 0 * self.keys[:, :, 9:10]
        return found

    config = ModelConfig(**{**BASE, **KINDS[kind][0]})
    whole, _ = RUN[twin](config, None)
    monkeypatch.setattr(cache, "append", forgetful)
    cached, _ = RUN[twin](config, PIECES["in two"])
    assert difference(cached, whole) > 1e-3


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("kind", KINDS)
def test_generation_keeps_what_the_configuration_predicts(
    kind: str, twin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured on the caches that `generate` made, and their share of full keys and values."""
    changes, numbers = KINDS[kind]
    config = ModelConfig(**{**BASE, **changes})
    module = importlib.import_module(f"{twin}.model")
    made: list[Any] = []
    new_caches = module.GPT.new_caches

    def remembered(self: Any) -> Any:
        made.append(new_caches(self))
        return made[-1]

    monkeypatch.setattr(module.GPT, "new_caches", remembered)
    model = module.GPT(config)
    model.initialise(0)
    settings = SampleSettings(max_new_tokens=8)
    assert len(list(importlib.import_module(f"{twin}.sample").generate(model, [1, 2], settings, repeat(0.5)))) == 8
    measured = sum(cache.bytes_per_token for cache in made[-1])
    assert measured == 2 * 4 * numbers == kv_cache_bytes_per_token(config)
    width = 8 + 4 + 10 if config.attention.startswith("latent") else 2 * config.key_size
    assert measured / full_kv_bytes_per_token(config) == numbers / (4 * width)
    assert kv_cache_bytes_per_token(config, 2) == measured / 2
