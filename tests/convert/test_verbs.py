"""import and export: the same work as torch2mlx and mlx2torch, under the names that people look for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gpt_common.training.checkpoint import find_checkpoint, read_manifest
from tests.convert.conftest import done, refused, run_convert
from tests.convert.hostile.corpus_families import llama


def test_import_makes_a_run_among_the_runs(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint.parent)
    said = done("import", "ckpt.pt")
    assert "python -m mlx_gpt.sample runs/ckpt" in said
    assert "--init-from runs/ckpt" in said
    done("torch2mlx", "ckpt.pt")
    assert "tensors are equal" in done("diff", "runs/ckpt", "ckpt-mlx")
    written_by = read_manifest(find_checkpoint(Path("runs/ckpt"), prefer="best")).written_by
    assert written_by is not None
    assert written_by["source"] == {"format": "nanoGPT checkpoint", "path": "ckpt.pt"}


@pytest.mark.parametrize("to", ["nanogpt", "transformers", "native"])
def test_export_is_what_mlx2torch_writes(to: str, checkpoint: Path, tmp_path: Path) -> None:
    done("import", checkpoint, "-o", tmp_path / "run")
    done("export", tmp_path / "run", "--to", to, "-o", tmp_path / "one", "--other-gelu")
    if to == "native":
        assert "tensors are equal" in done("diff", tmp_path / "run", tmp_path / "one")
        return
    done("mlx2torch", tmp_path / "run", "--to", to, "-o", tmp_path / "two", "--other-gelu")
    for file in (tmp_path / "two").iterdir():
        written = (tmp_path / "one" / file.name).read_bytes()
        assert written == file.read_bytes() or file.name in ("README.md", "ckpt.pt"), file


def test_export_takes_what_is_no_run_too(checkpoint: Path, tmp_path: Path) -> None:
    done("export", checkpoint, "--to", "transformers", "-o", tmp_path / "hf", "--other-gelu")
    done("export", llama()(tmp_path), "--to", "mlx-lm", "-o", tmp_path / "mlx", "--tokenizer", "none")
    torch.save(torch.load(checkpoint, weights_only=True)["model"], tmp_path / "w.pt")
    (tmp_path / "m.toml").write_text("[model]\nn_head = 2\n")
    done("export", tmp_path / "w.pt", "--to", "nanogpt", "-o", tmp_path / "x.pt", "--config", tmp_path / "m.toml")
    assert torch.load(tmp_path / "x.pt", weights_only=True)["model"].keys()


def test_a_latest_checkpoint_may_be_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    done("import", checkpoint, "-o", tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "step-000012").rename(checkpoints / "step-000013")
    (checkpoints / "latest").write_text("step-000013\n")
    assert "no such" in refused("inspect", tmp_path / "run" / "checkpoints" / "step-000012")
    done("export", tmp_path / "run", "--to", "nanogpt", "--latest", "-o", tmp_path / "latest.pt")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["import"], "missing argument: SRC"),
        (["export"], "missing arguments: SRC, --to"),
        (["export", "run"], "missing argument: --to"),
        (
            ["export", "run", "--to", "pytorch"],
            "is not a choice: choose from: gguf, mlx-lm, nanogpt, native, peft, transformers",
        ),
        (["imprt", "x"], "did you mean 'import'?"),
        (["exprot", "x"], "did you mean 'export'?"),
        (["import", "x", "--to", "mlx-lm"], "unknown argument '--to'"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], says: str) -> None:
    said = refused(*arguments)
    assert says in said
    assert len(said.splitlines()) == 1


def test_a_run_is_not_imported(checkpoint: Path, tmp_path: Path) -> None:
    done("import", checkpoint, "-o", tmp_path / "run")
    said = refused("import", tmp_path / "run", "-o", tmp_path / "again")
    assert "is already a checkpoint of this project: use it as it is, or export it" in said


@pytest.mark.parametrize("command", ["import", "export", "torch2mlx", "mlx2torch"])
def test_each_has_a_help_of_its_own(command: str) -> None:
    assert f"usage: python -m convert {command}" in done(command, "--help")


def test_help_lists_what_people_look_for_first() -> None:
    lines = run_convert("--help").stdout.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")][:4] == [
        "import",
        "export",
        "torch2mlx",
        "mlx2torch",
    ]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"m.gguf": b"GGUF\x03"}, ("m.gguf is not a valid GGUF file",)),
        ({"m/q4.gguf": b"GGUF\x03"}, ("q4.gguf is a GGUF file", "import")),
        ({"a/adapter_config.json": b"{}", "a/adapters.safetensors": b""}, ("is an adapter", "--base RUN")),
        ({"d/train.bin": b"", "d/meta.json": b"{}"}, ("is a dataset",)),
    ],
)
def test_what_cannot_come_in_is_called_by_its_name(
    files: dict[str, bytes], words: tuple[str, ...], tmp_path: Path
) -> None:
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    said = refused("import", tmp_path / next(iter(files)).partition("/")[0], "-o", tmp_path / "run")
    assert all(word in said for word in words), said
