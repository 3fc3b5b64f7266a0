"""A run that does not fit into memory is refused before anything is allocated, with what would fit."""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path
from typing import Any

import pytest

from gpt_common.config import RunConfig, load_preset
from gpt_common.errors import UserError
from gpt_common.machine.hardware import Hardware
from gpt_common.network.memory import Twin, memory_plan
from gpt_common.network.room import LAYERS_COUNTED, check_room, planned_bytes
from gpt_common.training import opening
from gpt_common.training.command_line import parse_training

GIB = 1 << 30


def config(batch_size: int = 12, **model: Any) -> RunConfig:
    base = load_preset("stories-cpu").with_vocabulary(60)
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, **model),
        train=dataclasses.replace(base.train, batch_size=batch_size),
    )


@pytest.mark.parametrize("twin", ["mlx", "torch"])
def test_what_fits_is_let_through(twin: Twin) -> None:
    check_room(config(), twin, GIB)
    check_room(config(n_layer=10_000), twin, None)


@pytest.mark.parametrize("twin", ["mlx", "torch"])
@pytest.mark.parametrize(
    "wrong", [{"n_layer": 10_000}, {"n_layer": 10**9}, {"batch_size": 10**8}, {"n_embd": 2**20}, {"n_embd": 2**40}]
)
def test_what_cannot_fit_is_refused_at_once(twin: Twin, wrong: dict[str, int]) -> None:
    began = time.process_time()
    with pytest.raises(UserError, match=r"the run needs about [\d.]+ GiB, this machine has 8.00 GiB") as refused:
        check_room(config(**wrong), twin, 8 * GIB)
    assert "--force" in str(refused.value)
    assert len(str(refused.value)) < 240
    assert time.process_time() - began < 10  # not a speed: counting layer by layer would take hours


def test_what_is_offered_fits() -> None:
    with pytest.raises(UserError) as refused:
        check_room(config(batch_size=3000), "torch", GIB)
    offered = re.search(r"--batch-size (\d+) fits \(--grad-accum-steps (\d+)", str(refused.value))
    assert offered
    batch, steps = map(int, offered.groups())
    assert memory_plan(config(batch_size=batch), "torch").total <= GIB
    assert memory_plan(config(batch_size=2 * batch), "torch").total > GIB
    assert batch * steps >= 3000 > batch * (steps - 1)


def test_deep_models_are_scaled_from_shallower_ones() -> None:
    deep = config(n_layer=4 * LAYERS_COUNTED)
    assert planned_bytes(deep, "torch") == pytest.approx(memory_plan(deep, "torch").total, rel=0.02)


@pytest.mark.parametrize("twin", ["mlx_gpt", "torch_gpt"])
def test_a_card_that_the_framework_may_not_be_built_for_makes_no_room(
    twin: str, stories_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a GPU in the machine bfloat16 would fit; a framework for CPUs alone computes in float32."""
    wide = ["--preset", "stories-cpu", "--n-layer", "6", "--n-embd", "128", "--n-head", "8", "--block-size", "256"]
    argv = [*wide, "--batch-size", "16", "--data-dir", str(stories_dir), "--out", str(tmp_path / "run")]
    command, _ = parse_training(argv, prog="x", has_gpu=False)
    model = command.run.with_vocabulary(60)
    half = dataclasses.replace(model, train=dataclasses.replace(model.train, dtype="bfloat16"))
    framework: Twin = "mlx" if twin == "mlx_gpt" else "torch"
    on_gpu = planned_bytes(half, framework, "gpu" if framework == "mlx" else "cuda")
    between = (on_gpu + planned_bytes(model, framework)) // 2
    assert on_gpu < between < planned_bytes(model, framework)
    for kind in ("cpu", "cuda"):
        machine = dataclasses.replace(Hardware(), kind=kind, memory_bytes=between)
        monkeypatch.setattr(opening, "detect", lambda machine=machine: machine)
        with pytest.raises(UserError, match="the run needs about"):
            opening.open_run(command, twin=twin)
    assert not (tmp_path / "run").exists()
