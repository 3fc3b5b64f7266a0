"""The data that a run was trained on, where it is still here: what a change of its model is measured on."""

from __future__ import annotations

from pathlib import Path

from gpt_common.config import RunConfig
from gpt_common.data import Dataset, open_dataset
from gpt_common.errors import UserError
from gpt_common.training.manifest import Manifest


def trained_on(config: RunConfig, manifest: Manifest) -> Dataset:
    """The dataset of a run; never made or fetched for the purpose.

    Raises:
        UserError: it is not here any more, or another.
    """
    if manifest.dataset is None:
        raise UserError("the run does not say what it was trained on")
    if config.data.follow:
        raise UserError("its data was followed while it was prepared")
    name, folder = str(manifest.dataset["name"]), Path(config.data.data_dir)
    if not (folder / name).is_dir():
        raise UserError(f"its dataset '{name}' is not in {folder}")
    dataset = open_dataset(name, folder)
    if dataset.fingerprint != manifest.dataset["fingerprint"]:
        raise UserError(f"dataset '{name}' is another than it was trained on")
    return dataset
