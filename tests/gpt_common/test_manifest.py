"""A checkpoint's files are files: what would be waited for, or read without end, is refused at once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gpt_common.errors import UserError
from gpt_common.training.checkpoint import read_manifest, validate
from gpt_common.training.manifest import MODEL_FILE, STATE_FILE, Manifest, all_finite


def checkpoint(folder: Path) -> Path:
    Manifest(step=3, config={"model": {"vocab_size": 60}}, tensors={MODEL_FILE: {"token_embedding.weight": "0"}}).write(
        folder / STATE_FILE
    )
    return folder


def test_a_pipe_as_weights_is_refused(tmp_path: Path) -> None:
    os.mkfifo(checkpoint(tmp_path) / MODEL_FILE)
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        validate(tmp_path)


@pytest.mark.parametrize("what", ["a pipe", "a device", "a folder"])
def test_a_manifest_that_is_no_file_is_refused(what: str, tmp_path: Path) -> None:
    path = tmp_path / STATE_FILE
    if what == "a pipe":
        os.mkfifo(path)
    elif what == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(UserError, match=r"state\.json cannot be read"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {"step": -1},
        {"step": "3"},
        {"step": True},
        {"config": []},
        {"tensors": {"model.safetensors": 1}},
        {"val_loss": "low"},
        {"best_step": [1]},
        {"dataset": "stories"},
        {"dataset": {"name": "stories"}},
        {"tokenizer": {"kind": "char", "fingerprint": "0", "vocab_size": "60"}},
        {"prompt": 1},
    ],
    ids=str,
)
def test_entries_of_a_wrong_type_are_refused(entry: dict[str, object], tmp_path: Path) -> None:
    state = json.loads((checkpoint(tmp_path) / STATE_FILE).read_text()) | entry
    (tmp_path / STATE_FILE).write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"state\.json cannot be read"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_not_a_number_and_infinity_are_seen_in_every_dtype(dtype: str) -> None:
    size = {"F64": 8, "F32": 4}.get(dtype, 2)
    exponent = {"F64": b"\xf0\x7f", "F32": b"\x80\x7f", "F16": b"\x00\x7c", "BF16": b"\x80\x7f"}[dtype]
    fine, infinite = bytes(size - 2) + b"\x00\x40", bytes(size - 2) + exponent
    nan = infinite[:-2] + bytes([infinite[-2] | 1, infinite[-1] | 0x80])
    assert all_finite(dtype, 3 * fine)
    for wrong in (infinite, nan):
        assert not all_finite(dtype, fine + wrong + fine)
    assert all_finite("I64", b"\xff" * 8)
