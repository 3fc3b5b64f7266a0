"""Where commands write: a name beside the source, and never over what they read."""

from __future__ import annotations

from pathlib import Path

import pytest

from convert.destination import beside, check_apart, check_run_free
from gpt_common.errors import UserError


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("runs/a", "runs/a-4bit"),
        ("runs/v1.5", "runs/v1.5-4bit"),
        ("runs/a/checkpoints/step-000010", "runs/a-step-000010-4bit"),
        ("a/checkpoints/step-000010", "a-step-000010-4bit"),
        ("model.gguf", "model-4bit"),
    ],
)
def test_a_name_beside_the_source(source: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made among a run's checkpoints, where it would be taken for one."""
    monkeypatch.chdir(tmp_path)
    Path("model.gguf").touch()
    assert beside(Path(source), "-4bit") == Path(expected)


@pytest.mark.parametrize("source", [".", "checkpoints/step-000010", "checkpoints/../checkpoints/step-000010"])
def test_a_name_beside_where_one_stands(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "checkpoints" / "step-000010").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    step = "" if source == "." else "-step-000010"
    assert beside(Path(source), "-4bit").resolve() == tmp_path / f"a{step}-4bit"


@pytest.mark.parametrize(
    "destination", ["runs/a", "runs", "runs/b/../a", "runs/a/checkpoints", "runs/a/checkpoints/x", "link"]
)
@pytest.mark.parametrize("source", ["runs/a", "runs/a/checkpoints/step-000010"])
def test_what_is_read_is_never_replaced(
    source: str, destination: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/a/checkpoints/step-000010").mkdir(parents=True)
    Path("runs/b").mkdir()
    Path("link").symlink_to("runs/a")
    with pytest.raises(UserError, match="is where the source is: choose another -o"):
        check_apart(Path(destination), (Path(source),))
    check_apart(Path("runs/b"), (Path(source),))


def test_only_runs_are_replaced(tmp_path: Path) -> None:
    """And only where that was asked for; a folder of somebody's own work is none."""
    run, adapter, work, source = (tmp_path / name for name in ("run", "adapter", "work", "source"))
    (run / "checkpoints").mkdir(parents=True)
    for folder in (adapter, work):
        folder.mkdir()
    (adapter / "adapter_config.json").touch()
    file = tmp_path / "file"
    file.touch()
    for there in (run, adapter, work, file):
        with pytest.raises(UserError, match="exists: choose another -o, or add --overwrite"):
            check_run_free(there, False, (source,), "adapter_config.json")
    for there in (adapter, work, file):
        with pytest.raises(UserError, match=f"{there.name} is no run, so it is not replaced"):
            check_run_free(there, True, (source,))
    check_run_free(run, True, (source,))
    (run / "checkpoints" / "kept").write_text("step-000010\n")
    with pytest.raises(UserError, match="run is the base of an adapter"):
        check_run_free(run, True, (source,))
    (run / "checkpoints" / "kept").unlink()
    (run / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="run was trained, so it is not replaced"):
        check_run_free(run, True, (source,))
    (run / "metrics.jsonl").unlink()
    check_run_free(run, True, (source,))
    check_run_free(adapter, True, (source,), "adapter_config.json")
    check_run_free(tmp_path / "new", False, (source,))
