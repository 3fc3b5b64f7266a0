"""A failure is traced to the first tensor that diverges and to the operation that made it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import pytest

from convert.parity.blame import paragraph, search
from convert.parity.climb import Climb
from convert.parity.ladder import Report, climb_ladder
from convert.parity.mutants.climb import mutant_climb, wrap
from convert.parity.mutants.every import MUTANTS
from mlx_gpt import layers

pytestmark = pytest.mark.parity

SCALE = 1.01


def five_layers() -> Climb:
    """A climb of a model that has a block 3 with others around it."""
    climb = mutant_climb()
    climb.config = dataclasses.replace(climb.config, model=dataclasses.replace(climb.config.model, n_layer=5))
    return climb


@contextmanager
def fault_in_backward(climb: Climb, framework: str) -> Iterator[None]:
    """The forward pass of block 3's out_proj is right; its gradients are one per cent too large."""
    if framework == "torch":
        twin: Any = climb.twins()["cpu"]
        layer = twin.network.blocks[3].attention.out_proj
        right = layer.forward
        layer.forward = lambda x: SCALE * right(x) - ((SCALE - 1) * right(x)).detach()
        yield
        return
    twin = climb.twins()["mlx-cpu"]
    faulty = twin.network.blocks[3].attention.out_proj

    def wrong(call: Any) -> Any:
        return lambda self, x: (
            SCALE * call(self, x) - mx.stop_gradient((SCALE - 1) * call(self, x)) if self is faulty else call(self, x)
        )

    with wrap(layers.Linear, "__call__", wrong):
        yield


@pytest.mark.parametrize("framework", ["mlx", "torch"])
def test_a_fault_in_the_backward_pass_of_one_layer_is_named(framework: str) -> None:
    climb = five_layers()
    with fault_in_backward(climb, framework):
        report = climb_ladder(climb)
        assert report.failed is not None
        text = paragraph(report, "python -m convert parity --preset x")
    assert report.failed.rung.name == "L2"
    assert "Made by `blocks.3.attention.out_proj` backward" in text
    assert "First tensor in execution order that diverges: gradient of blocks.3.attention.out_proj" in text
    assert ("Parity of cpu " if framework == "torch" else "Parity of mlx-cpu ") in text
    assert "n_layer 5" in text
    assert "Repeat: python -m convert parity --preset x" in text
    assert all(f"{package} " in text for package in ("mlx", "torch", "numpy", "python"))


@pytest.mark.parametrize(
    ("mutant", "tensor", "operation"),
    [
        ("mask off by one under dropout", "blocks.0.attention.out_proj input", "the mask"),
        ("square out_proj transposed", "blocks.0.attention.out_proj output", "`blocks.0.attention.out_proj` forward"),
        ("no positions", "position_embedding output", "`position_embedding` forward"),
        ("positions counted backwards", "position_embedding input", "outside its layers"),
        ("labels not shifted", "loss", "the labels"),
        ("decay on biases and norms", "update of", "the optimiser's update"),
        ("batch order reseeded on resume", "loss, step", "the order of batches"),
        ("tanh GELU for the exact one", "gelu: ", "this operation itself"),
    ],
)
def test_what_is_wrong_is_named(mutant: str, tensor: str, operation: str) -> None:
    found = next(m for m in MUTANTS if m.name == mutant)
    with found.change():
        climb = mutant_climb(found.family)
        report: Report = climb_ladder(climb)
        assert report.failed is not None
        blame = search(climb, report.failed)
    assert tensor in blame.tensor
    assert operation in blame.operation
    assert blame.error > blame.gate
