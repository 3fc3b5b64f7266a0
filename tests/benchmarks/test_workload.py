"""What is measured: names, configurations, sweeps, parity before timing, two clocks, and evidence of heat."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import benchmark
from benchmarks.measuring.backends import BACKENDS, choose_backends
from benchmarks.measuring.parity_gate import verify
from benchmarks.measuring.samples import Clocks, Series, marked, sleeping_clock, valid
from benchmarks.measuring.session import Case, Row, expected_losses
from benchmarks.measuring.thermal import CoreCounters, ThrottleWatch
from benchmarks.measuring.work import Batcher
from benchmarks.readings import About
from benchmarks.workload import VOCABULARIES, base_config, parse_sweep, resolve, smallest
from gpt_common.config import DataConfig, ModelConfig, RunConfig, TrainConfig, load_preset, preset_names
from gpt_common.errors import UserError
from tests.borrowed import SHAKESPEARE_CHARACTERS

CONFIG = RunConfig(model=ModelConfig(vocab_size=65))


def test_backends_come_in_the_order_asked_for() -> None:
    assert [b.name for b in choose_backends("mps, mlx,cpu,mlx")] == ["mps", "mlx", "cpu"]


def test_a_peer_gets_a_row_per_device_of_its_framework() -> None:
    rows = choose_backends("mps,mlx,cpu,cpu-compiled", "transformers,mlx-lm")
    assert [b.name for b in rows[4:]] == ["transformers-mps", "transformers-cpu", "mlx-lm-mlx"]
    assert [b.name for b in choose_backends("mlx", "transformers")] == ["mlx", "transformers-cpu"]


@pytest.mark.parametrize(("names", "peers"), [("mxl", ""), ("cpu", "transformer"), ("", ""), (",", "")])
def test_unknown_names_are_refused_with_the_nearest(names: str, peers: str) -> None:
    with pytest.raises(UserError, match=r"did you mean '(mlx|transformers)'|no backend"):
        choose_backends(names, peers)


def test_the_same_backend_twice_is_a_control() -> None:
    again = BACKENDS["cpu"].as_control()
    assert (again.label, again.name, again.original()) == ("cpu again", "cpu", BACKENDS["cpu"])


def test_a_row_in_bfloat16_stands_beside_the_one_that_is_compared() -> None:
    rows = choose_backends("mlx,mlx-bf16,mps-bf16", "mlx-lm")
    assert [(row.label, row.half, row.device) for row in rows] == [
        ("mlx", False, "auto"),
        ("mlx-bf16", True, "auto"),
        ("mps-bf16", True, "mps"),
        ("mlx-lm-mlx", False, "auto"),
    ]
    assert [row.on_ladder for row in rows[:3]] == ["mlx", "mlx", "mps"]
    assert not any(row.half and row.compiled for row in BACKENDS.values())


# --- configuration


def test_the_default_shape_depends_on_the_machine() -> None:
    assert base_config([], has_gpu=True)[0] == "shakespeare-char"
    assert base_config([], has_gpu=False)[0] == "shakespeare-char-cpu"


def test_every_preset_can_be_measured_without_its_data() -> None:
    for name in preset_names():
        config = resolve(base_config(["--preset", name], has_gpu=False)[1])
        assert config.model.vocab_size > 0
        assert config.train.dtype == "float32"


def test_named_vocabularies_are_right() -> None:
    from gpt_common.data import stories
    from gpt_common.data.tokenizers import CharTokenizer

    assert VOCABULARIES["stories"] == CharTokenizer(stories.ALPHABET).vocab_size
    assert VOCABULARIES["shakespeare_char"] == len(SHAKESPEARE_CHARACTERS)


def test_an_unknown_vocabulary_is_asked_for(tmp_path: Path) -> None:
    config = RunConfig(data=DataConfig(dataset="mine", data_dir=str(tmp_path)))
    with pytest.raises(UserError, match="--vocab-size"):
        resolve(config)


@pytest.mark.parametrize("train", [TrainConfig(device="mps"), TrainConfig(compile=True)])
def test_what_backends_decide_is_no_flag(train: TrainConfig) -> None:
    with pytest.raises(UserError, match="--backends"):
        resolve(RunConfig(model=CONFIG.model, train=train))


def test_sweeps() -> None:
    found = parse_sweep("n_layer=2,4", CONFIG)
    assert [(changes, config.model.n_layer) for changes, config in found] == [({"n_layer": 2}, 2), ({"n_layer": 4}, 4)]
    assert parse_sweep("batch-size=3", CONFIG)[0][1].train.batch_size == 3
    assert parse_sweep(None, CONFIG) == [({}, CONFIG)]


@pytest.mark.parametrize(
    ("text", "message"),
    [("n_layer", "write FIELD=VALUE"), ("n_layers=2", "did you mean 'n_layer'"), ("n_layer=two", "whole numbers"),
     ("n_embd=130", "does not divide"), ("dropout=1", "choose from|did you mean")],
)  # fmt: skip
def test_wrong_sweeps_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_sweep(text, CONFIG)


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_can_be_made_small(preset: str) -> None:
    """To find out who is here; with one head it has one of keys, and no layers before those with experts."""
    model = smallest([load_preset(preset).with_vocabulary(54)]).model
    assert (model.n_layer, model.n_embd, model.vocab_size) == (1, 8, 16)
    assert model.feed_forward == load_preset(preset).model.feed_forward


def test_batches_are_the_same_for_everybody() -> None:
    config = smallest([CONFIG])
    one, two = Batcher(config), Batcher(config)
    first, second = one.take(3), two.take(1) + two.take(2)
    assert [step for step, _ in first] == [step for step, _ in second] == [0, 1, 2]
    for (_, a), (_, b) in zip(first, second, strict=True):
        np.testing.assert_array_equal(a[0].tokens, b[0].tokens)
        np.testing.assert_array_equal(a[0].tokens[:, 1:], a[0].labels[:, :-1])
    assert not np.array_equal(first[0][1][0].tokens, first[1][1][0].tokens)


# --- parity before timing


class Ladder:
    """Fails for some backends; keeps count."""

    def __init__(self, broken: Sequence[str] = ()) -> None:
        self.broken = broken
        self.calls: list[list[str]] = []

    def __call__(self, names: Sequence[str]) -> tuple[int, str, str]:
        self.calls.append(list(names))
        report = json.dumps({"class": "strict", "rungs": [], "backends": list(names)})
        bad = [name for name in names if name in self.broken]
        return (1, report, f"L3 fails on {bad[0]}") if bad else (0, report, "")


def test_what_passes_keeps_the_hash_of_its_report() -> None:
    ladder = Ladder()
    verdict = verify(["mlx", "cpu"], ladder)
    assert ladder.calls == [["mlx", "cpu"]]
    assert set(verdict.passed) == {"mlx", "cpu"}
    assert set(verdict.passed.values()) == set(verdict.reports) == set(verdict.summary())


def test_a_single_backend_climbs_beside_the_other_twin() -> None:
    for name, beside in (("mps", "mlx-cpu"), ("mlx", "cpu")):
        ladder = Ladder()
        assert set(verify([name], ladder).passed) == {name}
        assert ladder.calls == [[name, beside]]


def test_one_that_fails_does_not_take_the_others_down() -> None:
    ladder = Ladder(broken=["mps"])
    verdict = verify(["cpu", "mps", "mlx"], ladder)
    assert set(verdict.passed) == {"cpu", "mlx"}
    assert verdict.failed == {"mps": "parity: L3 fails on mps"}


def test_a_broken_reference_passes_nobody() -> None:
    verdict = verify(["cpu", "mps", "mlx"], Ladder(broken=["cpu"]))
    assert set(verdict.failed) == {"cpu", "mps", "mlx"}


def test_a_ladder_that_cannot_be_climbed_passes_nobody() -> None:
    verdict = verify(["cpu", "mlx"], lambda _: (2, "", "no MLX"))
    assert verdict.failed == {"cpu": "parity: no MLX", "mlx": "parity: no MLX"}
    assert verify([], Ladder()).passed == {}


# --- clocks and marks


def test_the_two_clocks_run_alike_while_awake() -> None:
    assert abs((sleeping_clock() - Clocks().awake()) - (sleeping_clock() - Clocks().awake())) < 0.05


def test_marks_in_columns() -> None:
    times = iter([0.0, 0.5, 1.5, 1.5, 2.0, 62.0])
    always = iter([10.0, 11.0, 12.0, 132.0])
    series = Series(2, Clocks(lambda: next(times), lambda: next(always)))
    series.take(lambda: None, lambda _: None)
    series.take(lambda: None, lambda _: None)
    series.mark(0, "outlier")
    series.mark(0, "outlier")
    found = series.samples()
    assert found.seconds == [1.0, 60.0]
    assert found.data_seconds == [0.5, 0.5]
    assert found.start == [0.0, 2.0]
    assert found.marks == {"0": ["outlier"], "1": ["asleep"]}
    assert valid(found) == [0.5]
    assert (marked(found, "asleep"), marked(found, "throttled")) == (1, 0)


def test_intel_counters_of_throttling(tmp_path: Path) -> None:
    files = [tmp_path / f"cpu{i}" / "thermal_throttle" / "core_throttle_count" for i in range(2)]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_text("5\n")
    watch = ThrottleWatch(CoreCounters(tmp_path).read, clock=lambda: 0.0)
    assert watch.known
    assert watch.look() is None
    files[1].write_text("8\n")
    assert watch.look() == "3 throttling events of the processor's cores"
    assert watch.look() is None
    assert watch.seen == ["3 throttling events of the processor's cores"]


def test_without_counters_nothing_is_known(tmp_path: Path) -> None:
    assert not ThrottleWatch(CoreCounters(tmp_path).read).known


def test_rows_in_bfloat16_climb_by_themselves_with_its_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    climbs: list[tuple[list[str], list[str]]] = []

    def made_up(flags: Sequence[str], _: object, rungs: Sequence[str]) -> Ladder:
        assert list(rungs) == ["L0", "L1", "L2", "L3", "L4", "L5"]

        class Watched(Ladder):
            def __call__(self, names: Sequence[str]) -> tuple[int, str, str]:
                climbs.append((list(names), list(flags)))
                code, report, said = super().__call__(names)
                return code, report.replace("strict", flags[1]), said

        # In bfloat16 MPS is made to fail.
        return Watched(broken=["mps"] if "bfloat16" in flags else [])

    monkeypatch.setattr(benchmark, "ladder", made_up)
    rows = {row.name: Row(row) for row in choose_backends("mlx,mps,mlx-bf16,mps-bf16")}
    verdict = benchmark.prove(rows, "no preset", "float32", {"MLX_ENABLE_TF32": "0"})
    assert climbs[0] == (["mlx", "mps"], ["--dtype", "float32"])
    assert climbs[1] == (["mlx", "mps"], ["--dtype", "bfloat16"])
    assert {name: row.verified for name, row in rows.items() if row.open} == {"mlx": "parity", "mps": "parity"}
    assert "L3 fails on mps" in str(rows["mps-bf16"].reason)
    assert set(verdict.passed) == {"mlx", "mps"}


def test_losses_are_compared_within_a_dtype_and_else_by_the_coarser_one() -> None:
    rows = [Row(BACKENDS[name], about=About(dtype=dtype)) for name, dtype in (("mlx", "float32"), ("cpu", "float32"))]
    half = Row(BACKENDS["mlx-bf16"], about=About(dtype="bfloat16"))
    for losses, row in (([1.0], rows[0]), ([2.0], rows[1]), ([3.0], half)):
        row.processes.append(SimpleNamespace(losses=losses))  # type: ignore[arg-type]
    case = Case("base", {}, CONFIG, [*rows, half])
    assert expected_losses(case, "float32") == ([1.0], "float32")
    assert expected_losses(case, "bfloat16") == ([3.0], "bfloat16")
    assert expected_losses(Case("base", {}, CONFIG, rows), "bfloat16") == ([1.0], "float32")
    assert expected_losses(Case("base", {}, CONFIG, []), "bfloat16") == ([], "bfloat16")
