"""Rows with quantised matrices: what they are, what is measured, and what is said of them beside float rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.grids import beside_grids, expected_weight_bytes, grids_on
from benchmarks.measuring.backends import BACKENDS, choose_backends
from benchmarks.measuring.checks import other_weights
from benchmarks.measuring.session import describe_job, jobs, together
from benchmarks.readings import Generation, PromptLength
from benchmarks.report.beside import beside, beside_floats
from benchmarks.report.compare import pair_cases
from benchmarks.report.page import render_page, same_text
from benchmarks.report.table import print_result
from benchmarks.results import BackendRow, Result, Settings, to_json
from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.adapting.quantisation import Grid
from gpt_common.errors import UserError
from gpt_common.network.flops import flops_per_step_exact, flops_per_token_palm, parameter_count
from tests.benchmarks.recipes import CONFIG, SPEEDS, changed, figures, make_result, make_session, worker
from tests.benchmarks.test_run import run

GRID = Grid(4, 64)
FAST = {**SPEEDS, "mps-4bit": 0.0126, "mlx-4bit": 0.0060, "cpu-4bit": 0.0300}
SHORT = Settings(rounds=6, cooldown=0.0, generation=True)
ONCE = SHORT.model_copy(update={"rounds": 1, "seconds": 0.3})


def in_bits(
    change: Callable[[dict[str, Any], dict[str, Any]], None] = lambda *_: None, settings: Settings = ONCE
) -> Result:
    """A made-up result with quantised rows, whose workers' answers are changed."""
    honest = worker(FAST)

    def answer(job: dict[str, Any], progress: Any, **more: Any) -> dict[str, Any]:
        event = honest(job, progress, **more)
        change(job["backend"], event)
        return event

    return make_result(run=answer, peers="", grid=GRID, settings=settings)


@pytest.fixture(scope="module")
def result() -> Result:
    return in_bits(settings=SHORT)


def rows(result: Result) -> dict[str, BackendRow]:
    return {row.label: row for row in result.cases[0].rows}


# --- which rows there are


def test_each_backend_of_ours_has_a_row_in_bits_behind_its_own() -> None:
    found = choose_backends("mlx,mps-bf16", "transformers", grid=GRID)
    assert [row.name for row in found] == ["mlx", "mlx-4bit", "mps-bf16", "mps-bf16-4bit", "transformers-mps"]
    assert [row.grid for row in found] == [None, GRID, None, GRID, None]
    assert [row.on_ladder for row in found[:4]] == ["mlx", "mlx", "mps", "mps"]
    # Other groups are another row: two results never compare one with the other.
    assert BACKENDS["cpu"].quantised(Grid(3, 32)).as_control().label == "cpu-3bit-g32 again"


def test_adapters_are_what_is_trained_beside_words() -> None:
    assert beside_grids(CONFIG, None) is CONFIG
    assert beside_grids(CONFIG, GRID).adapter == AdapterConfig(adapter="lora")
    own = replace(CONFIG, adapter=AdapterConfig(adapter="dora", adapter_rank=3))
    assert beside_grids(own, GRID) == own


def test_what_has_no_whole_groups_stays_float_and_nothing_at_all_is_refused() -> None:
    odd = replace(CONFIG, model=replace(CONFIG.model, n_embd=96, feed_forward_width=128))
    assert {name.rpartition(".")[2] for name in grids_on(odd, GRID)} == {"down_proj"}
    narrow = replace(CONFIG, model=replace(CONFIG.model, n_embd=8))
    with pytest.raises(UserError, match="whole groups of 64: take a smaller --group-size"):
        beside_grids(narrow, GRID)
    halved = replace(CONFIG, adapter=AdapterConfig(adapter="lora", adapter_base_dtype="bfloat16"))
    with pytest.raises(UserError, match="--adapter-base-dtype"):
        beside_grids(halved, GRID)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--group-size", "32"], "add --bits"),
        (["--bits", "7"], "--bits '7' is not a choice"),
        (["--bits", "4", "--peers", "transformers"], "leave --peers out"),
        (["--bits", "4", "--overhead"], "leave --overhead out"),
        (["--bits", "4", "--n-embd", "8", "--n-head", "1"], "no matrix of this model has rows of whole groups of 64"),
        (["--bits", "4", "--sweep", "n_embd=64,8"], "no matrix of this model has rows of whole groups of 64"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


# --- what is measured


def test_a_mutant_that_is_not_quantised_is_rejected() -> None:
    def float_weights(backend: dict[str, Any], event: dict[str, Any]) -> None:
        if backend["name"] == "mlx-4bit" and "weight_bytes" in event["about"]:
            event["about"]["weight_bytes"] = expected_weight_bytes(CONFIG, None)

    found = rows(in_bits(float_weights))
    assert found["mlx-4bit"].status == "rejected"
    assert "kept in another way" in str(found["mlx-4bit"].reason)
    assert found["mps-4bit"].status == "measured"
    assert other_weights(None, 4) is None


def test_losses_agree_among_quantised_rows_and_differ_from_those_of_floats() -> None:
    def rounded(backend: dict[str, Any], event: dict[str, Any]) -> None:
        if backend["bits"] and "losses" in event:
            event["losses"] = [4.1 + 0.1 * (backend["name"] == "cpu-4bit") for _ in event["losses"]]

    found = rows(in_bits(rounded))
    assert {label for label, row in found.items() if row.status == "rejected"} == {"cpu-4bit"}
    assert "other work" in str(found["cpu-4bit"].reason)


def test_steps_train_adapters_and_generation_has_none() -> None:
    session = make_session(backends="mps,mlx", peers="", grid=GRID, settings=SHORT)
    every = list(jobs(session.cases, SHORT))
    trained = {job.task: describe_job(job, SHORT)["config"]["adapter"]["adapter"] for job in every}
    assert trained == {"steps": "lora", "generation": "none"}
    order = [job.row.backend.name for job in every if job.task == "generation"]
    forward = ["mps", "mps-4bit", "mlx", "mlx-4bit"]
    assert order == 3 * [*forward, *forward[::-1]]


def test_rounds_of_generation_stand_one_behind_the_other() -> None:
    def one(number: int, seconds: float, digest: str = "a" * 64) -> Generation:
        lengths = [PromptLength(prompt=4, prompt_seconds=[seconds], token_seconds=[seconds / 2])]
        return Generation(new_tokens=32, lengths=lengths, greedy_sha256=digest, rounds=[number])

    both = together(one(0, 1.0), one(1, 3.0))
    assert both.rounds == [0, 1]
    assert both.lengths[0].prompt_seconds == [1.0, 3.0]
    assert both.lengths[0].token_seconds == [0.5, 1.5]
    assert both.greedy_sha256 == "a" * 64
    # Another text in another round is the same as nobody's.
    assert together(one(0, 1.0), one(1, 1.0, "b" * 64)).greedy_sha256 not in ("a" * 64, "b" * 64)


def test_work_counts_what_an_adapter_s_step_computes_in_float_and_in_bits(result: Result) -> None:
    work, adapter = result.cases[0].work, AdapterConfig(adapter="lora")
    assert (work.adapter, work.parameters) == ("lora, rank 8", parameter_count(CONFIG.model))
    # Of each block: qkv_proj, out_proj, up_proj, down_proj, each with two thin matrices of rank 8.
    assert work.trained_parameters == 4 * 8 * (128 + 384 + 128 + 128 + 128 + 512 + 512 + 128)
    assert work.flops_per_step == 768 * flops_per_token_palm(CONFIG.model, adapter=adapter)
    assert work.flops_per_step_exact == flops_per_step_exact(CONFIG.model, 12, adapter=adapter)
    assert work.flops_per_step < 0.8 * 768 * flops_per_token_palm(CONFIG.model)
    for row in rows(result).values():
        mfu = figures(row).mfu
        assert mfu.a100 == pytest.approx(work.flops_per_step / figures(row).seconds_per_step / 312e12)


# --- what is said


def test_a_quantised_row_is_set_beside_its_float_row(result: Result) -> None:
    found = {one.row.label: one for one in beside_floats(result.cases[0])}
    assert set(found) == {"mps-4bit", "mlx-4bit", "cpu-4bit"}
    for name, one in found.items():
        floats = name.removesuffix("-4bit")
        assert one.floats.label == floats
        for ratio in (one.step, one.reading, one.writing):
            assert ratio is not None
            assert ratio.rounds == 6
            assert ratio.value == pytest.approx(FAST[name] / FAST[floats], rel=0.1 if ratio is one.step else 1e-9)
    # 65 x 128 and 12 x 128 x 128 in each of 4 blocks are words; 64 positions and 9 norms are not.
    words, numbers = 65 * 128 + 4 * 12 * 128 * 128, parameter_count(CONFIG.model)
    weights = 4 * (numbers - words) + words // 2 + words // 64 * 8
    assert found["cpu-4bit"].row.weight_bytes == weights
    assert found["cpu-4bit"].bits_per_weight == pytest.approx(8 * weights / numbers)


def test_table_and_page_say_what_is_in_bits(result: Result, capsys: pytest.CaptureFixture[str]) -> None:
    print_result(result)
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "float32, lora, rank 8" in out
    for name in ("mps", "mlx", "cpu"):
        assert f"{name}-4bit: weights 534.1 kB, 5.31 bits each; in float32 3.2 MB" in out
        for what in ("step", "prompt read", "token written"):
            assert f"{name}-4bit / {name}: {what} " in out
    page = render_page(result)
    assert "<h2>A few bits</h2>" in page
    assert "numbers trained: lora, rank 8" in page
    assert "float and quantised rows each their own" in page


def test_without_bits_nothing_is_said_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    plain = make_result(settings=ONCE)
    print_result(plain)
    assert "bit" not in capsys.readouterr().out
    assert beside_floats(plain.cases[0]) == []
    assert "<h2>A few bits</h2>" not in render_page(plain)
    assert "numbers trained" not in render_page(plain)


def test_the_same_text_is_asked_among_rows_of_the_same_bits(result: Result) -> None:
    of_rows = list(rows(result).values())
    assert same_text(of_rows)

    def other(label: str) -> Callable[[Any], None]:
        def change(plain: Any) -> None:
            for row in plain["cases"][0]["rows"]:
                if row["label"].endswith(label):
                    row["generation"]["greedy_sha256"] = "b" * 64

        return change

    bits = changed(result, other("-4bit"))
    assert same_text(bits.cases[0].rows)
    assert not same_text(changed(result, other("mlx-4bit")).cases[0].rows)


def test_a_float_row_that_is_missing_leaves_nothing_to_compare() -> None:
    def fail(backend: dict[str, Any], event: dict[str, Any]) -> None:
        if backend["name"] == "cpu":
            event.clear()
            event |= {"event": "failed", "reason": "gone"}

    case = in_bits(fail).cases[0]
    assert {one.row.label for one in beside_floats(case)} == {"mps-4bit", "mlx-4bit"}
    assert not any("cpu-4bit" in line for line in beside(case))


# --- the file


def test_a_result_without_bits_has_no_word_of_them_and_an_older_one_is_read(result: Result) -> None:
    plain = json.loads(to_json(make_result(settings=Settings(rounds=1, seconds=0.3, cooldown=0.0), peers="")))
    (case,) = plain["cases"]
    assert not {"adapter", "trained_parameters"} & set(case["work"])
    for row in case["rows"]:
        assert not {"bits", "group_size"} & set(row)
        row.pop("weight_bytes")
    old = Result.model_validate_json(json.dumps(plain), strict=True)
    assert json.loads(to_json(old)) == plain
    case = json.loads(to_json(result))["cases"][0]
    (row,) = [row for row in case["rows"] if row["label"] == "cpu-4bit"]
    assert (row["bits"], row["group_size"]) == (4, 64)
    assert row["generation"]["rounds"] == [0, 1, 2, 3, 4, 5]


def test_steps_of_adapters_are_not_compared_with_those_of_whole_models(result: Result) -> None:
    whole = make_result(settings=Settings(rounds=1, seconds=0.3, cooldown=0.0), peers="")
    with pytest.raises(UserError, match=r"adapter\.adapter is lora in the one and none in the other"):
        pair_cases(result, whole)
