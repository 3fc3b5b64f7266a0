"""Which matrices are quantised, and how that is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from convert.quantising.choosing import choose, lines_of
from convert.quantising.command import Quantise
from gpt_common.adapting.quantisation import Grid, quantisable
from gpt_common.config import load_preset
from gpt_common.errors import UserError
from gpt_common.network.parameters import parameter_shapes


def test_layers_are_said_together() -> None:
    shapes = parameter_shapes(load_preset("deepseek-tiny").with_vocabulary(64).model)
    choice = choose(shapes, Grid(4, 32), keep=("blocks.0",), layer_bits=("down_proj=6",))
    said = "\n".join(lines_of(choice))
    assert set(choice.grids) | set(choice.floats) >= set(quantisable(shapes))
    assert "asked for" in said
    assert "router" in said
    assert all(len(line) <= 80 for line in said.splitlines())


def test_a_part_of_a_name_means_all_that_have_it() -> None:
    shapes = parameter_shapes(load_preset("deepseek-tiny").with_vocabulary(64).model)
    matrices = set(quantisable(shapes))
    for part in ("experts", "attention", "blocks.1", "blocks.1.attention", "up_proj", "experts.up_proj"):
        kept = {name for name in choose(shapes, Grid(4, 32), keep=(part,)).floats if name in matrices}
        others = {name for name in choose(shapes, Grid(4, 32)).floats if name in matrices}
        assert kept - others == {name for name in matrices - others if f".{part}." in f".{name}."}, part
    for wrong, hint in (("atention", "did you mean 'attention'?"), ("mixture", "choose from: "), ("", "choose from: ")):
        with pytest.raises(UserError) as error:
            choose(shapes, Grid(4, 32), keep=(wrong,))
        assert hint in str(error.value)
        assert len(str(error.value)) < 350, "not a name for each layer"


def test_what_would_do_nothing_is_refused() -> None:
    for given in ({"steps": 100}, {"rate": 0.01, "calibrate": "gptq"}):
        with pytest.raises(UserError, match="is of tuning, which --calibrate dwq does"):
            Quantise(src=Path("run"), **given)
    assert Quantise(src=Path("run"), steps=100, calibrate="dwq").steps == 100
