"""What lm-eval is told of a model here is what its own `hf` model tells of the same weights; in both twins."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from convert.__main__ import main as convert
from convert.parity.mutants.planted import Edit, planted
from gpt_common.data.__main__ import main as prepare
from gpt_common.judging import harness
from gpt_common.judging.harness import Harness
from gpt_common.training.source import open_source
from tests.twins import TWINS, train

BLOCK = 48
WORDS = [
    "the",
    "a",
    "frog",
    "hen",
    "sat",
    "ran",
    "on",
    "under",
    "log",
    "pond",
    "naïve",
    "東京",
    "café",
    "–",
    "¿qué?",
    "and",
]
PAIRS = [
    ("the frog sat", " on a log"),
    ("the frog sat", " under a log"),  # more than one behind one context
    ("the frog sat", " on"),
    ("the frog sat ", "on a log"),  # a blank that belongs to what follows
    ("the frog ran   ", "under"),
    ("the frog\n", "sat"),
    ("café – ", "naïve 東京"),
    ("東", "京 and"),  # a boundary within a token, perhaps
    ("", "the hen"),
    ("", "é"),
    ("a", " log on the pond and a frog sat under the hen"),  # longer than its context
    ("the frog sat on a log and " * 12, "the hen ran"),  # more than the block holds
    ("the pond " * 12, " on the log" * 12),  # so is this, nearly all of it predicted
]
TEXTS = ["the", "the frog sat on a log", "¿qué? 東京 and café " * 9, "the frog " * BLOCK, "hen " * BLOCK]


def text(seed: int, words: int) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(WORDS[i] for i in (rng.random(words) ** 2 * len(WORDS)).astype(int))


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on a few words, and the same as a folder of transformers."""
    folder = tmp_path_factory.mktemp(str(request.param))
    (folder / "words.txt").write_text("\n".join(text(seed, 400) for seed in range(12)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare(["prepare", "--text", "words.txt", "--name", "words", "--tokenizer", "bpe", "--vocab-size", "290"])
        family = ["--preset", "llama-tiny"] if request.param == "llama" else ["--bias"]
        shape = ["--n-layer", "2", "--n-head", "2", "--n-embd", "32", "--block-size", str(BLOCK)]
        if request.param == "llama":
            shape += ["--n-kv-head", "1"]
        steps = ["--max-steps", "40", "--eval-batches", "1", "--learning-rate", "3e-3", "--dataset", "words"]
        train("torch_gpt", *family, *shape, *steps, "--out", folder / "run")
        convert(["export", str(folder / "run"), "--to", "transformers", "-o", str(folder / "exported")])
    return folder / "run", folder / "exported"


@pytest.fixture(scope="module")
def theirs(run: tuple[Path, Path]) -> Any:
    """lm-eval's own."""
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(1)
    return HFLM(pretrained=str(run[1]), device="cpu", dtype="float32", batch_size=2, max_length=BLOCK)


def ours(run: Path, twin: str) -> Harness:
    source = open_source(run, latest=True)
    found: list[Harness] = []
    module = importlib.import_module(f"{twin}.evaluate")
    build = importlib.import_module(f"{twin}.checkpoint").build_model
    dtype = {"torch_gpt": torch.float32}.get(twin) or importlib.import_module("mlx.core").float32
    model = build(source.checkpoint, source.model, dtype)
    found.append(harness.Harness(module.Scorer(model, source.tokenizer.vocab_size), source.tokenizer))
    return found[0]


def instances(kind: Any, arguments: list[Any]) -> list[Instance]:
    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


def pairs() -> list[Instance]:
    return instances("loglikelihood", PAIRS)


def check(mine: Any, their: Any, twin: str = "") -> None:
    """Nats within 1e-4 of theirs, and whatever would be said the same."""
    for one, other in zip(mine.loglikelihood(pairs()), their.loglikelihood(pairs()), strict=True):
        assert math.isclose(one[0], other[0], abs_tol=1e-4), (one, other)
        assert one[1] == other[1]
    rolling = instances("loglikelihood_rolling", [(each,) for each in TEXTS])
    for nats, expected in zip(mine.loglikelihood_rolling(rolling), their.loglikelihood_rolling(rolling), strict=True):
        assert math.isclose(nats, expected, abs_tol=1e-4), twin


@pytest.mark.parametrize("twin", TWINS)
def test_log_likelihoods_are_those_of_hf(run: tuple[Path, Path], theirs: Any, twin: str) -> None:
    check(ours(run[0], twin), theirs, twin)


def test_the_twins_agree(run: tuple[Path, Path]) -> None:
    one, other = (ours(run[0], twin) for twin in TWINS)
    for (nats, chosen), (beside, also) in zip(one.loglikelihood(pairs()), other.loglikelihood(pairs()), strict=True):
        assert math.isclose(nats, beside, abs_tol=2e-5)
        assert chosen == also


@pytest.mark.parametrize("twin", TWINS)
def test_what_is_written_is_what_hf_writes(run: tuple[Path, Path], theirs: Any, twin: str) -> None:
    asked: list[Any] = [
        ("the frog sat", {"until": ["\n", " and"], "max_gen_toks": 20}),
        ("a", {"until": [" pond"], "max_gen_toks": 24, "do_sample": False}),
        ("café – naïve", {"until": [], "max_gen_toks": 9}),
        ("the hen ran on a log " * 9, {"until": [" the"], "max_gen_toks": 12}),
    ]
    mine = ours(run[0], twin).generate_until(instances("generate_until", asked))
    assert mine == theirs.generate_until(instances("generate_until", asked))
    assert any(mine)


def tasks(folder: Path) -> dict[str, Any]:
    """Choices with trailing blanks, many bytes and no context, and texts: files of one's own, found by their folder."""
    rng = np.random.default_rng(5)
    rows = [
        {
            "q": ["the frog sat ", "", "東京 and ", "the hen ran on a log and " * 9][i % 4],
            "c": [text(1000 + 3 * i + k, int(rng.integers(1, 6))) for k in range(3)],
            "a": i % 3,
        }
        for i in range(24)
    ]
    (folder / "mc.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "ppl.jsonl").write_text("\n".join(json.dumps({"t": each}) for each in TEXTS), encoding="utf-8")
    (folder / "own_choices.yaml").write_text(
        "task: own_choices\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder}/mc.jsonl}}}}\n"
        "output_type: multiple_choice\ntest_split: test\n"
        'doc_to_text: "{{q}}"\ndoc_to_choice: "{{c}}"\ndoc_to_target: "{{a}}"\ntarget_delimiter: ""\n'
        "metric_list:\n  - metric: acc\n  - metric: acc_norm\n",
        encoding="utf-8",
    )
    (folder / "own_texts.yaml").write_text(
        "task: own_texts\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder}/ppl.jsonl}}}}\n"
        "output_type: loglikelihood_rolling\ntest_split: test\n"
        'doc_to_text: ""\ndoc_to_target: "{{t}}"\nmetric_list:\n  - metric: bits_per_byte\n',
        encoding="utf-8",
    )
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    loaded: dict[str, Any] = manager.load(["own_choices", "own_texts"])
    for task in loaded["tasks"].values():
        task.set_config(key="num_fewshot", value=0)
    return loaded


@pytest.mark.parametrize("twin", TWINS)
def test_every_figure_of_a_task_is_the_same(run: tuple[Path, Path], theirs: Any, twin: str, tmp_path: Path) -> None:
    found = [
        evaluate(model, tasks(tmp_path), bootstrap_iters=0, log_samples=True) for model in (ours(run[0], twin), theirs)
    ]
    (mine, their) = (each["results"] for each in found)
    assert mine["own_choices"]["acc,none"] == their["own_choices"]["acc,none"]
    assert mine["own_choices"]["acc_norm,none"] == their["own_choices"]["acc_norm,none"]
    key = "bits_per_byte,none"
    assert math.isclose(mine["own_texts"][key], their["own_texts"][key], rel_tol=1e-6)
    for one, other in zip(*(each["samples"]["own_choices"] for each in found), strict=True):
        for (nats, _), (beside, _) in zip(one["filtered_resps"], other["filtered_resps"], strict=True):
            assert math.isclose(float(nats), float(beside), abs_tol=1e-4)


HARNESS = "gpt_common/judging/harness.py"
FAULTS = {
    "boundary by length": Edit(
        HARNESS,
        "Harness._encode_pair",
        "super()._encode_pair(context, continuation)",
        "[super(), self.tok_encode(context), self.tok_encode(context + continuation)][1:]\n"
        "        predicted = predicted[len(seen) :]",
    ),
    "boundary by parts": Edit(
        HARNESS,
        "Harness._encode_pair",
        "super()._encode_pair(context, continuation)",
        "(super(), self.tok_encode(context), self.tok_encode(continuation))[1:]",
    ),
    "first token skipped": Edit(
        HARNESS, "Harness.loglikelihood_rolling", "parts_of(ids, [self.prefix_token_id]", "parts_of(ids[1:], ids[:1]"
    ),
    "wrong prefix": Edit(HARNESS, "Harness.eot_token_id", "prefix_token(self.tokens)", "prefix_token(self.tokens) + 1"),
    "mean for sum": Edit(HARNESS, "Harness._scored", "float(each.nats.sum())", "float(each.nats.mean())"),
    "overlap counted twice": Edit(
        HARNESS,
        "Harness.loglikelihood_rolling",
        "return [-each",
        "parts = [Part(p.seen[:1], (*p.seen[1:], *p.predicted), p.owner) for p in parts]\n        return [-each",
    ),
    "padding attended": Edit(
        "gpt_common/judging/scoring.py",
        "_score",
        "tokens[row, : len(ids) - 1], labels[row, : len(ids) - 1] = ids[:-1], ids[1:]",
        "tokens[row, longest - len(ids) + 1 :], labels[row, : len(ids) - 1] = ids[:-1], ids[1:]",
    ),
}
"""Ways in which the figures of others have been wrong, each in one place."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(run: tuple[Path, Path], theirs: Any, fault: str) -> None:
    with planted(FAULTS[fault]), pytest.raises(AssertionError):
        check(ours(run[0], "torch_gpt"), theirs)
