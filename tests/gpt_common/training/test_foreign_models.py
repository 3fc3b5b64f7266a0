"""What `sample`, `--init-from` and `--resume` say of folders and files that other programs wrote."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from gpt_common.errors import UserError
from gpt_common.training.checkpoint import find_checkpoint

SAFETENSORS = struct.pack("<Q", 2) + b"{}"
CONFIG = json.dumps({"model_type": "llama"}).encode()
ZIP = b"PK\x03\x04" + bytes(8)

IMPORTABLE: dict[str, tuple[dict[str, bytes], str, str]] = {
    "a folder of transformers": ({"m/config.json": CONFIG, "m/model.safetensors": SAFETENSORS}, "m", "import {}/m"),
    "a folder of shards": ({"m/config.json": CONFIG, "m/model-00001-of-00002.safetensors": b""}, "m", "import {}/m"),
    "nanoGPT's folder": ({"out/ckpt.pt": ZIP, "out/meta.pkl": b"\x80"}, "out", "import {}/out"),
    "nanoGPT's file": ({"out/ckpt.pt": ZIP}, "out/ckpt.pt", "import {}/out/ckpt.pt"),
    "an old file of PyTorch": ({"old.pth": b"\x80\x02"}, "old.pth", "import {}/old.pth"),
    "a file of a model folder": (
        {"m/config.json": CONFIG, "m/model.safetensors": SAFETENSORS},
        "m/model.safetensors",
        "import {}/m",
    ),
    "weights alone": ({"w.safetensors": SAFETENSORS}, "w.safetensors", "import {}/w.safetensors --preset NAME"),
    "a folder of weights alone": ({"m/w.safetensors": SAFETENSORS}, "m", "import {}/m/w.safetensors --preset NAME"),
    "a GGUF file": ({"m.gguf": b"GGUF\x03\0\0\0"}, "m.gguf", "import {}/m.gguf"),
    "a GGUF file of another name": ({"m": b"GGUF\x03\0\0\0"}, "m", "import {}/m"),
    "a folder of GGUF": ({"m/q4.gguf": b"GGUF"}, "m", "import {}/m/q4.gguf"),
    "a space in the name": ({"my model/config.json": CONFIG}, "my model", "import '{}/my model'"),
}
UNUSABLE: dict[str, tuple[dict[str, bytes], str, tuple[str, ...]]] = {
    "an adapter of peft": (
        {"a/adapter_config.json": b'{"peft_type": "LORA"}', "a/adapter_model.safetensors": SAFETENSORS},
        "a",
        ("adapter", "merge_and_unload"),
    ),
    "an adapter of mlx-lm": (
        {"a/adapter_config.json": b"{}", "a/adapters.safetensors": SAFETENSORS},
        "a",
        ("adapter", "mlx_lm.fuse"),
    ),
    "a dataset": ({"data/x/train.bin": b"", "data/x/meta.json": b"{}"}, "data/x", ("is a dataset", "--dataset x")),
    "a file of a checkpoint": (
        {"step-000001/state.json": b"{}", "step-000001/model.safetensors": SAFETENSORS},
        "step-000001/model.safetensors",
        ("give its folder", "step-000001"),
    ),
    "some other file": ({"notes.txt": b"dear"}, "notes.txt", ("notes.txt is no run or checkpoint, but a file",)),
    "an empty folder": ({"m/.keep": b""}, "m", ("holds no checkpoint",)),
    "a folder of runs": (
        {"m/b/checkpoints/best": b"", "m/a/checkpoints/best": b""},
        "m",
        ("is a folder of runs", "m/a"),
    ),
}


def said_of(files: dict[str, bytes], path: str, place: Path) -> str:
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        find_checkpoint(place / path, prefer="best")
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("case", IMPORTABLE)
def test_the_message_names_the_command(case: str, tmp_path: Path) -> None:
    files, path, command = IMPORTABLE[case]
    assert f"`python -m convert {command.format(tmp_path)}`" in said_of(files, path, tmp_path)


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_cannot_come_in_is_called_by_its_name(case: str, tmp_path: Path) -> None:
    files, path, words = UNUSABLE[case]
    said = said_of(files, path, tmp_path)
    assert all(word in said for word in words), said
    assert "python -m convert" not in said


def test_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    named = {"openai-community/gpt2": True, "runs/first": False, "/gone/away": False, "here/gone": False}
    for path, hub in named.items():
        with pytest.raises(UserError) as caught:
            find_checkpoint(Path(path), prefer="best")
        said = str(caught.value)
        assert said.startswith(f"no such run or checkpoint: {path}")
        assert (f"hf:{path}" in said) == hub
