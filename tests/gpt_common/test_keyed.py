"""What comes from keyed numpy streams: initial weights, batches, dropout keys, sampling draws."""

from __future__ import annotations

import hashlib
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_common.commands import SampleSettings
from gpt_common.config import ModelConfig
from gpt_common.data.batches import evaluation_batches, training_batch
from gpt_common.keyed import draws, dropout_key
from gpt_common.network.dropout import threefry_2x32
from gpt_common.network.init import initial_weights
from gpt_common.network.parameters import parameter_shapes
from gpt_common.sampling import choose, window

MODEL = ModelConfig(
    vocab_size=65, block_size=16, n_layer=2, n_head=2, n_embd=32, bias=True, tied_head=False, head_bias=True
)


def test_initial_weights_are_golden() -> None:
    """A change of these bytes changes every run that anybody has seeded: it needs a new format version."""
    digest = hashlib.sha256()
    for name, value in initial_weights(MODEL, seed=1337):
        digest.update(name.encode() + value.tobytes())
    assert digest.hexdigest() == "3c3455c14e96a527e510456d0c2c0fe0a13532bdc826def485734ce66a961d96"


def test_initial_weights_have_their_scale() -> None:
    weights = dict(initial_weights(ModelConfig(vocab_size=500, n_layer=8, n_embd=256), seed=1))
    assert weights["token_embedding.weight"].std() == pytest.approx(0.02, rel=0.02)
    assert weights["blocks.3.attention.qkv_proj.weight"].std() == pytest.approx(0.02, rel=0.02)
    for name in ("blocks.3.attention.out_proj.weight", "blocks.3.feed_forward.down_proj.weight"):
        assert weights[name].std() == pytest.approx(0.02 / 4, rel=0.02)
    assert (weights["final_norm.weight"] == 1).all()


def test_a_layer_more_changes_no_other_layer() -> None:
    shallow = dict(initial_weights(ModelConfig(vocab_size=9, n_layer=2, n_embd=8), seed=3))
    deep = dict(initial_weights(ModelConfig(vocab_size=9, n_layer=3, n_embd=8), seed=3))
    scaled = ("out_proj.weight", "down_proj.weight")  # their scale depends on the depth
    assert all((deep[name] == value).all() for name, value in shallow.items() if not name.endswith(scaled))


def test_shapes_are_in_execution_order() -> None:
    names = list(parameter_shapes(MODEL))
    assert names[0] == "token_embedding.weight"
    assert names[-2:] == ["head.weight", "head.bias"]
    assert names.index("blocks.0.feed_forward.down_proj.bias") < names.index("blocks.1.attention_norm.weight")


TOKENS = np.arange(1000, dtype=np.uint16)


@given(st.integers(0, 2**40), st.integers(0, 10**6), st.integers(0, 9), st.integers(0, 9))
def test_batches_are_a_function_of_their_key(seed: int, step: int, micro_step: int, rank: int) -> None:
    def draw(**other: int) -> np.ndarray:
        key = {"seed": seed, "step": step, "micro_step": micro_step, "rank": rank, **other}
        return training_batch(TOKENS, block_size=8, batch_size=4, **key).tokens

    batch = training_batch(TOKENS, block_size=8, batch_size=4, seed=seed, step=step, micro_step=micro_step, rank=rank)
    tokens, labels = batch.tokens, batch.labels
    assert tokens.shape == labels.shape == (4, 8)
    assert tokens.dtype == labels.dtype == np.int32
    assert (labels == tokens + 1).all()  # the corpus counts upwards
    assert (draw() == tokens).all()
    for other in ({"seed": seed + 1}, {"step": step + 1}, {"micro_step": micro_step + 1}, {"rank": rank + 1}):
        assert (draw(**other) != tokens).any()


def test_batches_reach_both_ends_of_the_corpus() -> None:
    tokens = np.arange(10)
    drawn = [training_batch(tokens, block_size=4, batch_size=64, seed=0, step=step).labels for step in range(20)]
    assert min(batch.min() for batch in drawn) == 1
    assert max(batch.max() for batch in drawn) == 9


def test_evaluation_batches_are_the_same_each_time_and_spread_over_the_split() -> None:
    settings = {"block_size": 8, "batch_size": 4, "batches": 5}
    once, twice = list(evaluation_batches(TOKENS, **settings)), list(evaluation_batches(TOKENS, **settings))
    assert len(once) == 5
    assert all((a.tokens == b.tokens).all() and (a.labels == b.labels).all() for a, b in zip(once, twice, strict=True))
    seen = np.concatenate([batch.tokens for batch in once])
    assert seen.min() == 0
    assert max(batch.labels.max() for batch in once) == 999
    assert all((batch.labels == batch.tokens + 1).all() for batch in once)


@pytest.mark.parametrize(
    ("key", "counter", "answer"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_its_published_answers(
    key: tuple[int, int], counter: tuple[int, int], answer: tuple[int, int]
) -> None:
    """Known answers of threefry-2x32 with 20 rounds, from Random123's test vectors."""
    left, right = (np.array([word], np.uint32) for word in counter)
    found = threefry_2x32(np.array(key, np.uint32), left, right)
    assert tuple(int(word[0]) for word in found) == answer


def test_dropout_keys_differ_in_every_part() -> None:
    keys = {
        dropout_key(*parts).tobytes()
        for parts in [(1, 2, 3, 4), (2, 2, 3, 4), (1, 3, 3, 4), (1, 2, 4, 4), (1, 2, 3, 5)]
    }
    assert len(keys) == 5


@given(st.integers(0, 10**6), st.floats(0.1, 5), st.integers(0, 12), st.floats(0.05, 1.0))
def test_choice_follows_the_distribution_that_was_asked_for(
    seed: int, temperature: float, top_k: int, top_p: float
) -> None:
    logits = np.random.default_rng(seed).normal(size=10).astype(np.float32) * 3
    settings = SampleSettings(temperature=temperature, top_k=top_k, top_p=top_p)
    order = np.argsort(-logits, kind="stable")
    kept = order[: top_k or 10]
    weights = np.exp((logits[kept].astype(np.float64) - logits[kept[0]]) / temperature)
    probabilities = weights / weights.sum()
    kept = kept[: int(np.searchsorted(np.cumsum(probabilities), top_p)) + 1]
    probabilities = probabilities[: len(kept)] / probabilities[: len(kept)].sum()
    # In order of their ids: a rounding error changes no token's place.
    kept, probabilities = np.sort(kept), probabilities[np.argsort(kept)]
    edges = np.concatenate([[0], np.cumsum(probabilities)])
    seen = [token for token, share in zip(kept, probabilities, strict=True) if share > 1e-12]
    for index, token in enumerate(kept):
        if token not in seen:  # a share that is lost beside the others
            continue
        middle = (edges[index] + edges[index + 1]) / 2
        assert choose(logits, settings, float(middle)) == token
    assert choose(logits, settings, 0.0) <= seen[0]
    assert choose(logits, settings, np.nextafter(1.0, 0.0)) == seen[-1]


def test_tokens_that_rounding_makes_change_places_are_chosen_alike() -> None:
    """Two of equal likelihood but for a millionth: either way the same token lies where the draw falls."""
    for first, second in ((1.0, 1.0 + 1e-6), (1.0 + 1e-6, 1.0)):
        logits = np.array([0.0, first, -1.0, second, 0.5], np.float32)
        for settings in (SampleSettings(temperature=1.0), SampleSettings(temperature=1.0, top_k=3)):
            assert choose(logits, settings, 0.3) == 1
            assert choose(logits, settings, 0.7) == 3


def test_greedy_takes_the_likeliest_and_the_first_of_equals() -> None:
    assert choose(np.array([1, 3, 3, 2], np.float32), SampleSettings(temperature=0), 0.99) == 1


def test_draws_are_keyed_by_seed_and_sample() -> None:
    streams = {tuple(islice(draws(seed, sample), 5)) for seed in (1, 2) for sample in (0, 1)}
    assert len(streams) == 4
    assert tuple(islice(draws(1, 0), 5)) in streams
    assert all(0 <= number < 1 for stream in streams for number in stream)


@pytest.mark.parametrize(("length", "kept"), [(1, 1), (15, 15), (16, 12), (17, 12), (100, 12)])
def test_a_full_block_is_cut_to_three_quarters(length: int, kept: int) -> None:
    context = list(range(length))
    assert window(context, 16) == context[-kept:]
