"""Sequences that are continued together say what each would say alone, whoever comes or goes meanwhile."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.adapting.placement import adapter_shapes
from gpt_common.commands import SampleSettings
from gpt_common.config import ModelConfig
from gpt_common.keyed import draws, keyed_generator
from gpt_common.network.parameters import NO_ADAPTER, tensor_shapes
from gpt_common.sampling import Continuation, continue_together, equally_long
from tests.twins import TWINS
from tests.twins.test_cache import BASE, KINDS, LATENT, T, V

BLOCK = T
EXPERTS = {"feed_forward": "moe", "n_expert": 4, "experts_per_token": 2, "expert_width": 16}
FAMILIES: dict[str, dict[str, Any]] = {name: changes for name, (changes, _) in KINDS.items()}
FAMILIES["experts"] = {**EXPERTS, "positions": "rope"}
FAMILIES["experts, latent"] = {**LATENT, **EXPERTS, "attention": "latent", "n_shared_expert": 1}

PROMPTS = [[1, 2, 3], [4] * 17, list(range(BLOCK)), [7, 8, 9], [30, 20, 10, 0, 5]]
"""Two are equally long, one fills the block."""
SETTINGS = [
    SampleSettings(max_new_tokens=30, temperature=0),  # past the end of the block
    SampleSettings(max_new_tokens=40, temperature=1, top_k=9),
    SampleSettings(max_new_tokens=5, temperature=0.7, top_p=0.9),
    SampleSettings(max_new_tokens=12, temperature=0),
    SampleSettings(max_new_tokens=33, temperature=1.3),
]


def made(twin: str, config: ModelConfig, adapter: AdapterConfig = NO_ADAPTER) -> Any:
    """A model with weights of 0.2 (norms around 1): with smaller ones everything says the same."""
    shapes = tensor_shapes(config)
    shapes |= adapter_shapes(shapes, adapter) if adapter.adapts else {}
    weights = {
        name: np.float32(0.2) * keyed_generator(3, name).standard_normal(shape, np.float32) + np.float32("norm" in name)
        for name, shape in shapes.items()
    }
    model = importlib.import_module(f"{twin}.model").GPT(config, adapter=adapter)
    if twin == "torch_gpt":
        import torch

        model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, strict=False)
    else:
        import mlx.core as mx

        model.load_weights([(name, mx.array(value)) for name, value in weights.items()], strict=False)
    return model


@pytest.fixture(autouse=True)
def on_a_cpu() -> Iterator[None]:
    import mlx.core as mx

    with mx.stream(mx.cpu):
        yield


def alone(twin: str, model: Any) -> list[list[int]]:
    """What each prompt is continued with by `generate`."""
    generate = importlib.import_module(f"{twin}.sample").generate
    return [
        list(generate(model, prompt, settings, draws(11, number)))
        for number, (prompt, settings) in enumerate(zip(PROMPTS, SETTINGS, strict=True))
    ]


def together(twin: str, model: Any, at_once: int) -> list[list[int]]:
    """The same by a batch of at most `at_once`."""
    batch = importlib.import_module(f"{twin}.sample").ContinuousBatch(model)
    sequences = [
        Continuation(list(prompt), settings, draws(11, number))
        for number, (prompt, settings) in enumerate(zip(PROMPTS, SETTINGS, strict=True))
    ]
    found: list[list[int]] = [[] for _ in sequences]
    for number, token in continue_together(batch, sequences, at_once, lambda *_: False):
        if token is not None:
            found[number].append(token)
    return found


both = pytest.mark.parametrize("twin", TWINS)


@both
@pytest.mark.parametrize("family", FAMILIES)
def test_each_says_what_it_says_alone(family: str, twin: str) -> None:
    model = made(twin, ModelConfig(**{**BASE, **FAMILIES[family]}))
    expected = alone(twin, model)
    assert len({tuple(text) for text in expected}) == len(PROMPTS)
    for at_once in (2, 5):
        assert together(twin, model, at_once) == expected


@both
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_with_an_adapter(kind: Any, twin: str) -> None:
    config = ModelConfig(**{**BASE, **FAMILIES["latent"]})
    model = made(twin, config, AdapterConfig(adapter=kind, adapter_rank=4))
    assert together(twin, model, 3) == alone(twin, model)
    assert alone(twin, model) != alone(twin, made(twin, config))


def logits_apart(twin: str, family: str) -> float:
    """Largest difference of a logit, in a batch whose sequences come and go, from one that has its sequence alone;
    relative to the largest logit."""
    module = importlib.import_module(f"{twin}.sample")
    model = made(twin, ModelConfig(**{**BASE, **FAMILIES[family]}))
    texts = np.random.default_rng(1).integers(0, V, (4, 60)).tolist()
    begin, come, go = (9, 2, 17, 4), (0, 3, 5, 11), (40, 12, 33, 40)
    batch, single = module.ContinuousBatch(model), [module.ContinuousBatch(model) for _ in texts]
    apart, largest = 0.0, 0.0
    for at in range(40):
        here = {i: text[: begin[i] + at - come[i] + 1] for i, text in enumerate(texts) if come[i] <= at < go[i]}
        found = batch.next_logits(here)
        assert found.keys() == here.keys()
        for i, context in here.items():
            expected: npt.NDArray[np.float32] = single[i].next_logits({0: context})[0]
            apart = max(apart, float(np.abs(found[i] - expected).max()))
            largest = max(largest, float(np.abs(expected).max()))
    return apart / largest


@both
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_one_alone(family: str, twin: str) -> None:
    """1e-5, as the cache of a single sequence has it; measured: 2e-6."""
    assert logits_apart(twin, family) < 1e-5


def sees_everything(original: Any) -> Any:
    """The mutant: what stands behind a shorter sequence, nothing or another's, is attended as well."""

    def mutant(lengths: list[int], device: Any) -> Any:
        positions, sees = original(lengths, device)
        return positions, sees == sees

    return mutant


def shares_positions(original: Any) -> Any:
    """The mutant: all stand where the longest one stands."""

    def mutant(lengths: list[int], device: Any) -> Any:
        return original([max(lengths)] * len(lengths), device)[0], original(lengths, device)[1]

    return mutant


@both
@pytest.mark.parametrize("family", ["multi-head", "grouped queries", "latent", "latent, keys per head"])
@pytest.mark.parametrize("mutant", [sees_everything, shares_positions])
def test_a_batch_that_mixes_its_sequences_up_is_found(
    mutant: Any, family: str, twin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"{twin}.model")
    monkeypatch.setattr(module, "behind_each", mutant(module.behind_each))
    assert logits_apart(twin, family) > 1e-3


@both
def test_a_row_that_stays_behind_is_found(twin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: who leaves takes the last row with it, and not its own."""
    cache = importlib.import_module(f"{twin}.sample").BatchKVCache
    keep = cache.keep

    def first_rows(self: Any, rows: list[int]) -> None:
        lengths = [self.rows[row] for row in rows]
        keep(self, list(range(len(rows))))
        self.measure(lengths)

    monkeypatch.setattr(cache, "keep", first_rows)
    assert logits_apart(twin, "multi-head") > 1e-3


@both
def test_every_position_is_scored(twin: str) -> None:
    module = importlib.import_module(f"{twin}.sample")
    batch = module.ContinuousBatch(made(twin, ModelConfig(**{**BASE, **FAMILIES["multi-head"]})), known=40)
    scored = batch.all_logits(PROMPTS[2])
    assert scored.shape == (BLOCK, 40)
    last = batch.next_logits({5: PROMPTS[2][:-1]})[5]
    np.testing.assert_allclose(scored[-2], last, rtol=0, atol=1e-5 * np.abs(last).max())


def test_prompts_of_one_length_go_together_as_far_as_memory_should_bear() -> None:
    texts = {1: [0] * 3, 2: [0] * 900, 3: [0] * 3, 4: [0] * 900, 5: [0] * 900, 6: [0] * 5000, 7: [0] * 5000}
    assert list(equally_long(texts)) == [[1, 3], [2, 4], [5], [6], [7]]
