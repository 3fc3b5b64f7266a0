"""Tokenizers of others: characters are characters, ends stay ends, GPT-2's vocabulary is known without a download."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from convert.formats import nanogpt
from convert.formats.tokenizer_files import (
    ends_of,
    given_tokenizer,
    read_meta,
    read_tokenizer,
    write_tokenizer,
    writes_chatml,
)
from convert.storage.pickles import write_pickle
from gpt_common.config import ModelConfig, RunConfig
from gpt_common.data.conversations.reading import Conversation, Message
from gpt_common.data.conversations.written import END, TURN, chatml
from gpt_common.data.tokenizers import CharTokenizer, Gpt2Tokenizer, Tokenizer, train_bpe_on
from gpt_common.data.tokenizers.extended import with_tokens
from gpt_common.errors import UserError


def meta(folder: Path, itos: Any, stoi: Any = None) -> Path:
    tokens = itos.items() if isinstance(itos, dict) else enumerate(itos)
    stoi = {token: i for i, token in tokens} if stoi is None else stoi
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(itos), "itos": itos, "stoi": stoi}))
    return folder / "meta.pkl"


@pytest.mark.parametrize(
    ("itos", "message"),
    [
        (["", "a", "b"], "token 0 is '', no single character"),
        (["a", "xy"], "token 1 is 'xy', no single character"),
        (["a", "\u2764\ufe0f"], "token 1 is .* no single character"),
        (["a", "<|endoftext|>", "b"], "token 1 is '<|endoftext|>', no single character"),
        (["a", 7], "token 1 is 7, no single character"),
        (["a", "b", "a"], "character 'a' is 0 in itos and 2 in stoi"),
        ({0: "a", 2: "b"}, "meta.pkl is not a meta.pkl of"),
        ([], "at least one character"),
    ],
)
def test_a_meta_that_is_not_of_characters_is_refused(tmp_path: Path, itos: Any, message: str) -> None:
    path = meta(tmp_path, itos)
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        read_meta(path)
    # Beside a checkpoint it is as good as none: the weights come in without.
    config = RunConfig(model=ModelConfig(vocab_size=max(1, len(itos))))
    tokenizer, (note,) = nanogpt._find_tokenizer(tmp_path, config)
    assert tokenizer is None
    assert note.startswith("no tokenizer: ")


@pytest.mark.parametrize("stoi", [{"a": 1, "b": 0}, {"a": 0}, 7])
def test_two_tables_that_contradict_each_other_are_refused(tmp_path: Path, stoi: Any) -> None:
    with pytest.raises(UserError, match=r"is not a meta\.pkl of"):
        read_meta(meta(tmp_path, ["a", "b"], stoi))


def test_characters_come_in_with_their_end(tmp_path: Path) -> None:
    assert read_meta(meta(tmp_path, ["a", "b"])).fingerprint == CharTokenizer("ab").fingerprint
    ends = read_meta(meta(tmp_path, ["a", "b", "<|endoftext|>"]))
    assert ends.fingerprint == CharTokenizer("ab", end_of_text=True).fingerprint
    (tmp_path / "meta.pkl").unlink()
    (tmp_path / "out").mkdir()
    nanogpt._write_tokenizer(ends, tmp_path / "out", RunConfig())
    written = pickle.loads((tmp_path / "out" / "meta.pkl").read_bytes())
    assert [written["itos"][i] for i in range(written["vocab_size"])] == ["a", "b", "<|endoftext|>"]
    assert read_meta(tmp_path / "out" / "meta.pkl").fingerprint == ends.fingerprint
    assert write_pickle(written)


@pytest.mark.parametrize("end_of_text", [False, True])
def test_characters_go_out_and_come_back(tmp_path: Path, end_of_text: bool) -> None:
    from transformers import AutoTokenizer

    ours = CharTokenizer("\n abé", end_of_text=end_of_text)
    write_tokenizer(ours, tmp_path, 8)
    back, notes = read_tokenizer(tmp_path)
    assert back is not None
    assert (back.fingerprint, notes) == (ours.fingerprint, ())
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode("bé\na", add_special_tokens=False) == ours.encode("bé\na")
    assert theirs.eos_token_id == ours.end_of_text
    if end_of_text:
        assert theirs.encode("a<|endoftext|>b", add_special_tokens=False) == [2, 5, 3]


def test_the_end_keeps_its_name(tmp_path: Path) -> None:
    train_bpe_on(["some text"], 260).save(tmp_path / "tokenizer.json")
    named = (tmp_path / "tokenizer.json").read_text().replace("<|endoftext|>", "<|end_of_text|>")
    (tmp_path / "tokenizer.json").write_text(named)
    tokenizer = given_tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.end_of_text == 0
    (tmp_path / "out").mkdir()
    write_tokenizer(tokenizer, tmp_path / "out", 8)
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["eos_token"] == "<|end_of_text|>"


def test_a_folder_of_ours_is_a_tokenizer(tmp_path: Path) -> None:
    CharTokenizer("ab", end_of_text=True).save(tmp_path / "tokenizer.json")
    assert given_tokenizer(tmp_path).end_of_text == 2


def test_gpt2_is_known_without_a_download(
    tmp_path: Path,
    gpt2_vocabulary: None,  # noqa: ARG001 (provides it)
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import tiktoken

    write_tokenizer(ours := Gpt2Tokenizer(), tmp_path, 8)

    def refuse(_: str) -> None:
        raise OSError("no network")

    monkeypatch.setattr(tiktoken, "get_encoding", refuse)
    back, _ = read_tokenizer(tmp_path)
    assert back is not None
    assert (back.kind, back.fingerprint) == ("gpt2", ours.fingerprint)
    # Another vocabulary of the same shape is another one.
    definition = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = definition["model"]["vocab"]
    first, last = list(vocabulary)[300], list(vocabulary)[301]
    vocabulary[first], vocabulary[last] = vocabulary[last], vocabulary[first]
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    other, _ = read_tokenizer(tmp_path)
    assert other is not None
    assert (other.kind, other.end_of_text) == ("bpe", 50256)


@pytest.mark.parametrize("kind", ["char", "char with an end", "bpe", "gpt2"])
def test_a_template_goes_with_what_it_adds(
    tmp_path: Path,
    kind: str,
    gpt2_vocabulary: None,  # noqa: ARG001 (provides it)
) -> None:
    """transformers writes a conversation out as it was learnt, in the same ids, and ends where an answer ends."""
    from transformers import AutoTokenizer

    letters = "".join(sorted(set("user\nassistant hi, you! 42")))
    base: Tokenizer = {
        "char": lambda: CharTokenizer(letters),
        "char with an end": lambda: CharTokenizer(letters, end_of_text=True),
        "bpe": lambda: train_bpe_on(["user assistant hi you"], 300),
        "gpt2": Gpt2Tokenizer,
    }[kind]()
    ours = with_tokens(base, (TURN, END))
    write_tokenizer(ours, tmp_path, 64)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    messages = (Message("user", "hi you"), Message("assistant", "hi, 42!"))
    text = chatml(Conversation("here", messages)).text
    said = [{"role": message.role, "content": message.content} for message in messages]
    assert theirs.apply_chat_template(said, tokenize=False) == text
    ids = ours.encode_written(text)
    assert theirs.apply_chat_template(said, return_dict=False) == ids
    assert theirs.eos_token_id == ours.specials[END] == ids[-2]
    assert ends_of(ours) == [ours.specials[END]] + ([] if base.end_of_text is None else [base.end_of_text])
    back, notes = read_tokenizer(tmp_path)
    assert back is not None
    assert not notes
    assert (back.encode_written(text), back.specials) == (ids, ours.specials)
    # Without what the template adds there is none, and the document ends where it did.
    assert not writes_chatml(base)
    assert ends_of(base) == ([] if base.end_of_text is None else [base.end_of_text])
