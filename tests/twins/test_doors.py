"""Linear and Embedding are the only doors to their matrices: whatever takes their place is used everywhere."""

from __future__ import annotations

import ast
from collections import Counter
from importlib import import_module
from itertools import repeat
from typing import Any

import numpy as np
import pytest

from gpt_common.commands import SampleSettings
from gpt_common.config import ModelConfig, OptimConfig, RunConfig, TrainConfig
from gpt_common.data.batches import Batch
from tests.twins import ROOT, TWINS

BASE: dict[str, Any] = {"vocab_size": 30, "block_size": 12, "n_layer": 2, "n_head": 4, "n_embd": 16}
LATENT: dict[str, Any] = {"positions": "rope", "kv_latent": 12, "nope_size": 8, "rope_size": 4, "value_size": 10}
EXPERTS: dict[str, Any] = {"feed_forward": "moe", "n_expert": 2, "experts_per_token": 2, "expert_width": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "multi_head, tied head": {},
    "multi_head, untied head": {"tied_head": False, "head_bias": True, "bias": True, "feed_forward": "relu2"},
    "grouped_query, swiglu": {"attention": "grouped_query", "n_kv_head": 2, "feed_forward": "swiglu"},
    "latent, own queries": {**LATENT, "attention": "latent", "q_latent": 16, "feed_forward": "gelu_tanh"},
    "latent, experts": {**LATENT, **EXPERTS, "attention": "latent", "tied_head": False, "n_dense_layer": 1},
    "latent_per_head, experts": {
        **LATENT, **EXPERTS, "attention": "latent_per_head", "q_latent": 16, "n_shared_expert": 1, "positions": "both",
    },
}  # fmt: skip
DOORS = ("Linear", "Embedding", "StackedLinear")
METHODS = ("per_head", "per_head_transposed", "as_linear")


def with_watched_doors(twin: str, model: Any) -> tuple[list[str], Counter[str]]:
    """Put a wrapper in the place of every Linear and Embedding.

    Returns:
        Their paths, and how often each was called by whatever method since the counter was last cleared.
    """
    layers = import_module(f"{twin}.layers")
    base: Any = import_module("mlx.nn" if twin == "mlx_gpt" else "torch.nn").Module
    calls: Counter[str] = Counter()

    class Wrapper(base):  # type: ignore[misc]
        """Does what the layer does, and has no weight for anybody to read."""

        def __init__(self, path: str, layer: Any) -> None:
            super().__init__()
            self.path, self.wrapped = path, layer

        def __call__(self, *args: Any) -> Any:
            calls[self.path] += 1
            return self.wrapped(*args)

    def through(name: str) -> Any:
        def method(self: Any, *args: Any, **more: Any) -> Any:
            calls[f"{self.path}.{name}"] += 1
            return getattr(self.wrapped, name)(*args, **more)

        return method

    for name in METHODS:
        setattr(Wrapper, name, through(name))
    kinds = tuple(getattr(layers, name) for name in DOORS)
    paths = [path for path, module in model.named_modules() if isinstance(module, kinds)]
    for path in paths:
        *parents, name = path.split(".")
        owner = model
        for part in parents:
            owner = owner[int(part)] if part.isdigit() else getattr(owner, part)
        setattr(owner, name, Wrapper(path, getattr(owner, name)))
    return paths, calls


def called(calls: Counter[str], path: str) -> bool:
    """By whatever method."""
    return any(calls[name] for name in (path, *(f"{path}.{method}" for method in METHODS)))


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_stands_in_the_place_of_a_layer_is_used_everywhere(family: str, twin: str) -> None:
    config = RunConfig(
        model=ModelConfig(**{**BASE, **FAMILIES[family]}),
        optim=OptimConfig(learning_rate=1e-2),
        train=TrainConfig(batch_size=2, device="cpu"),
    )
    import_module(f"{twin}.device").select_device("cpu")
    plain, model = (import_module(f"{twin}.model").GPT(config.model) for _ in range(2))
    for one in (plain, model):
        one.initialise(0)
    paths, calls = with_watched_doors(twin, model)
    assert len(paths) == len(set(paths)) > 8

    tokens = np.arange(24, dtype=np.int32).reshape(2, 12) % 30
    batch = Batch(tokens, (tokens + 1) % 30)
    losses = []
    for one in (plain, model):
        optimizer = import_module(f"{twin}.optim").build_optimizer(one, config.optim)
        step = import_module(f"{twin}.train").TrainStep(one, optimizer, config, compiled=False)
        losses.append([float(step([batch], number, 1e-2)[0]) for number in range(2)])
    assert [path for path in paths if not called(calls, path)] == []
    assert losses[0] == losses[1]

    calls.clear()
    generate = import_module(f"{twin}.sample").generate
    settings = SampleSettings(max_new_tokens=5, temperature=0)
    texts = [list(generate(one, [1, 2, 3], settings, repeat(0.5))) for one in (plain, model)]
    assert [path for path in paths if not called(calls, path)] == []
    assert texts[0] == texts[1]
    assert calls["token_embedding.as_linear" if config.model.tied_head else "head"] == 5


@pytest.mark.parametrize("twin", TWINS)
def test_nobody_reads_a_weight_past_its_layer(twin: str) -> None:
    found = {
        f"{path.name}:{node.lineno}"
        for path in sorted((ROOT / twin).glob("*.py"))
        if path.name not in ("layers.py", "adapters.py", "quantised.py")  # the doors themselves
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "weight"
    }
    assert found == set()
