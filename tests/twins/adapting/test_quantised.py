"""Layers whose matrices are words: they compute what the words stand for, in both twins, with and without adapters."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.adapting.placement import initial_adapters
from gpt_common.adapting.quantisation import BITS, Grid, Grids, Quantised, quantisable, quantised, stored
from gpt_common.config import ModelConfig, OptimConfig, RunConfig, TrainConfig
from gpt_common.network.parameters import NO_ADAPTER, parameter_shapes
from tests.twins import TWINS
from tests.twins.steps import DEEPSEEK, GPT2, LLAMA, Arrays, apart, batch, drawn_weights

# Rows of every matrix are whole groups of 32.
WIDE: dict[str, Any] = {"n_embd": 32}
FAMILIES = {
    "gpt2": dataclasses.replace(GPT2, **WIDE),
    "llama": dataclasses.replace(LLAMA, **WIDE, feed_forward_width=64),
    "deepseek": dataclasses.replace(
        DEEPSEEK, **WIDE, kv_latent=32, nope_size=24, rope_size=8, value_size=16, expert_width=32, feed_forward_width=64
    ),
}
SAME = 5e-6
"""Relative L2 of logits: the ladder's gate L3."""
families = pytest.mark.parametrize("family", FAMILIES)
both = pytest.mark.parametrize("twin", TWINS)


def on_grids(model: ModelConfig) -> tuple[Grids, dict[str, Quantised], Arrays]:
    """All numbers of bits, one after the other; the matrices, and the model's tensors with what they stand for."""
    weights, shapes = drawn_weights(model), parameter_shapes(model)
    grids = {layer: Grid(BITS[2 + i % 4], 32) for i, layer in enumerate(quantisable(shapes))}
    matrices = {layer: quantised(weights[f"{layer}.weight"], grid) for layer, grid in grids.items()}
    floats = weights | {f"{layer}.weight": matrix.dequantised() for layer, matrix in matrices.items()}
    return grids, matrices, floats


def built(
    twin: str, model: ModelConfig, arrays: dict[str, Any], grids: Grids, adapter: AdapterConfig = NO_ADAPTER
) -> Any:
    """A model of a twin with these tensors."""
    import_module(f"{twin}.device").select_device("cpu")
    made = import_module(f"{twin}.model").GPT(model, adapter=adapter, grids=grids)
    places = made.state_dict()
    if twin == "torch_gpt":
        import torch

        with torch.no_grad():
            for name, value in arrays.items():
                given = torch.from_numpy(np.ascontiguousarray(value))
                places[name].copy_(given.view(torch.int32) if given.dtype == torch.uint32 else given)
    else:
        import mlx.core as mx
        from mlx.utils import tree_unflatten

        made.update(tree_unflatten([(name, mx.array(value)) for name, value in arrays.items()]))
    return made


def probe(twin: str, model: Any, config: RunConfig | None = None) -> Any:
    step = None
    if config is not None:
        optimizer = import_module(f"{twin}.optim").build_optimizer(model, config.optim)
        step = import_module(f"{twin}.train").TrainStep(model, optimizer, config, compiled=False)
    return import_module(f"{twin}.probe").TrainingProbe(model, step)


def distance(one: Any, other: Any) -> float:
    return float(np.linalg.norm((one - other).astype(np.float64)) / np.linalg.norm(other.astype(np.float64)))


@both
@families
def test_logits_are_those_of_the_matrices_that_the_words_stand_for(twin: str, family: str) -> None:
    model = FAMILIES[family]
    grids, matrices, floats = on_grids(model)
    tokens = batch().tokens
    expected = probe(twin, built(twin, model, floats, {})).logits(tokens)
    found = probe(twin, built(twin, model, stored(floats, matrices), grids))
    assert distance(found.logits(tokens), expected) < SAME
    assert distance(found.cached_logits(tokens), expected) < SAME, "one token at a time, by MLX's own kernel"


@families
def test_both_twins_compute_the_same(family: str) -> None:
    model = FAMILIES[family]
    grids, matrices, floats = on_grids(model)
    mine, theirs = (
        probe(twin, built(twin, model, stored(floats, matrices), grids)).logits(batch().tokens) for twin in TWINS
    )
    assert distance(mine, theirs) < SAME


def adapted(model: ModelConfig, floats: Arrays, kind: str) -> tuple[RunConfig, Arrays]:
    adapter = AdapterConfig(adapter=kind, adapter_rank=4, adapter_alpha=12.0)  # type: ignore[arg-type]
    optim = OptimConfig(learning_rate=1e-2, warmup_steps=0, grad_clip=1.0)
    config = RunConfig(model=model, adapter=adapter, optim=optim, train=TrainConfig(device="cpu", seed=5))
    first = initial_adapters(parameter_shapes(model), adapter, 5, lambda layer: floats[f"{layer}.weight"])
    draw = np.random.default_rng(1)
    # B is 0 at first: then nothing would depend on A.
    return config, {name: v + 0.05 * draw.standard_normal(v.shape).astype(np.float32) for name, v in first}


@both
@pytest.mark.parametrize(("family", "kind"), [("gpt2", "lora"), ("llama", "dora"), ("deepseek", "lora")])
def test_adapters_learn_beside_words_as_beside_the_matrices(twin: str, family: str, kind: str) -> None:
    model = FAMILIES[family]
    grids, matrices, floats = on_grids(model)
    config, adapters = adapted(model, floats, kind)
    courses = []
    for arrays, chosen in ((floats, {}), (stored(floats, matrices), grids)):
        network = built(twin, model, arrays | adapters, chosen, config.adapter)
        asked = probe(twin, network, config)
        before = {
            name: np.asarray(value).copy() for name, value in network.state_dict().items() if name not in adapters
        }
        loss, gradient = asked.step_gradients([batch()], 0)
        for step in range(5):
            asked.train_step([batch(step)], step, 1e-2)
        trained = {name: np.asarray(network.state_dict()[name]).copy() for name in adapters}
        courses.append((loss, dict(gradient), trained))
        after = {name: np.asarray(value).copy() for name, value in network.state_dict().items() if name not in adapters}
        assert all(np.array_equal(before[name], after[name]) for name in before if "routing" not in name)
    (loss, gradient, trained), (found, slopes, moved) = courses
    assert found == pytest.approx(loss, rel=2e-6)
    assert set(gradient) == set(adapters)
    assert apart(gradient, slopes) < 1e-5
    assert apart(trained, moved) < 1e-4, "five steps of Adam, whose first have the sign of a gradient alone"


@both
def test_a_dora_begins_with_the_lengths_of_what_the_words_stand_for(twin: str) -> None:
    model = FAMILIES["llama"]
    grids, matrices, floats = on_grids(model)
    adapter = AdapterConfig(adapter="dora", adapter_rank=2)
    network = built(twin, model, stored(floats, matrices), grids, adapter)
    network.adapters.initialise(network, 5)
    layer = "blocks.1.attention.out_proj"
    lengths = np.asarray(network.state_dict()[f"{layer}.magnitude"]).copy()
    np.testing.assert_allclose(lengths, np.linalg.norm(floats[f"{layer}.weight"], axis=1), rtol=1e-6)


@both
def test_scales_and_biases_have_the_gradient_of_the_matrix(twin: str) -> None:
    """By the chain rule: of a scale, the sum over its group of gradient times code; of a bias, without the code."""
    model = FAMILIES["gpt2"]
    calibrate = import_module(f"{twin}.calibrate")
    grids, matrices, floats = on_grids(model)
    teacher = built(twin, model, drawn_weights(model), {})
    layer, step = "blocks.0.feed_forward.up_proj", 1e-3
    alone = {layer: grids[layer]}
    base = floats | {f"{layer}.weight": matrices[layer].dequantised()}

    def divergence(matrix: Quantised) -> float:
        student = built(twin, model, stored(base, {layer: matrix}), alone)
        return float(calibrate.compare(teacher, student, [batch()]).divergence)

    student = built(twin, model, stored(base, {layer: matrices[layer]}), alone)
    values, losses = calibrate.tune(teacher, student, [batch()], lambda _: step)
    assert losses == [pytest.approx(divergence(matrices[layer]), rel=1e-4)]
    # The first step of Adam goes by the sign: along it the divergence falls, and against it, it rises.
    moved = dataclasses.replace(
        matrices[layer], scales_XG=values[f"{layer}.scales"], biases_XG=values[f"{layer}.biases"]
    )
    back = dataclasses.replace(
        matrices[layer],
        scales_XG=2 * matrices[layer].scales_XG - moved.scales_XG,
        biases_XG=2 * matrices[layer].biases_XG - moved.biases_XG,
    )
    assert divergence(moved) < losses[0] < divergence(back)


def test_both_twins_tune_alike() -> None:
    model = FAMILIES["llama"]
    grids, matrices, floats = on_grids(model)
    found = []
    for twin in TWINS:
        calibrate = import_module(f"{twin}.calibrate")
        teacher = built(twin, model, drawn_weights(model), {})
        student = built(twin, model, stored(floats, matrices), grids)
        batches = [batch(seed) for seed in range(20)]
        before = calibrate.compare(teacher, student, batches).divergence
        values, losses = calibrate.tune(teacher, student, batches, lambda step: 2e-3 * (1 - step / 20))
        assert calibrate.compare(teacher, student, batches).divergence < 0.9 * before
        moments = calibrate.input_moments(teacher, grids, batches[:2])
        found.append((values, losses, moments))
    (mine, one, first), (theirs, other, second) = found
    assert np.abs(np.subtract(one, other)).max() < 1e-5
    for name in mine:
        assert distance(mine[name], theirs[name]) < 1e-3, name
    for layer, own in first.items():
        assert own.dtype == np.float64
        assert not own.any() if layer == "token_embedding" else distance(own, second[layer]) < 1e-5, layer


def wrong_dequantised(twin: str, monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    right = import_module(f"{twin}.kernels").dequantised
    for module in ("kernels", "quantised"):
        monkeypatch.setattr(f"{twin}.{module}.dequantised", lambda *given: wrong(right, *given))


MUTANTS = {
    "biases forgotten": lambda f, words, scales, biases, grid: f(words, scales, biases * 0, grid),
    "bias for scale": lambda f, words, scales, biases, grid: f(words, biases, scales, grid),
    "sign of the scale": lambda f, words, scales, biases, grid: f(words, -scales, biases, grid),
}


@both
@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_matrix_is_noticed(twin: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES["gpt2"]
    grids, matrices, floats = on_grids(model)
    expected = probe(twin, built(twin, model, floats, {})).logits(batch().tokens)
    wrong_dequantised(twin, monkeypatch, MUTANTS[name])
    found = probe(twin, built(twin, model, stored(floats, matrices), grids)).logits(batch().tokens)
    assert distance(found, expected) > 100 * SAME
