"""A template of conversations goes with the model: into what is trained, quantised or fused from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpt_common.data.conversations.preparing import prepare_conversations
from gpt_common.data.conversations.templates import SETTINGS, own_template, settings_of
from gpt_common.data.conversations.written import Template
from gpt_common.training.checkpoint import find_checkpoint
from tests.convert.conftest import done
from tests.twins import TWINS, train

SOURCE = "{% for m in messages %}{{ m.role }} {{ m.content }}\n{% endfor %}"
FLAGS = ["--batch-size", "2", "--eval-batches", "1", "--sample-tokens", "0", "--warmup-steps", "1", "--no-report"]
FLAGS += ["--health-gates", "off", "--block-size", "32"]


@pytest.fixture(scope="module")
def runs(stories_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a template of its own."""
    folder = tmp_path_factory.mktemp("runs")
    shape = ["--n-layer", "1", "--n-embd", "32", "--n-head", "2", "--data-dir", str(stories_dir)]
    train("torch_gpt", "--out", folder / "base", "--max-steps", "2", *shape, *FLAGS)
    (folder / "base" / SETTINGS).write_text(settings_of(Template(SOURCE)))
    return folder


def source_of(tokenizer: Path) -> str | None:
    found = own_template(tokenizer)
    return None if found is None else found.source


@pytest.mark.parametrize("twin", TWINS)
def test_text_changes_no_template(runs: Path, stories_dir: Path, tmp_path: Path, twin: str) -> None:
    more = ["--init-from", runs / "base", "--data-dir", str(stories_dir), "--max-steps", "1", *FLAGS]
    train(twin, "--out", tmp_path / "tuned", *more)
    train(twin, "--out", tmp_path / "lora", "--adapter", "lora", *more)
    done("fuse", tmp_path / "lora", "-o", tmp_path / "fused")
    done("quantise", tmp_path / "fused", "--group-size", "32", "--judge-tokens", "0", "-o", tmp_path / "words")
    done("export", tmp_path / "words", "--to", "transformers", "-o", tmp_path / "folder")
    done("export", tmp_path / "lora", "--to", "peft", "-o", tmp_path / "peft")
    done("import", tmp_path / "peft", "--base", runs / "base", "-o", tmp_path / "back")
    for name in ("tuned", "lora", "fused", "words", "folder", "back"):
        assert source_of(tmp_path / name) == SOURCE, name


def test_conversations_bring_theirs(runs: Path, tmp_path: Path) -> None:
    """By whichever path of the base they were prepared; and ChatML, which was asked for, is not the base's."""
    talk, data = tmp_path / "talk.jsonl", tmp_path / "data"
    talk.write_text("".join(json.dumps({"prompt": "who", "completion": f"{a} cat"}) + "\n" for a in "abcd"))
    checkpoint = find_checkpoint(runs / "base", prefer="best")
    sources = {"run": runs / "base", "checkpoint": checkpoint, "file": checkpoint / "tokenizer.json"}
    for name, source in sources.items():
        prepare_conversations([talk], name, data, str(source), on_progress=lambda *_: None)
        assert source_of(data / name) == SOURCE, name
    # A dataset's tokenizer brings it as well.
    prepare_conversations([talk], "again", data, str(data / "run"), on_progress=lambda *_: None)
    prepare_conversations([talk], "ours", data, str(runs / "base"), template="chatml", on_progress=lambda *_: None)
    prepare_conversations([talk], "again", data, str(data / "run"), overwrite=True, on_progress=lambda *_: None)
    for name, expected in (("again", SOURCE), ("ours", None)):
        assert source_of(data / name) == expected
        more = ["--init-from", runs / "base", "--data-dir", str(data), "--max-steps", "1", "--dataset", name, *FLAGS]
        train("torch_gpt", "--out", tmp_path / name, *more)
        assert source_of(tmp_path / name) == expected
