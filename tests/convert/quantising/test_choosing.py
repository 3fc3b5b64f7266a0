"""Which matrices are quantised, and how that is said."""

from __future__ import annotations

from convert.quantising.choosing import choose, lines_of
from gpt_common.adapting.quantisation import Grid, quantisable
from gpt_common.config import load_preset
from gpt_common.network.parameters import parameter_shapes


def test_layers_are_said_together() -> None:
    shapes = parameter_shapes(load_preset("deepseek-tiny").with_vocabulary(64).model)
    choice = choose(shapes, Grid(4, 32), keep=("blocks.0",), layer_bits=("down_proj=6",))
    said = "\n".join(lines_of(choice))
    assert set(choice.grids) | set(choice.floats) >= set(quantisable(shapes))
    assert "asked for" in said
    assert "router" in said
    assert all(len(line) <= 110 for line in said.splitlines())
