"""Conversations from JSON lines to marked tokens on disk: what counts, where it is cut, and what is refused."""

from __future__ import annotations

import json
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt_common.data import Dataset, check_block, open_dataset
from gpt_common.data.__main__ import main
from gpt_common.data.conversations.marking import Marker, TrainOn
from gpt_common.data.conversations.preparing import prepare_conversations
from gpt_common.data.conversations.reading import Conversation, Message, read_conversations
from gpt_common.data.conversations.written import AT_ONCE, CHATML, END, TURN, Template, chatml
from gpt_common.data.tokenizers import BpeTokenizer, CharTokenizer, Tokenizer, load_tokenizer, train_bpe_on
from gpt_common.data.tokenizers.extended import with_tokens
from gpt_common.errors import UserError

TALK = {
    "messages": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "One and one?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes — sure."},
    ]
}
PAIR = {"prompt": "Say b", "completion": "b"}


def lines(path: Path, *examples: Any) -> Path:
    path.write_text("".join((e if isinstance(e, str) else json.dumps(e)) + "\n" for e in examples), encoding="utf-8")
    return path


def prepared(folder: Path, *examples: Any, **how: Any) -> tuple[Dataset, list[str]]:
    said: list[str] = []
    file = lines(folder / "talk.jsonl", *examples)
    given = {"tokenizer": "char", "say": said.append, "overwrite": True, "on_progress": lambda *_: None, **how}
    return prepare_conversations([file], "talk", folder / "data", **given), said


def learnt(dataset: Dataset, split: int, number: int = 0) -> list[str]:
    """The runs of text that count in an example."""
    assert dataset.examples is not None
    part = dataset.examples[split]
    here = slice(int(part.ends[number] - part.lengths[number]), int(part.ends[number]))
    ids, counted = part.tokens[here], part.counted[here]
    runs = np.split(ids, np.flatnonzero(np.diff(counted)) + 1)
    marks = np.split(counted, np.flatnonzero(np.diff(counted)) + 1)
    return [dataset.tokenizer.decode(run.tolist()) for run, mark in zip(runs, marks, strict=True) if mark[0]]


@pytest.mark.parametrize(
    ("train_on", "expected"),
    [
        ("answers", [f"Two.{END}", f"Yes — sure.{END}"]),
        ("last", [f"Yes — sure.{END}"]),
        (
            "all",
            [
                chatml(Conversation("", tuple(Message(m["role"], m["content"]) for m in TALK["messages"]))).text[
                    len(TURN) :
                ]
            ],
        ),
    ],
)
@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_answers_and_the_tokens_that_end_them_count(
    tmp_path: Path, train_on: TrainOn, expected: list[str], tokenizer: str
) -> None:
    dataset, _ = prepared(tmp_path, TALK, PAIR, train_on=train_on, tokenizer=tokenizer)
    assert learnt(dataset, 0) == expected
    assert learnt(dataset, 1) == (
        [f"b{END}"] if train_on != "all" else [f"user\nSay b{END}\n{TURN}assistant\nb{END}\n"]
    )


def test_a_text_counts_whole_with_the_token_that_ends_it(tmp_path: Path) -> None:
    dataset, _ = prepared(tmp_path, {"text": "abc"}, {"text": "cab"}, tokenizer="bpe")
    ids = dataset.train.tolist()
    assert ids[-1] == dataset.tokenizer.end_of_text
    assert dataset.examples is not None
    assert dataset.examples[0].counted.tolist() == [0] + [1] * (len(ids) - 1)


def test_a_token_across_the_boundary_counts() -> None:
    """It says the first letters of the answer; encoded alone, the prompt would have had another token there."""
    tokenizer = train_bpe_on(["a sunflower, a sunflower. "] * 50, 300)
    conversation = Conversation("f:1", (Message("user", "a sun"), Message("assistant", "flower.")))
    template = Template("{% for m in messages %}{{ m.content }}{% endfor %}", "t")
    with template.writer() as write:
        (written,) = write([conversation])
    assert written.text[slice(*written.answers[0])] == "flower."
    marked = Marker(tokenizer, "answers").mark(conversation, written)
    assert [tokenizer.decode([i]) for i in marked.ids.tolist()] == ["a", " sunflower", "."]
    assert marked.counted.tolist() == [0, 1, 1]
    assert [tokenizer.decode([i]) for i in tokenizer.encode("a sun")][:2] != ["a", " sunflower"]


def test_what_the_block_cuts_off_is_counted_and_said(tmp_path: Path) -> None:
    cut, said = prepared(tmp_path, TALK, PAIR, PAIR, block_size=90)
    whole, _ = prepared(tmp_path, TALK, PAIR, PAIR)
    assert learnt(cut, 0)[0] == learnt(whole, 0)[0]
    assert len(cut.train) < len(whole.train)
    assert any("cut" in line and "1 answers" in line for line in said)
    check_block(cut, 90)
    with pytest.raises(UserError, match=r"longest example .* prepare it again with --block-size 20"):
        check_block(cut, 20)
    with pytest.raises(UserError, match=r"talk.jsonl:1: no answer is left: .*the block holds 31"):
        prepared(tmp_path, TALK, PAIR, block_size=30)


@pytest.mark.parametrize(("share", "train"), [(0.01, 2), (0.5, 1), (0.99, 1)])
def test_each_split_has_an_example_whatever_the_share(tmp_path: Path, share: float, train: int) -> None:
    dataset, _ = prepared(tmp_path, PAIR, PAIR, PAIR, val_fraction=share)
    assert dataset.examples is not None
    assert [len(part.ends) for part in dataset.examples] == [train, 3 - train]


@pytest.mark.parametrize("name", ["stories", "stories-qa", "shakespeare"])
def test_a_name_that_is_another_corpus_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    lines(Path("talk.jsonl"), PAIR, PAIR)
    with pytest.raises(UserError, match=f"the name '{name}' belongs to"):
        main(["prepare", "--conversations", "talk.jsonl", "--name", name, "--tokenizer", "char"])
    assert not Path("data").exists()


def test_the_same_files_make_the_same_bytes_and_another_mark_another_fingerprint(tmp_path: Path) -> None:
    one, two = (prepared(tmp_path, TALK, PAIR)[0].fingerprint for _ in range(2))
    last = prepared(tmp_path, TALK, PAIR, train_on="last")[0]
    assert one == two != last.fingerprint
    reopened = open_dataset("talk", tmp_path / "data")
    assert reopened.fingerprint == last.fingerprint
    assert isinstance(reopened.train, np.memmap)
    path = tmp_path / "data" / "talk" / "train.examples"
    for damage, says in ((lambda b: b[:-1], "bytes where"), (lambda b: b[:-1] + b"\x07", "SHA-256"), (None, "cannot")):
        kept = path.read_bytes()
        path.unlink()
        if damage:
            path.write_bytes(damage(kept))
        with pytest.raises(UserError, match=says):
            open_dataset("talk", tmp_path / "data")
        path.write_bytes(kept)


def test_jinja_and_chatml_mark_alike(tmp_path: Path) -> None:
    """Also where the template cuts blanks off, and where it says itself what an answer is."""
    template = tmp_path / "t.jinja"
    expected = prepared(tmp_path, TALK, PAIR)[0].fingerprint
    trimmed = CHATML.replace("message['content'] +", "(message['content'] | trim) +")
    generation = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }}<|im_end|>{% endgeneration %}{{ '\n' }}{% else %}{{ m.content }}<|im_end|>{{ '\n' }}{% endif %}"
        "{% endfor %}"
    )
    tokenizer = tmp_path / "data" / "talk" / "tokenizer.json"
    kept = tmp_path / "kept.json"
    kept.write_bytes(tokenizer.read_bytes())
    blank = {**PAIR, "completion": "b "}
    for source, second in ((CHATML, PAIR), (trimmed, blank), (generation, PAIR)):
        template.write_text(source)
        dataset, _ = prepared(tmp_path, TALK, second, template=str(template), tokenizer=str(kept))
        assert dataset.fingerprint == expected, source


def test_an_answer_of_weight_0_is_read_only(tmp_path: Path) -> None:
    """OpenAI's own way to say so, whoever writes the conversation out."""
    talk = {"messages": [dict(m) | {"weight": int(i != 2)} for i, m in enumerate(TALK["messages"])]}
    dataset, _ = prepared(tmp_path, talk, PAIR)
    assert learnt(dataset, 0) == [f"Yes — sure.{END}"]
    (tmp_path / "t.jinja").write_text(CHATML)
    kept = (tmp_path / "data" / "talk" / "tokenizer.json").rename(tmp_path / "kept.json")
    dataset, _ = prepared(tmp_path, talk, PAIR, template=str(tmp_path / "t.jinja"), tokenizer=str(kept))
    assert learnt(dataset, 0) == [f"Yes — sure.{END}"]


def test_no_more_than_a_few_conversations_are_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: weakref.WeakValueDictionary[int, Conversation] = weakref.WeakValueDictionary()
    most = 0

    def watched(files: Any) -> Any:
        nonlocal most
        for number, conversation in enumerate(read_conversations(files)):
            held[number] = conversation
            most = max(most, len(held))
            yield conversation

    monkeypatch.setattr("gpt_common.data.conversations.preparing.read_conversations", watched)
    dataset, _ = prepared(tmp_path, *[PAIR] * 600)
    assert dataset.examples is not None
    assert len(dataset.examples[0].ends) == 540
    assert most <= 2 * AT_ONCE, "a template is given so many at once"


def test_the_template_beside_a_tokenizer_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    train_bpe_on(["user assistant: Say b"], 280).save(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "eos_token": {"content": "<|endoftext|>"},
                "chat_template": "{% for m in messages %}{{ m.role }}: "
                "{{ m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}",
            }
        )
    )
    dataset, _ = prepared(tmp_path, PAIR, PAIR, tokenizer=str(folder))
    assert dataset.tokenizer.decode(dataset.train.tolist()) == "user: Say bassistant: b<|endoftext|>"
    assert learnt(dataset, 0) == ["b<|endoftext|>"] or learnt(dataset, 0) == [" b<|endoftext|>"]


def test_tools_are_text(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    tools = [{"type": "function", "function": {"name": "add"}}]
    messages = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    dataset, _ = prepared(tmp_path, {"messages": messages, "tools": tools}, PAIR)
    text = dataset.tokenizer.decode(dataset.train.tolist())
    assert text.startswith(f'{TURN}system\nTools:\n[{{"type": "function", "function": {{"name": "add"}}}}]{END}')
    said = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    assert learnt(dataset, 0) == [f"{said}{END}"]


def test_the_summary_says_what_is_learnt_in_80_columns(tmp_path: Path) -> None:
    long = {"prompt": "why? " * 100, "completion": "because " * 100}
    _, said = prepared(tmp_path, TALK, long, PAIR, PAIR)
    text = "\n".join(said)
    assert "examples   4: 3 for training, 1 for validation" in text
    assert "> Two.<|im_end|>" in text
    assert "\n  <|im_start|>user\n  One and one?<|im_end|>" in text
    assert "> b<|im_end|>" in text
    assert max(len(line.replace(str(tmp_path), "")) for line in said) <= 80
    assert "\x1b" not in text


def called(arguments: str) -> Any:
    """An answer that is a call of a tool."""
    call = {"function": {"name": "add", "arguments": arguments}}
    return {"messages": [{"role": "assistant", "tool_calls": [call]}]}


DEEP = '{"messages": ' + "[" * 200_000
HOSTILE: dict[str, tuple[Any, str]] = {
    "no JSON": ("hello", "not a JSON object"),
    "half a line": ('{"prompt": "a", ', "not a JSON object"),
    "a list": ([1, 2], "a list, where"),
    "nested deeply": (DEEP, "nested too deeply"),
    "nested in tools": ('{"prompt": "a", "completion": "b", "tools": ' + "[" * 50_000 + "]" * 50_000 + "}", "nested"),
    "a key twice": ('{"prompt": "a", "prompt": "b"}', "twice"),
    "NaN": ('{"prompt": "a", "completion": "b", "score": NaN}', "NaN"),
    "infinity": ('{"prompt": "a", "completion": "b", "score": 1e999}', "number 1e999"),
    "a number of many digits": ('{"prompt": "a", "completion": ' + "9" * 5000 + "}", "not a JSON object|a number"),
    "no keys that are known": ({"conversations": []}, "no `messages`"),
    "nothing in it": ({}, "its keys: none"),
    "no completion": ({"prompt": "a"}, "no `completion`"),
    "messages that are none": ({"messages": "hi"}, "`messages` is text"),
    "no messages": ({"messages": []}, "an empty list"),
    "messages of text": ({"messages": ["hi"]}, "message 1 is text"),
    "a million messages": ('{"messages": [' + ",".join(["{}"] * 1_000_000) + "]}", "1,000,000 messages"),
    "another role": ({"messages": [{"role": "asistant", "content": "a"}]}, "did you mean 'assistant'"),
    "a role of another type": ({"messages": [{"role": 3, "content": "a"}]}, "is a number"),
    "content of another type": ({"messages": [{"role": "user", "content": 3}]}, "is a number, where text"),
    "no content": ({"messages": [{"role": "user"}]}, "is nothing, where text"),
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "parts that are no text"),
    "no answer": ({"messages": [{"role": "user", "content": "a"}]}, "no answer"),
    "half a surrogate pair": ('{"prompt": "\\ud800", "completion": "b"}', "surrogate"),
    "marks": ({"prompt": "a", "completion": "\ue000"}, "private use"),
    "a turn within a turn": ({"prompt": f"a{END}", "completion": "b"}, "says '<|im_end|>'"),
    "tools of another type": ({**PAIR, "tools": 3}, "`tools` is a number"),
    "a call without a name": ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "function with a name"),
    "arguments that are no JSON": (called("{"), "arguments of a call of message 1 are no JSON"),
    "arguments without end": (called('{"a": 1e999}'), "are no JSON .*1e999"),
    "an argument twice": (called('{"a": 1, "a": 2}'), "are no JSON .*twice"),
    "marks in tools": ({**PAIR, "tools": ["\ue000"]}, "private use"),
    "marks in a call": (called('{"a": "\ue001"}'), "private use"),
    "a turn within tools": ({**PAIR, "tools": [f"{END}{TURN}assistant"]}, "a tool says '<|im_end|>'"),
    "an older call": (
        {"messages": [{"role": "assistant", "content": "", "function_call": {}, "refusal": "no"}]},
        "refusal",
    ),
    "thoughts": ({"messages": [{"role": "assistant", "content": "a", "reasoning_content": "b"}]}, "reasoning_content"),
    "half a weight": ({"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}, "weight of message 1"),
    "nothing that is learnt": ({"messages": [{"role": "assistant", "content": "a", "weight": 0}]}, "no answer"),
    "an empty text": ({"text": ""}, "`text` is empty"),
    "an endless line": ('{"text": "' + "a" * (1 << 24), "longer than"),
}


@pytest.mark.parametrize(("line", "says"), HOSTILE.values(), ids=HOSTILE)
def test_a_line_that_is_no_example_is_one_line_and_leaves_nothing(tmp_path: Path, line: Any, says: str) -> None:
    with pytest.raises(UserError, match=says.replace("|im_end|", r"\|im_end\|")) as error:
        prepared(tmp_path, PAIR, line, PAIR)
    assert "talk.jsonl:2: " in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    assert not list(tmp_path.glob("data/*"))


def test_bytes_that_are_no_text_and_files_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    file.write_bytes(b'{"text": "\xff"}\n')
    os.mkfifo(tmp_path / "pipe")
    for path, says in ((file, ":1: not UTF-8"), (tmp_path / "pipe", "cannot read"), (tmp_path / "no", "cannot read")):
        with pytest.raises(UserError, match=says):
            prepare_conversations([path], "talk", tmp_path / "data", "char", on_progress=lambda *_: None)


def test_a_tokenizer_is_extended_behind_its_ids_and_saved(tmp_path: Path) -> None:
    base: Tokenizer
    for base in (CharTokenizer("ab<|>_imstrend"), train_bpe_on(["ab"], 258)):
        extended = with_tokens(base, (TURN, END))
        extended.save(tmp_path / "tokenizer.json")
        loaded = load_tokenizer(tmp_path / "tokenizer.json")
        assert loaded.fingerprint == extended.fingerprint != base.fingerprint
        assert [loaded.specials[name] for name in (TURN, END)] == [base.vocab_size, base.vocab_size + 1]
        assert loaded.encode(f"ab{END}") == base.encode(f"ab{END}"), "in a text its name is text"
        assert loaded.decode([base.vocab_size + 1]) == END
        assert with_tokens(loaded, (TURN, END)) is loaded
    assert isinstance(base, BpeTokenizer)
    for names in ([], ["<|endoftext|>"], [""]):
        (tmp_path / "tokenizer.json").write_text(json.dumps({**base._document, "added": names}))
        with pytest.raises(UserError, match="special tokens to add"):
            load_tokenizer(tmp_path / "tokenizer.json")
