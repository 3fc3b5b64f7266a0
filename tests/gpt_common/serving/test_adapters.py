"""An adapter is served on its base, and left out where a request says so."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from gpt_common.serving.models import open_library
from tests.gpt_common.serving.malformed import COMPLETIONS
from tests.gpt_common.serving.served import make_model, serving
from tests.twins import TWINS, tiny, train


@pytest.fixture(scope="module")
def runs(stories_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, and an adapter of a few more that changes it a lot."""
    folder = tmp_path_factory.mktemp("runs")
    base, flags = folder / "base", tiny(stories_dir, "--max-steps", "6")
    train("torch_gpt", *flags, "--out", base)
    more = ["--init-from", str(base), "--adapter", "lora", "--adapter-alpha", "256", "--learning-rate", "0.1"]
    train("torch_gpt", *flags, *more, "--out", folder / "adapted")
    return folder


@pytest.mark.parametrize("twin", TWINS)
def test_with_its_adapter_and_without(twin: str, runs: Path) -> None:
    notebook = importlib.import_module(f"{twin}.notebook")
    asked: dict[str, Any] = {"max_new_tokens": 50, "temperature": 0}
    expected = {
        name: notebook.generate(notebook.load(runs / name, device="cpu"), "Once", **asked)
        for name in ("adapted", "base")
    }
    assert expected["adapted"] != expected["base"]
    with serving(twin, runs / "adapted", runs / "base") as server:
        said = {"prompt": "Once", "echo": True, "max_tokens": 50, "temperature": 0}
        for _ in range(2):  # both are in memory by then
            assert server.complete(**said)["text"] == expected["adapted"]
            assert server.complete(**said, adapter=True)["text"] == expected["adapted"]
            assert server.complete(**said, adapter=False)["text"] == expected["base"]
        assert server.ask(COMPLETIONS, {**said, "adapter": False})[1]["model"] == "adapted:base"
        status, answer, _ = server.ask(COMPLETIONS, {**said, "model": "base", "adapter": False})
        assert (status, answer["error"]["param"]) == (400, "adapter")
        listed = {one["id"]: one["adapter"] for one in server.ask("/v1/models")[1]["data"]}
        assert (listed["adapted"], listed["base"]) == (True, False)


def test_a_template_that_is_not_ours_is_told_of(tmp_path: Path) -> None:
    ours, other = (open_library([make_model(tmp_path / name, chat=True)], latest=False).models[0] for name in "ab")
    (tmp_path / "b" / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert not ours.has_other_template
    assert other.has_other_template
