"""A new format is one new file: the commands, their messages and their checks learn of it from there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from convert.formats import registry
from tests.convert.conftest import done, refused

ROOT = Path(__file__).parents[3]
NEW_FORMAT = """
import json

from convert.contents import Contents
from convert.formats import state_dict
from convert.formats.format import Format
from convert.storage.safetensors_file import write_safetensors


def write(contents, path, options):
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "brand-new"}')
    write_safetensors(path / "weights.safetensors", contents.tensors, {}, options.progress)
    return ("brand-new says hello",)


def read(path, options):
    tensors, _, verify = state_dict.read_raw(path / "weights.safetensors")
    return Contents(path=path, tensors=tensors, verify=verify)


FORMAT = Format(
    name="brand-new folder",
    order=5,
    model_type="brand-new",
    read=read,
    write=write,
    target="brand-new",
    files=frozenset({"config.json", "weights.safetensors"}),
)
"""
RUN = """
import contextlib, io, json, sys
import convert.formats
convert.formats.__path__.append(sys.argv[1])
from convert.__main__ import main
from gpt_common.errors import run_main
outcomes = []
for command in json.loads(sys.argv[2]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            run_main(main, command)
        except SystemExit as end:
            outcomes.append([end.code, out.getvalue() + err.getvalue()])
print(json.dumps(outcomes))
"""


def run_with_it(folder: Path, *commands: tuple[object, ...]) -> list[tuple[int, str]]:
    """Exit code and output of commands, run in one process in which `folder` holds formats too."""
    arguments = [str(folder), json.dumps([[str(word) for word in command] for command in commands])]
    ended = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [(code, said) for code, said in json.loads(ended.stdout)]


def test_one_file_is_a_format(checkpoint: Path, tmp_path: Path) -> None:
    done("torch2mlx", checkpoint, "-o", tmp_path / "run")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "brand_new.py").write_text(NEW_FORMAT)
    written, mixed, other = tmp_path / "run-brand-new", tmp_path / "mixed", tmp_path / "other"
    for folder in (mixed, other):
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "other"}')
    (mixed / "letters.txt").write_text("dear")
    export = ("mlx2torch", tmp_path / "run", "--to", "brand-new")
    help_out, help_in, exported, told, compared, again, refused_mixed, refused_other = run_with_it(
        tmp_path / "more",
        ("mlx2torch", "--help"),
        ("torch2mlx", "--help"),
        export,
        ("inspect", written),
        ("diff", tmp_path / "run", written),
        (*export, "--overwrite"),
        (*export, "--overwrite", "-o", mixed),
        ("inspect", other),
    )
    # Offered, and only where it says so.
    assert "brand-new" in help_out[1]
    assert "brand-new" not in help_in[1]
    # Written, where the default destination is called after it.
    assert exported[0] == 0, exported
    assert f"{written}: brand-new folder from native checkpoint" in exported[1]
    assert "note: brand-new says hello" in exported[1]
    # Recognised and read.
    assert f"{written}: brand-new folder, " in told[1]
    assert compared[0] == 0, compared
    # Replaced where nothing but its files lies.
    assert again[0] == 0, again
    assert "letters.txt, which no conversion wrote" in refused_mixed[1]
    # Named where a folder is of no known model.
    assert "'brand-new', 'gpt2'" in refused_other[1]


def test_without_it_nothing_knows_of_it(checkpoint: Path, tmp_path: Path) -> None:
    done("torch2mlx", checkpoint, "-o", tmp_path / "run")
    said = refused("mlx2torch", tmp_path / "run", "--to", "brand-new")
    assert "--to 'brand-new' is not a choice: choose from: mlx-lm, nanogpt, transformers" in said


def test_declarations_agree() -> None:
    orders = [found.order for found in registry.FORMATS]
    assert len(set(orders)) == len(orders)
    assert len({found.name for found in registry.FORMATS}) == len(orders)
    for found in registry.FORMATS:
        assert (found.write is not None) == bool(found.target) == bool(found.files)
    for command, offered in (("torch2mlx", {"native", "mlx-lm"}), ("mlx2torch", {"nanogpt", "transformers", "mlx-lm"})):
        assert set(registry.targets(command)) == offered
        for target in offered:
            formats = registry.formats_of(target)
            assert len({found.attention for found in formats}) == len(formats)
            assert all(found.attention for found in formats) or len(formats) == 1
