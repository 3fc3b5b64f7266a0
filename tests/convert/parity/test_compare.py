"""The comparison itself, the oracle, and the rule for text: what the gates rest on."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from convert.parity import material
from convert.parity.climb import Climb, top1_disagreements
from convert.parity.compare import KEY_SIZE, Measurement, distances, relative, without_key_bias
from convert.parity.gates import BF16, STRICT, TF32
from convert.parity.ladder import climb_ladder
from convert.parity.mutants.climb import mutant_climb, mutant_config
from convert.parity.rungs.exact_adamw import ExactAdamW
from convert.parity.rungs.generation import _on_an_edge, _seen
from convert.parity.twins.backends import choose, open_twin
from gpt_common.adapting.quantisation import rounded_to
from gpt_common.commands import SampleSettings
from gpt_common.config import ModelConfig, OptimConfig
from gpt_common.errors import UserError
from gpt_common.keyed import draws, keyed_generator
from gpt_common.machine.backends import BACKENDS
from gpt_common.sampling import choose as choose_token

pytestmark = pytest.mark.parity


def test_distance_is_relative_and_sees_what_absolute_bars_do_not() -> None:
    exact = np.full(100, 1e-9)
    assert relative(exact * 1.5, exact) == pytest.approx(0.5)
    assert relative(exact, exact) == 0
    assert relative(np.zeros(3), np.zeros(3)) == 0
    assert relative(np.array([1e-30]), np.zeros(1)) == np.inf
    assert relative(np.zeros(3), np.zeros(4)) == np.inf
    assert np.isnan(relative(np.array([np.nan]), np.ones(1)))


def test_nan_and_missing_tensors_never_pass() -> None:
    common = {"tensor": "t", "gate": 1.0, "between": "a ~ b"}
    assert not Measurement(error=float("nan"), **common).passed  # type: ignore[arg-type]
    assert Measurement(error=1.0, **common).passed  # type: ignore[arg-type]
    found = dict(distances({"a": np.ones(2)}, {"a": np.ones(2), "b": np.ones(2)}))
    assert found == {"a": 0, "b (missing on one side)": np.inf}


def test_a_key_bias_of_its_own_is_compared_beside_all_three() -> None:
    names = [f"blocks.0.attention.{part}_proj.bias" for part in "qkv"]
    exact = {name: np.full(4, size) for name, size in zip(names, (1.0, 1e-3, 1.0), strict=True)}
    found = dict(distances(exact | {names[1]: np.full(4, 1.1e-3)}, exact, split_bias=False))
    assert found == {names[0]: 0, names[1]: pytest.approx(1e-4 / 2**0.5), names[2]: 0}
    assert dict(distances({names[1]: np.ones(4)}, {names[1]: np.zeros(4)}, split_bias=False)) == {names[1]: np.inf}


def test_a_gate_beside_noise_is_a_multiple_of_it() -> None:
    measured = Measurement(tensor="t", error=0.05, gate=0.02, between="a ~ b")
    assert measured.allowing(0.006, 3) == measured.allowing(0.0, 3) == measured
    assert measured.allowing(float("nan"), 3) == measured.allowing(float("inf"), 3) == measured, "that is no noise"
    assert not measured.passed
    raised = measured.allowing(0.021, 3)
    assert (raised.passed, raised.noise) == (True, 0.021)
    assert raised.gate == pytest.approx(0.063)
    assert measured.allowing(0.4, 3).gate == 0.5, "noise excuses no distance of a half"


def test_bfloat16_is_the_upper_half_of_a_float32() -> None:
    generator = keyed_generator(0, "bfloat16")
    values = generator.standard_normal(10_000, np.float32) * np.float32(10) ** generator.integers(-30, 30, 10_000)
    values = np.asarray(values, np.float32)
    nearest = torch.from_numpy(values).bfloat16().float().numpy()
    assert np.array_equal(rounded_to("bfloat16", values), nearest)
    coarse = material.coarsened({"w": values}, 0)["w"]
    assert np.array_equal(rounded_to("bfloat16", coarse), coarse)
    # Up or down by chance: half of them to the farther neighbour, at most one unit away.
    assert (np.abs(coarse - values) < np.abs(values) * 2.0**-7).all()
    assert 0.45 < (coarse == nearest).mean() < 0.55


def test_the_key_bias_is_asserted_small_and_not_compared() -> None:
    exact = np.concatenate([np.ones(4), np.full(4, 1e-12), np.ones(4)])
    noisy = np.concatenate([np.ones(4), np.full(4, -3e-12), np.ones(4)])
    name = "blocks.0.attention.qkv_proj.bias"
    small = dict(distances({name: noisy}, {name: exact}))
    assert small[name] == 0
    assert small[name + KEY_SIZE] < 1e-11
    large = dict(distances({name: np.ones(12)}, {name: exact}))
    assert large[name + KEY_SIZE] > 0.5, "a key bias that learns is an error"
    assert dict(distances({name: noisy}, {name: exact}, split_bias=False)) == {name: pytest.approx(2.8e-12, rel=0.1)}
    assert without_key_bias({name: noisy}, ModelConfig())[name][4:8].tolist() == [0] * 4


def test_the_likeliest_token_must_agree_where_it_leads() -> None:
    exact = np.array([[[0.0, 1.0, 3.0], [0.0, 1.0, 1.0001]]])
    assert top1_disagreements(exact + 1e-3 * np.array([0, 1, 0]), exact, 10) == 0, "the second position is a tie"
    swapped = exact[..., [0, 2, 1]].copy()
    assert top1_disagreements(np.where(np.arange(2)[None, :, None] == 0, exact, swapped), exact, 10) == 0
    wrong = exact.copy()
    wrong[0, 0, 0] = 3.1
    # Here the error is what makes the difference: the lead is smaller than ten times it.
    assert top1_disagreements(wrong, exact, 10) == 0
    assert top1_disagreements(wrong, exact, 0.5) == 1


def test_gates_are_those_of_the_specification() -> None:
    """Changing a gate is a decision, not an edit."""
    assert (STRICT["L1"], STRICT["L1 long sums"], STRICT["L2 forward"], STRICT["L2 backward"]) == (
        2e-6,
        1e-5,
        3e-6,
        1e-5,
    )
    assert (STRICT["L3"], STRICT["L4"], STRICT["L5"], STRICT["L6b"]) == (5e-6, 5e-6, 1e-5, 5e-4)
    assert (STRICT["L6a distance"], STRICT["L6a update"], STRICT["L6a moments"]) == (1e-4, 2e-6, 1e-6)
    assert (STRICT["L7 loss"], STRICT["L7 weights"], STRICT["L8"], STRICT["L0"]) == (1e-5, 1e-3, 1e-5, 0)
    assert (BF16["L1"], BF16["L2 forward"], BF16["L2 backward"], BF16["L3"]) == (1e-2, 1.5e-2, 5e-2, 2.5e-2)
    assert (BF16["L4"], BF16["L5"], BF16["L7 loss"], BF16["L7 mean of last 50"]) == (2e-3, 0.15, 2e-2, 1e-3)
    assert TF32["L3"] == BF16["L3"] / 8
    assert TF32["L6a update"] == STRICT["L6a update"]


def test_the_oracle_computes_in_float64() -> None:
    """Logits, loss and gradients move with the 12th digit of a weight; float32 would not notice."""
    config = mutant_config()
    oracle = open_twin(BACKENDS["cpu"], config, "float64")
    weights = material.widened(config)
    batch = material.batches(config, 0)[0]
    key = np.array([1, 2], np.uint32)
    results = []
    for shift in (0.0, 1e-12):
        oracle.set_weights({n: v.astype(np.float64) + shift for n, v in weights.items()})
        loss, gradients = oracle.gradients(batch, key)
        results.append((loss, gradients["position_embedding.weight"], oracle.logits(batch.tokens)))
    (loss, gradient, logits), (other_loss, other_gradient, other_logits) = results
    assert gradient.dtype == logits.dtype == np.float64
    assert 0 < abs(loss - other_loss) < 1e-9
    assert 0 < relative(gradient, other_gradient) < 1e-9
    assert 0 < relative(logits, other_logits) < 1e-9


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_the_optimisers_oracle_is_adamw(clip: float) -> None:
    """Against PyTorch's own in float64: apart by what its constants lose in float32, and by no more."""
    optim = OptimConfig(beta1=0.9, beta2=0.99, weight_decay=0.1, grad_clip=clip)
    generator = np.random.default_rng(0)
    start = {"w": generator.standard_normal((5, 4)), "b": generator.standard_normal(4)}
    exact = ExactAdamW(optim)
    exact.set_weights(start)
    parameters = {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in start.items()}
    groups = [{"params": [parameters["w"]], "weight_decay": 0.1}, {"params": [parameters["b"]], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.99), eps=optim.adam_eps)
    for step in range(50):
        gradients = {name: generator.standard_normal(value.shape) for name, value in start.items()}
        for name, parameter in parameters.items():
            parameter.grad = torch.from_numpy(gradients[name].copy())
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), clip or float("inf"))
        adamw.step()
        assert exact.update(gradients, step, 1e-2) == pytest.approx(float(norm), rel=1e-12)
    for name, parameter in parameters.items():
        assert relative(exact.weights()[name], parameter.detach().numpy()) < 1e-6
        assert relative(exact.moments()[f"exp_avg_sq.{name}"], adamw.state[parameter]["exp_avg_sq"].numpy()) < 1e-6


def test_weights_one_unit_off_are_neighbours() -> None:
    weights = material.fresh(mutant_config())
    moved = material.nudged(weights, 0)
    for name, value in weights.items():
        up = np.nextafter(value, np.float32(np.inf)) == moved[name]
        down = np.nextafter(value, np.float32(-np.inf)) == moved[name]
        assert (up | down).all()
        assert value.size < 8 or (up.any() and down.any())


def test_widened_weights_are_wide_and_no_wider_than_noise_allows() -> None:
    narrow = mutant_config()
    wide = dataclasses.replace(narrow, model=dataclasses.replace(narrow.model, n_embd=256))
    for config, std in ((narrow, 0.2), (wide, 0.1)):
        weight = material.widened(config)["blocks.0.feed_forward.up_proj.weight"]
        assert weight.std() == pytest.approx(std, rel=0.05)


def test_tokens_can_be_learnt_and_are_the_same_every_time() -> None:
    tokens = material.token_stream(50, 1)
    assert tokens is material.token_stream(50, 1)
    assert 0 <= tokens.min() < tokens.max() < 50
    pairs = list(itertools.pairwise(tokens.tolist()))
    commonest = {a: max(set(n), key=n.count) for a in range(50) if (n := [y for x, y in pairs if x == a])}
    assert np.mean([commonest[a] == b for a, b in pairs]) > 0.6


@pytest.mark.parametrize("prompt", [1, 5, 16, 20])
def test_what_the_model_sees_is_what_generation_shows_it(prompt: int) -> None:
    """The window of the edge rule is the cache of `generate`, also after the cache was begun anew."""
    config = mutant_config()
    twin = open_twin(BACKENDS["cpu"], config, "float32")
    twin.set_weights(material.widened(config))
    ids = list(range(prompt))
    new = twin.generate(ids, SampleSettings(max_new_tokens=40, temperature=0), iter(lambda: 0.0, 1.0))
    for position, token in enumerate(new):
        seen = [*ids, *new[:position]][-_seen(prompt, position, config.model.block_size) :]
        assert choose_token(twin.logits(np.array([seen], np.int32))[0, -1], SampleSettings(temperature=0), 0.0) == token


@pytest.mark.parametrize(
    "settings", [{"temperature": 1.0}, {"temperature": 0.8, "top_k": 5}, {"temperature": 1.0, "top_p": 0.5}]
)
def test_a_draw_is_on_an_edge_only_if_it_is(settings: dict[str, float]) -> None:
    """A choice in the middle of its token's share is none; one that a millionth would change is."""
    climb = mutant_climb()
    weights = material.widened(climb.config)
    for twin in (climb.oracle(), *climb.twins().values()):
        twin.set_weights(weights)
    how = SampleSettings(max_new_tokens=1, **settings)  # type: ignore[arg-type]
    logits = climb.oracle().logits(np.array([[1, 2, 3]], np.int32))[0, -1]
    fine = np.linspace(0, 1, 200_001)[:-1]
    chosen = np.array([choose_token(logits, how, float(draw)) for draw in fine[::100]])
    change = int(np.flatnonzero(np.diff(chosen))[0])
    low, high = float(fine[::100][change]), float(fine[::100][change + 1])
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if choose_token(logits, how, middle) == chosen[change] else (low, middle)
    texts = {"cpu": [0], "mlx-cpu": [1]}
    for draw, edge in ((high, True), (high - 0.004, False)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("convert.parity.rungs.generation.draws", lambda *_, draw=draw: iter([draw]))
            assert _on_an_edge(climb, "mlx-cpu", [1, 2, 3], texts, 0, how) is edge
    assert next(draws(1, 0)) == next(draws(1, 0))


def test_backends_are_chosen_and_absent_ones_are_named() -> None:
    chosen, missing = choose([])
    assert {"cpu", "mlx-cpu"} <= {backend.name for backend in chosen}
    # Where MLX has no GPU, `mlx` is its CPU: taken when it is asked for, not a second time beside mlx-cpu.
    (best,) = [backend for backend in choose(["mlx", "cpu"])[0] if backend.name == "mlx"]
    assert (best.device, best.compiled) in (("gpu", True), ("cpu", False))
    assert (best in chosen) == (best.device == "gpu")
    assert not any(backend.compiled for backend in chosen if backend.name != "mlx")
    assert not set(missing) & {backend.name for backend in chosen}
    assert set(missing) | {b.name for b in chosen} | {"cpu-compiled", "mlx-cpu-compiled", "mlx"} >= set(BACKENDS) - {
        "mps-compiled",
        "cuda-compiled",
    }
    with pytest.raises(UserError, match="did you mean 'mlx-cpu'"):
        choose(["mlx-cp"])
    with pytest.raises(UserError, match="two backends"):
        choose(["cpu"])
    for name, reason in missing.items():
        with pytest.raises(UserError, match="not present here"):
            choose(["cpu", name])
        assert reason


def test_one_run_of_a_rung_does_not_depend_on_those_before() -> None:
    """Rungs set the weights that they need: a rung alone measures what it measures on the way up."""
    whole = climb_ladder(mutant_climb(), ["L2", "L3", "L5", "L6b"])
    alone = climb_ladder(mutant_climb(), ["L5"])
    assert whole.results[2].measurements == alone.results[0].measurements


def test_a_climb_without_gates_for_a_rung_says_so() -> None:
    climb = Climb(mutant_config(), [BACKENDS["cpu"], BACKENDS["mlx-cpu"]], "bf16")
    (result,) = climb_ladder(climb, ["L6b"]).results
    assert result.passed
    assert result.worst is None
