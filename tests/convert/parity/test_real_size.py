"""S: whole blocks, the whole vocabulary, every micro-step, and what dropout of each kind drops."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from convert.parity.climb import Climb
from convert.parity.command import main
from convert.parity.ladder import Result, climb_ladder
from convert.parity.material import SHORT, at_real_size, spread_batches, with_dropout
from convert.parity.mutants.climb import mutant_climb, mutant_config
from convert.parity.report.console import line
from convert.parity.rungs.real_size import planned_bytes, too_large
from convert.parity.twins.twin import Dropped
from gpt_common.config import RunConfig, load_preset
from gpt_common.machine.backends import BACKENDS
from gpt_common.network.parameters import parameter_shapes

pytestmark = pytest.mark.parity

PAIR = [BACKENDS["cpu"], BACKENDS["mlx-cpu"]]


def preset(name: str) -> RunConfig:
    """A preset at its own size; one that leaves its vocabulary to the tokenizer has bytes."""
    config = load_preset(name)
    config = config if config.model.vocab_size else config.with_vocabulary(256)
    return with_dropout(config, config.model.dropout)


def climbed(climb: Climb) -> Result:
    """What rung S measures; it must hold."""
    (result,) = climb_ladder(climb, ["S"]).results
    print(line(result))
    assert result.passed, line(result)
    assert result.measurements, result.note
    return result


@pytest.mark.parametrize("name", ["stories-cpu", "llama-tiny", "custom-llm-tiny", "deepseek-tiny"])
def test_small_presets_climb_at_their_own_size(name: str) -> None:
    result = climbed(Climb(preset(name), PAIR))
    assert "block 128, vocabulary 256, width 64, 5 micro-steps of one sequence" in result.note
    assert {m.state for m in result.measurements} == {"fresh", "widened"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["shakespeare-char", "gpt2", "smollm-135m", "custom-llm-1b"])
def test_large_presets_climb_at_their_own_size(name: str) -> None:
    climbed(Climb(preset(name), PAIR))


@pytest.mark.parametrize("block_size", [33, 63, 97, 129])
def test_blocks_off_the_multiples_of_tiles(block_size: int) -> None:
    config = mutant_config()
    model = dataclasses.replace(config.model, block_size=block_size)
    result = climbed(Climb(dataclasses.replace(config, model=model), PAIR))
    assert f"block {block_size}, " in result.note


def test_ids_beyond_sixteen_bits() -> None:
    climb = mutant_climb(real="many ids")
    assert sum(int(batch.tokens.max() > 65_535) for batch in spread_batches(climb.at_real_size().config)) == 5
    climbed(climb)


def test_every_site_drops_its_share_by_its_own_masks_and_by_shared_ones() -> None:
    result = climbed(mutant_climb())
    shares = [m for m in result.measurements if m.tensor.endswith(": share")]
    # After the embedding, and three in each of two blocks; in both twins.
    assert [sum(m.tensor.startswith(f"{rng} ") for m in shares) for rng in ("native", "shared")] == [14, 14]
    assert all(0 < m.gate < 0.03 for m in shares)


def test_dropped_counts_what_was_there() -> None:
    before = np.array([1.0, 0.0, 2.0, 4.0])
    assert Dropped.between(before, np.array([2.0, 0.0, 0.0, 8.0]), 0.5) == Dropped(1, 3, 0.0)
    assert Dropped.between(before, before * 0.5, 0.5).scaled_wrongly == 0.75


def test_only_what_repeats_is_cut() -> None:
    whole = load_preset("gpt2")
    config = at_real_size(whole)
    for name in ("block_size", "vocab_size", "n_embd", "n_head"):
        assert getattr(config.model, name) == getattr(whole.model, name)
    assert (config.model.n_layer, config.train.batch_size, config.train.grad_accum_steps) == (2, 1, 40)
    assert at_real_size(load_preset("stories-cpu")).train.grad_accum_steps == 5
    kinds = {at_real_size(load_preset("deepseek-tiny")).model.has_experts(layer) for layer in range(2)}
    assert kinds == {False, True}
    first, *others = spread_batches(config)
    assert first.tokens.shape == (1, 1024)
    assert {batch.tokens.shape for batch in others} == {(1, SHORT)}
    assert all((batch.tokens.min(), batch.tokens.max()) == (0, 50_256) for batch in (first, *others))


def test_a_checkpoint_gives_the_layers_that_are_climbed() -> None:
    config = dataclasses.replace(mutant_config(), model=dataclasses.replace(mutant_config().model, n_layer=3))
    weights = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(config.model).items()}
    climb = Climb(config, PAIR, checkpoint_weights=weights).at_real_size()
    assert climb.checkpoint_weights is not None
    assert climb.checkpoint_weights.keys() == parameter_shapes(climb.config.model).keys()
    assert len(climb.checkpoint_weights) < len(weights)


def test_what_does_not_fit_says_so() -> None:
    climb = Climb(preset("gpt2-xl"), PAIR).at_real_size()
    assert too_large(climb, None) == too_large(climb, planned_bytes(climb)) == ""
    assert " GiB, this machine has 8.00 GiB" in too_large(climb, 8 * 2**30)
    climb.most_flops = 1e10
    assert "FLOPs a pass, 1e+10 at most in this mode" in too_large(climb, None)


def test_the_quick_mode_leaves_out_what_takes_long_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--mode", "quick", "--backends", "cpu,mlx-cpu", "--preset", "gpt2", "--rung", "L4,S"])
    *_, rung, verdict = capsys.readouterr().out.splitlines()
    assert rung.startswith("S    real size")
    assert "left out: " in rung
    assert verdict.startswith("parity holds on 1 rungs")
