"""A base learns conversations: the special tokens of the template get rows of their own, which begin as a mean."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gpt_common.data import open_dataset
from gpt_common.data.conversations.preparing import prepare_conversations
from gpt_common.errors import UserError
from gpt_common.training.checkpoint import find_checkpoint
from gpt_common.training.manifest import MODEL_FILE
from tests.twins import TWINS, train

FLAGS = ["--block-size", "32", "--batch-size", "2", "--eval-batches", "1", "--sample-tokens", "0", "--device", "cpu"]
FLAGS += ["--warmup-steps", "1", "--log-interval", "1"]
MESSAGE = "2 new tokens, <|im_start|>, <|im_end|>: their rows begin as the mean of the"


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("head", ["--tied-head", "--no-tied-head"])
def test_rows_of_new_tokens_begin_as_the_mean(
    twin: str, head: str, tmp_path: Path, stories_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base, tuned, data = tmp_path / "base", tmp_path / "tuned", tmp_path / "data"
    shape = ["--n-layer", "1", "--n-embd", "16", "--n-head", "2", head]
    train(twin, "--out", base, "--max-steps", "2", "--data-dir", str(stories_dir), *shape, *FLAGS)
    talk = tmp_path / "talk.jsonl"
    talk.write_text("".join(json.dumps({"prompt": "who", "completion": f"{a} cat"}) + "\n" for a in "abcd"))
    dataset = prepare_conversations([talk], "talk", data, str(base), on_progress=lambda *_: None)
    known = dataset.tokenizer.vocab_size - 2
    more = ["--dataset", "talk", "--data-dir", str(data), "--max-steps", "1", *FLAGS]
    capfd.readouterr()
    # At this rate a step moves a weight by less than a rounding.
    train(twin, "--init-from", base, "--out", tuned, "--learning-rate", "1e-30", "--min-lr", "0", *more)
    said = " ".join(capfd.readouterr().out.split())
    assert MESSAGE in said
    before, after = (load_file(find_checkpoint(run, prefer="latest") / MODEL_FILE) for run in (base, tuned))
    for name, value in before.items():
        grows = name in ("token_embedding.weight", "head.weight")
        assert after[name].shape == ((known + 2, 16) if grows else value.shape)
        np.testing.assert_array_equal(after[name][: len(value)], value)
        if grows:
            mean = value.mean(axis=0, dtype=np.float64).astype(np.float32)
            np.testing.assert_array_equal(after[name][known:], np.stack([mean, mean]))
    # A tokenizer of its own is still another one, and a run is not taken up with more entries.
    prepare_conversations([talk], "other", data, "char", on_progress=lambda *_: None)
    with pytest.raises(UserError, match="another tokenizer"):
        train(twin, "--init-from", base, "--out", tmp_path / "no", *more, "--dataset", "other")
    with pytest.raises(UserError, match="another"):
        train(twin, "--resume", base, *more[:4], "--max-steps", "3")
    assert open_dataset("talk", data).tokenizer.vocab_size == known + 2
