"""`sample --interactive` and `--chat`: line by line, what is wrong is told and nothing is lost."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from gpt_common.commands import SampleCommand
from gpt_common.config import ModelConfig
from gpt_common.data.tokenizers import CharTokenizer, Tokenizer
from gpt_common.prompting.command import answer
from gpt_common.training.source import Source
from tests.gpt_common.judging.made_up import Remembering
from tests.gpt_common.prompting.test_prompts import LETTERS, TURNS


def talk(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lines: str,
    tokenizer: Tokenizer,
    command: SampleCommand,
    block_size: int = 200,
) -> tuple[list[str], str]:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    shape = ModelConfig(block_size=block_size, vocab_size=tokenizer.vocab_size)
    answer(command, Source(Path("run"), shape, tokenizer, "\n"), Remembering(tokenizer.vocab_size, block_size).batch)
    shown = capsys.readouterr()
    return shown.out.split("\n"), shown.err


def test_every_line_is_answered_and_can_be_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, command = CharTokenizer(LETTERS.replace("\n", "")), SampleCommand(interactive=True, max_new_tokens=12)
    out, err = talk(monkeypatch, capsys, "the hen\n\nthe hen\n/again\n", plain, command)
    assert len(out) == 4
    assert all(len(line) == 12 for line in out[:3])
    assert len(set(out[:3])) == 3, "each with random numbers of its own"
    again, _ = talk(monkeypatch, capsys, "the hen\n\nthe hen\n/again\n", plain, command)
    assert again == out, "and the same for one seed"
    assert not err


def test_settings_change_and_mistakes_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, command = CharTokenizer(LETTERS.replace("\n", "")), SampleCommand(interactive=True, max_new_tokens=5)
    lines = "/again\nÄ\n/sett temperature 1\n/set temperature x\n/set temprature 1\n/set top-k -1\n/\n/ set\n"
    lines += "/set temperature nan\n/set temperature inf\n/set temperature 0\n"
    out, err = talk(monkeypatch, capsys, lines + "the hen\n/again\n/settings\n/help\n/quit\nnever\n", plain, command)
    assert out[0] == out[1], "at temperature 0 nothing is drawn"
    assert out[2:6] == ["  max_new_tokens 5", "  temperature 0.0", "  top_k 0", "  top_p 1.0"]
    assert "/again" in out[6]
    told = err.splitlines()
    for line, said in zip(
        told,
        [
            "nothing was said",
            "'Ä'",
            "/set",
            "'x' is none",
            "temperature",
            "negative",
            "no such",
            "no such",
            "nan",
            "inf",
        ],
        strict=True,
    ):
        assert line.startswith("error: ")
        assert said in line


def test_a_conversation_goes_on_and_forgets_its_beginning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []
    original = Remembering.exact

    def watch(model: Remembering, ids: list[int]) -> object:
        seen.append(TURNS.decode(ids))
        return original(model, ids)

    monkeypatch.setattr(Remembering, "exact", watch)
    command = SampleCommand(chat=True, max_new_tokens=1, temperature=0)
    _, err = talk(monkeypatch, capsys, "first\nsecond\n/undo\nthird\n", TURNS, command, block_size=90)
    assert "first" in seen[1]
    assert "second" in seen[1]
    assert "second" not in seen[2]
    assert "third" in seen[2]
    assert not err
    seen.clear()
    _, err = talk(
        monkeypatch, capsys, "first\nsecond\nthird\n" + "a" * 99 + "\n/clear\nlast", TURNS, command, block_size=70
    )
    assert "first" not in seen[-2]
    assert "turns are forgotten" in err
    assert "the model's block holds 70" in err
    assert "third" not in seen[-1], "nothing is left"
