"""What is put to a model from a command line: solved examples, turns; and which of some texts it finds likeliest."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from gpt_common.commands import SampleCommand
from gpt_common.config import ModelConfig
from gpt_common.data.conversations.written import END, TURN
from gpt_common.data.tokenizers import CharTokenizer, Tokenizer, prefix_token, train_bpe_on
from gpt_common.data.tokenizers.extended import with_tokens
from gpt_common.errors import UserError
from gpt_common.prompting.choices import Choice, lines_of, parse_choices, score_choices
from gpt_common.prompting.command import answer
from gpt_common.prompting.prompts import prompt_ids
from gpt_common.training.source import Source
from tests.gpt_common.judging.made_up import Remembering

LETTERS = "\n abcdefghijklmnopqrstuvwxyz.?"
TURNS = with_tokens(CharTokenizer(LETTERS), (TURN, END))


def source(tokenizer: Tokenizer, block_size: int = 200) -> Source:
    return Source(Path("run"), ModelConfig(block_size=block_size, vocab_size=tokenizer.vocab_size), tokenizer, "\n")


def shots(folder: Path, text: str) -> Path:
    path = folder / "shots.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


TWO = '{"prompt": "who?", "completion": "mia"}\n\n{"prompt": "where?", "completion": "home"}\n'


def test_examples_before_a_text_and_before_a_turn(tmp_path: Path) -> None:
    command = SampleCommand(prompt="when?", shots=shots(tmp_path, TWO))
    plain = CharTokenizer(LETTERS)
    assert plain.decode(prompt_ids(command, source(plain))) == "who?\nmia\n\nwhere?\nhome\n\nwhen?\n"
    turns = TURNS.decode(prompt_ids(command, source(TURNS)))
    said = [("user", "who?"), ("assistant", "mia"), ("user", "where?"), ("assistant", "home"), ("user", "when?")]
    assert turns == "".join(f"{TURN}{role}\n{text}{END}\n" for role, text in said) + f"{TURN}assistant\n"
    alone = SampleCommand(prompt="when?", chat=True)
    assert TURNS.decode(prompt_ids(alone, source(TURNS))) == f"{TURN}user\nwhen?{END}\n{TURN}assistant\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no examples"),
        ('{"text": "mia"}', "`text` has no answer"),
        ('{"prompt": "who?"}', "no `completion`"),
        ('{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}', "not end with an"),
        ('{"prompt": "' + "a" * 300 + '", "completion": "b"}', "have 310 tokens, the model's block holds 200"),
        ("[1]", "JSON object"),
    ],
)
def test_examples_that_are_none(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        prompt_ids(SampleCommand(prompt="when?", shots=shots(tmp_path, text)), source(CharTokenizer(LETTERS)))


def test_what_does_not_go_together(tmp_path: Path) -> None:
    plain, path = source(CharTokenizer(LETTERS)), shots(tmp_path, TWO)
    batch = Remembering(31, 200).batch
    for command, said in [
        (SampleCommand(shots=path), "give one"),
        (SampleCommand(chat=True, prompt="who?"), "does not know turns"),
        (SampleCommand(choices="a,b"), "give one"),
    ]:
        with pytest.raises(UserError, match=said):
            answer(command, plain, batch)
    with pytest.raises(UserError, match="writes nothing"):
        SampleCommand(choices="a,b", interactive=True)
    for choices in ("a", "a,,b", "a,a", ""):
        with pytest.raises(UserError, match="two or more"):
            parse_choices(choices)
    assert parse_choices("a\\, b, c") == ["a, b", " c"]


def test_choices_are_scored_by_their_own_tokens() -> None:
    plain = CharTokenizer(LETTERS)
    model, prompt = Remembering(plain.vocab_size, 40), plain.encode("the hen ")
    found = score_choices(model.batch, plain, 40, prompt, ["sat", "is here"], prefix_token(plain))
    for choice in found:
        ids = plain.encode(choice.text)
        behind = model.exact([*prompt, *ids])[len(prompt) - 1 : -1]
        assert math.isclose(choice.total, behind[np.arange(len(ids)), ids].sum(), abs_tol=1e-4)
        alone = model.exact([0, *ids])[:-1]
        assert math.isclose(choice.alone, alone[np.arange(len(ids)), ids].sum(), abs_tol=1e-4)
        assert choice.tokens == choice.bytes == len(ids)
    with pytest.raises(UserError, match="the model's block holds 10"):
        score_choices(model.batch, plain, 10, prompt, ["sat", "is here"], 0)


def test_a_token_that_lies_across_the_end_of_the_prompt_counts_for_every_choice() -> None:
    pairs = train_bpe_on(["the hen sat here. the hens sat there. then the hen sat." * 20], 300)
    prompt = pairs.encode("the he")
    texts = ["n sat", "ns sat", "re"]
    model = Remembering(pairs.vocab_size, 40)
    found = score_choices(model.batch, pairs, 40, prompt, texts, prefix_token(pairs))
    whole = [pairs.encode("the he" + text) for text in texts]
    begin = len(whole[0]) - found[0].tokens
    assert any(ids[: len(prompt)] != prompt for ids in whole), "some choice changes the prompt's last token"
    for choice, ids in zip(found, whole, strict=True):
        assert ids[:begin] == whole[0][:begin], "all are scored behind the same"
        logs = model.exact(ids)[begin - 1 : -1]
        assert math.isclose(choice.total, logs[np.arange(len(ids) - begin), ids[begin:]].sum(), abs_tol=1e-4)
        alone = model.exact([prefix_token(pairs), *ids[begin:]])[:-1]
        assert math.isclose(choice.alone, alone[np.arange(len(ids) - begin), ids[begin:]].sum(), abs_tol=1e-4)


def test_a_table_of_choices_marks_the_best_and_no_tie() -> None:
    one, two = Choice(" yes", -2.0, 2, 4, -1.0), Choice(" not at all, whatever", -3.0, 6, 21, -3.0)
    lines = list(lines_of([one, two]))
    assert max(map(len, lines)) <= 80
    assert [line.count("*") for line in lines[1:3]] == [1, 3]
    assert "*" not in lines_of([one, Choice(" no", -2.0, 2, 4, -1.0)]).__next__()
    tied = list(lines_of([one, Choice(" no.", -2.0, 2, 4, -1.0)]))
    assert not any("*" in line for line in tied[1:3])
    assert "50.0%" in tied[1]
