"""Datasets by name: the built-in one, and the prepared ones in a data folder."""

from __future__ import annotations

from pathlib import Path

from gpt_common.data.builtin import open_built_in
from gpt_common.data.dataset import BUILT_INS, PREPARABLE, Dataset, Progress, check_name, open_folder, prepare_command
from gpt_common.errors import UserError, nearest


def open_dataset(name: str, data_dir: Path, on_progress: Progress | None = None) -> Dataset:
    """The dataset `name`: the built-in one, made at first use, or a prepared one.

    Args:
        data_dir: folder of prepared corpora.
        on_progress: called with one line when something takes longer.

    Raises:
        UserError: missing, empty, truncated, changed, made with another tokenizer, ids outside the vocabulary.
    """
    if name in BUILT_INS:
        return open_built_in(name, data_dir, on_progress or (lambda _: None))
    if not (data_dir / check_name(name)).is_dir():
        raise UserError(_missing(name, data_dir))
    return open_folder(data_dir / name, on_progress or (lambda _: None))


def prepared_names(data_dir: Path) -> list[str]:
    """Names of the folders in `data_dir` that have a sidecar."""
    return sorted(path.parent.name for path in data_dir.glob("*/meta.json") if ".tmp-" not in path.parent.name)


def _missing(name: str, data_dir: Path) -> str:
    command = prepare_command(name, data_dir)
    if name in PREPARABLE:
        return f"dataset '{name}' is not in {data_dir} yet: run `{command}`"
    known = {*BUILT_INS, *PREPARABLE, *prepared_names(data_dir)}
    return f"no dataset '{name}' in {data_dir} ({nearest(name, known)}); a new one is made by `{command}`"
