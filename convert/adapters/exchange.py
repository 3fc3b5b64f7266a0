"""Adapters in and out: a folder of peft or mlx-lm becomes a run beside its base, and such a run becomes a folder."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from convert.adapters import mlx_lm_adapter, peft_adapter
from convert.adapters.adapter import Adapter, Arrays
from convert.adapters.peft_adapter import CONFIG, write_tensors
from convert.adapters.vocabulary import tell_growth, with_growth
from convert.destination import beside, check_run_free
from convert.storage.weights import read_json
from gpt_common.config import ModelConfig, RunConfig, to_dict, to_toml
from gpt_common.data.conversations.templates import SETTINGS, own_template, settings_of
from gpt_common.data.tokenizers import identity
from gpt_common.errors import UserError
from gpt_common.files import written_whole
from gpt_common.training.checkpoint import find_checkpoint, place_of, read_manifest, validate, write_checkpoint
from gpt_common.training.folder import RUNS
from gpt_common.training.manifest import MODEL_FILE, TOKENIZER_FILE, Manifest, base_entry, base_of
from gpt_common.words import say


@dataclass(frozen=True)
class Library:
    """Whose adapters."""

    name: str
    home: str
    """Whose models its adapters stand beside, as `--to` calls it."""
    weights: str
    read: Callable[[Path, ModelConfig], Adapter]
    write: Callable[[Adapter, Path, str], tuple[str, ...]]


LIBRARIES = {
    "peft": Library("peft", "transformers", peft_adapter.WEIGHTS, peft_adapter.read, peft_adapter.write),
    "mlx-lm": Library("mlx-lm", "mlx-lm", mlx_lm_adapter.WEIGHTS, mlx_lm_adapter.read, mlx_lm_adapter.write),
}
KINDS = {"lora": "LoRA", "dora": "DoRA"}
HOW = "name it with --to peft or mlx-lm, or merge it first (python -m convert fuse {})"


def is_adapter(source: Path) -> bool:
    """Whether a folder is an adapter of another library."""
    return source.is_dir() and (source / CONFIG).is_file()


def held(source: Path, latest: bool = False) -> tuple[Path, Manifest] | None:
    """The checkpoint that `source` means and its manifest, if it is a run of ours with an adapter; all of it checked.

    Raises:
        UserError: it is damaged, or its base is missing or another.
    """
    if not source.is_dir() or not ((source / "state.json").is_file() or (source / "checkpoints").is_dir()):
        return None
    checkpoint = find_checkpoint(source, prefer="latest" if latest else "best")
    try:
        ours = (checkpoint / MODEL_FILE).is_file() and Manifest.read(checkpoint / "state.json").base is not None
    except (OSError, ValueError, UserError):
        return None  # who reads runs names what is wrong with this one
    if not ours:
        return None
    return checkpoint, validate(checkpoint)


def tensors_of(checkpoint: Path) -> Arrays:
    """The tensors of a checkpoint that was validated, float32."""
    from safetensors.numpy import load_file

    return {name: value.astype("f4") for name, value in load_file(checkpoint / MODEL_FILE).items()}


def bring_in(source: Path, base: Path | None, out: Path | None, overwrite: bool) -> Path:
    """An adapter as a run beside its base.

    Raises:
        UserError: no base was named, or the adapter is not one for it.
    """
    if base is None:
        raise UserError(f"{source} is an adapter: bring in its base first, and name that run with --base RUN")
    checkpoint = find_checkpoint(base, prefer="best")
    manifest = validate(checkpoint)
    if manifest.base is not None:
        raise UserError(f"{base} is an adapter itself: name its own base, {base_of(checkpoint, manifest)}")
    there = [one for one in LIBRARIES.values() if (source / one.weights).is_file()]
    library = there[0] if there else LIBRARIES["peft" if "peft_type" in read_json(source / CONFIG) else "mlx-lm"]
    theirs = manifest.run_config
    model, tokenizer = with_growth(source, checkpoint, theirs.model)
    adapter = library.read(source, model)
    destination = out or RUNS / source.resolve().name
    check_run_free(destination, overwrite, (source, checkpoint), CONFIG)
    config = RunConfig(model=model, optim=theirs.optim, data=theirs.data, adapter=adapter.config)
    made = Manifest(
        step=0,
        config=to_dict(config),
        tokenizer=None if tokenizer is None else identity(tokenizer),
        prompt=manifest.prompt,
        written_by={
            "program": "convert",
            "versions": {"python": platform.python_version()},
            "source": {"format": f"{library.name} adapter", "path": str(source)},
        },
        base=base_entry(checkpoint, place_of(destination, 0)),
    )

    def write(folder: Path) -> None:
        write_tensors(adapter.tensors, folder / MODEL_FILE, {})
        if tokenizer is not None:
            tokenizer.save(folder / TOKENIZER_FILE)

    def write_run(folder: Path) -> None:
        write_checkpoint(folder, made, write_files=write, best=True, keep=1)
        (folder / "config.toml").write_text(to_toml(config), encoding="utf-8")
        if (template := own_template(base)) is not None:
            (folder / SETTINGS).write_text(settings_of(template), encoding="utf-8")

    with written_whole(destination) as temporary:
        write_run(temporary)
    kind = KINDS[adapter.config.adapter]
    say(f"{destination}: {kind} of {library.name} beside {checkpoint}, {len(adapter.tensors)} tensors")
    say(f"sample it with `python -m mlx_gpt.sample {destination}`, or train it further with --init-from {destination}")
    return destination


def hand_out(source: Path, found: tuple[Path, Manifest], to: str, out: Path | None, overwrite: bool) -> Path:
    """A run's adapter as a folder of another library.

    Raises:
        UserError: the library cannot hold it.
    """
    if to not in LIBRARIES:
        raise UserError(f"{source} is an adapter: {HOW.format(source)}")
    checkpoint, manifest = found
    config = manifest.run_config
    adapter = Adapter(model=config.model, config=config.adapter, tensors=tensors_of(checkpoint))
    base = base_of(checkpoint, manifest)
    assert base is not None
    destination = out or beside(source, f"-{to}")
    check_run_free(destination, overwrite, (source, base), CONFIG)
    notes: list[str] = []
    name = str(base)

    with written_whole(destination) as folder:
        notes.extend(LIBRARIES[to].write(adapter, folder, name))
        notes.extend(tell_growth(checkpoint, manifest, read_manifest(base), folder))
    for note in notes:
        say(f"note: {note}")
    way = f"python -m convert export {base} --to {LIBRARIES[to].home}"
    say(f"{destination}: adapter for {to}; its base goes there by `{way}`")
    return destination
