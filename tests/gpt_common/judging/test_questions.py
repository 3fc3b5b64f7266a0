"""What `evaluate` asks: the last turns of conversations; a text asks nothing."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from gpt_common.data import Dataset
from gpt_common.data.__main__ import main as prepare
from gpt_common.data.conversations.written import END
from gpt_common.errors import UserError
from gpt_common.judging.answers import questions_of
from tests.gpt_common.data.conversations.test_preparing import PAIR, TALK, lines, prepared
from tests.twins import TWINS, tiny, train

TEXT = {"text": "what was said by one, and not asked"}


def asked(dataset: Dataset, count: int) -> list[tuple[str, str]]:
    decode = dataset.tokenizer.decode
    return [(decode(put.prompt), decode(put.answers[0])) for put in questions_of(dataset, count)]


def test_the_last_turn_is_asked_and_a_text_is_not(tmp_path: Path) -> None:
    dataset, _ = prepared(tmp_path, PAIR, PAIR, PAIR, TEXT, TALK, TEXT, PAIR, val_fraction=0.6)
    found = asked(dataset, 9)
    assert [answer for _, answer in found] == [f"Yes — sure.{END}", f"b{END}"]
    assert found[0][0].endswith(f"Sure?{END}\n<|im_start|>assistant\n")
    assert len(asked(dataset, 1)) == 1


def test_where_nothing_is_asked_there_is_no_score(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="asks nothing"):
        questions_of(prepared(tmp_path, PAIR, TEXT)[0], 9)
    with pytest.raises(UserError, match="asks nothing"):
        questions_of(prepared(tmp_path, PAIR, PAIR, train_on="all")[0], 9)


@pytest.mark.parametrize("twin", TWINS)
def test_a_run_is_asked_what_it_was_trained_on(
    twin: str, tmp_path: Path, stories_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "of text"
    train("torch_gpt", *tiny(stories_dir, "--out", str(base), "--max-steps", "1", "--block-size", "384"))
    importlib.import_module(f"{twin}.evaluate").main([str(base)])
    assert "validation loss" in capsys.readouterr().out, "a text asks nothing, and has a loss"
    chats = lines(tmp_path / "chats.jsonl", *[{"prompt": "Who?", "completion": "Mia."}] * 20)
    prepare(["prepare", "--conversations", str(chats), "--name", "chats", "--tokenizer", str(base)])
    said = capsys.readouterr().out
    assert said.endswith(f"  python -m mlx_gpt.train --init-from {base} --dataset chats\n")
    tuned = tmp_path / "tuned"
    train(
        twin,
        "--init-from",
        base,
        "--dataset",
        "chats",
        "--data-dir",
        "data",
        "--max-steps",
        "2",
        "--eval-batches",
        "1",
        "--out",
        tuned,
    )
    importlib.import_module(f"{twin}.evaluate").main([str(tuned)])
    assert "on chats\n  validation split" in capsys.readouterr().out
