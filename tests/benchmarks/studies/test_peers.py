"""Ours beside other people's: equal work or no figure, turns of any number of sides. Nothing here is timed."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.studies import peers, turns
from benchmarks.studies.peers import (
    LARGEST_DIFFERENCE,
    PeersStudy,
    chosen_sides,
    compare,
    configuration,
    main,
    open_side,
    prepare_generation,
    row,
    start,
    text_length,
)
from benchmarks.studies.turns import Note, Proofs, measure, ratios_of
from gpt_common.errors import UserError, WorkFailed
from tests.benchmarks.nanogpt import write_nanogpt


def test_all_write_the_same_text_and_draw_as_many_tokens(tmp_path: Path) -> None:
    command = PeersStudy(work="generation", preset="stories-cpu", nanogpt_path=write_nanogpt(tmp_path))
    texts = []
    for side in chosen_sides(command):
        text, again = prepare_generation(side, open_side(command, side), 12, sampled=True)
        drawn = again()
        assert isinstance(drawn, list)
        assert len(drawn) == len(text) == 13
        texts.append(text)
    assert len(texts) == 4
    assert all(text == texts[0] for text in texts)


def test_a_peer_with_another_text_has_no_figure(tmp_path: Path) -> None:
    # The loss, at which a step is looked at, is right; what it takes as likeliest is not.
    folder = write_nanogpt(tmp_path, ("logits.argmax", "(-logits).argmax"))
    command = PeersStudy(work="generation", preset="stories-cpu", tokens=5, nanogpt_path=folder)
    proofs = {"torch": peers.ours("torch", open_side(command, "torch"), 5, False)}
    with pytest.raises(WorkFailed, match="nanogpt writes another text than torch, from token 1 on"):
        start(command, {"torch": [float(token) for token in proofs["torch"]]}, "nanogpt")


def test_the_command_measures_a_step_from_sixty_equal_losses(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURNS", 1)
    path = tmp_path / "figures.json"
    folder, shape = str(write_nanogpt(tmp_path / "clone")), tmp_path / "small.toml"
    shape.write_text("[model]\nvocab_size = 9\nblock_size = 8\nn_layer = 1\nn_head = 1\nn_embd = 16\n")
    flags = ["--nanogpt-path", folder, "--config", str(shape), "--rounds", "1", "--seconds", "0.01"]
    main([*flags, "--json", str(path)])
    found = json.loads(path.read_text())
    assert set(found["seconds"]) == {"torch", "nanogpt"}
    assert 0 <= found["apart"]["nanogpt"] <= LARGEST_DIFFERENCE
    assert set(found["ratios"]) == {"torch / nanogpt"}
    said = capfd.readouterr()
    assert "torch / nanogpt" in said.out
    assert "number of parameters" not in said.out + said.err
    doing = ["torch shows that its work is the same", "nanogpt shows that its work is the same", "warm-up", "turns"]
    assert said.err.splitlines() == [f"round 1 of 1, {what}: 0 %" for what in doing]


def test_losses_may_differ_by_rounding_only() -> None:
    assert compare({"torch": [2.0, 1.0], "nanogpt": [2.0, 1.000004]}, "nanogpt", "step") == pytest.approx(4e-6)
    for wrong in (1.00002, float("nan")):
        with pytest.raises(WorkFailed, match="at step 2 its loss is"):
            compare({"torch": [2.0, 1.0], "nanogpt": [2.0, wrong]}, "nanogpt", "step")
    with pytest.raises(WorkFailed, match="another text"):
        compare({"torch": [0, 5], "nanogpt": [0, 5, 5]}, "nanogpt", "generation")


def test_rounds_begin_in_turn_and_sides_keep_their_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds_of, asked = {"torch": 2.0, "mlx": 3.0, "transformers": 6.0}, []

    def take_turns(
        names: list[str], start: Callable[[str], object], turns: int, _seconds: float, note: Note
    ) -> list[tuple[float, ...]]:
        asked.append(list(names))
        for name in names:
            start(name)
        note("turns")
        return [tuple(seconds_of[name] for name in names)] * turns

    def started(proofs: Proofs, side: str) -> subprocess.Popen[str]:
        proofs[side] = [seconds_of[side]]
        return None  # type: ignore[return-value]

    def apart_of(proofs: Proofs, side: str) -> float:
        return proofs[side][0] - next(iter(proofs.values()))[0]

    monkeypatch.setattr(turns, "take_turns", take_turns)
    seconds, apart = measure(list(seconds_of), started, apart_of, 3, 1.0)
    assert seconds == {name: [pytest.approx(value)] * 3 for name, value in seconds_of.items()}
    assert apart == {"torch": 0.0, "mlx": 1.0, "transformers": 4.0}
    assert asked[0] == asked[2] == asked[1][::-1]
    said = capsys.readouterr()
    doing = [[f"{name} shows that its work is the same" for name in order] + ["turns"] for order in asked]
    assert said.err.splitlines() == [
        f"round {i + 1} of 3, {what}: {100 * i // 3} %" for i in range(3) for what in doing[i]
    ]
    assert said.out == "", "what is said by the way is no part of the table"
    found = ratios_of(seconds["torch"], seconds["transformers"])
    assert found["median"] == pytest.approx(1 / 3)
    assert "at most 0.50: met" in row("torch", "transformers", found, "generation")
    assert "at most 0.50: not met" in row("mlx", "transformers", {**found, "median": 0.51}, "generation")


def test_mistakes_are_named(tmp_path: Path) -> None:
    folder = write_nanogpt(tmp_path)
    for command, message in (
        (PeersStudy(), "^nanogpt needs --nanogpt-path"),
        (PeersStudy(sides="torch,nanogtp"), "did you mean 'nanogpt'"),
        (PeersStudy(sides="torch,mlx"), "and a peer"),
        (PeersStudy(sides="nanogpt", nanogpt_path=folder), "one of ours"),
        (PeersStudy(preset="llama-tiny", nanogpt_path=folder), "nanoGPT has only"),
    ):
        with pytest.raises(UserError, match=message):
            chosen_sides(command)
    with pytest.raises(UserError, match="threads is 0"):
        PeersStudy(threads=0)
    with pytest.raises(UserError, match="add --work generation"):
        PeersStudy(tokens=8)
    with pytest.raises(UserError, match="seconds is nan"):
        PeersStudy(seconds=float("nan"))
    with pytest.raises(UserError, match="there is no folder"):  # before minutes of measuring, not after
        PeersStudy(json=tmp_path / "missing" / "a.json")
    block = configuration(PeersStudy()).model.block_size
    assert text_length(PeersStudy(work="generation")) == block - 1
    with pytest.raises(UserError, match="after a prompt of one"):
        text_length(PeersStudy(work="generation", tokens=block))
    assert chosen_sides(PeersStudy(work="generation")) == ["torch", "mlx", "transformers"]


def test_a_side_that_cannot_begin_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    broken = write_nanogpt(tmp_path, ("import torch\n", "import torch\nraise RuntimeError('broken')\n"))
    with pytest.raises(UserError, match=r"nanogpt: .*RuntimeError: broken"):
        main(["--side", "nanogpt", "--nanogpt-path", str(broken)])
