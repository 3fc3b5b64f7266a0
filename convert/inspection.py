"""What a checkpoint is, without reading more than its headers; hashes on request."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from convert.contents import OPTIMIZERS, SIZES, Contents, shape_of_model
from convert.formats import registry
from convert.options import ReadOptions, Source
from convert.soundness import problems
from convert.storage.tensors import Tensor, hashed
from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.config import ModelConfig
from gpt_common.errors import UserError
from gpt_common.network.flops import active_parameter_count
from gpt_common.network.parameters import saved_shapes
from gpt_common.training.manifest import all_finite
from gpt_common.words import in_bytes, one_line, parameters_in_words, say

LINE = 80
"""Columns of a line of settings."""


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Say what a checkpoint is: format, configuration, size, dtypes, step, tensors, and what is not understood."""

    src: Source
    """Any checkpoint that convert reads."""
    preset: str | None = None
    """Which model a bare state dict is: a preset."""
    config: Path | None = None
    """Which model a bare state dict is: a TOML file."""
    hashes: bool = False
    """Read everything: verify checksums and print the SHA-256 of every tensor."""
    latest: bool = False
    """Of a run folder, take the latest checkpoint and not the best."""


def inspect(command: Inspect) -> None:
    """Print the report.

    Raises:
        UserError: the source is not known, or damaged.
    """
    options = ReadOptions(preset=command.preset, config=command.config, latest=command.latest, adapter=True)
    contents = registry.read(command.src, options)
    weights = {**contents.tensors, **contents.unknown}
    found = problems(contents)
    count = sum(tensor.size for name, tensor in weights.items() if not name.endswith("routing_bias"))
    active = count
    if contents.config is not None and contents.base is None and not found:
        active = active_parameter_count(contents.config.model)
    dtypes = Counter(_dtype(contents, name) for name in weights)
    kinds = ", ".join(f"{n} {dtype}" for dtype, n in dtypes.most_common())
    size = in_bytes(sum(t.nbytes for t in {**contents.stored, **contents.unknown}.values()))
    parameters = parameters_in_words(count, active)
    kind = contents.format if contents.base is None else "adapter"
    say(f"{contents.path}: {kind}, {parameters} in {len(weights)} tensors ({kinds}), {size}", flush=True)
    _print_state(contents)
    for problem in found:
        say(f"problem: {problem}")
    if contents.config is None:
        for name in contents.unknown:
            say(f"problem: unexpected tensor {name}: it does not belong to {contents.family}")
    # In the order in which they are used, where every one has its place.
    names = list(weights)
    if contents.config is not None and not found:
        adapter = AdapterConfig() if contents.base is None else contents.config.adapter
        names = list(saved_shapes(contents.model, adapter))
    _print_tensors(contents, {name: weights[name] for name in names}, command.hashes)
    if command.hashes:
        contents.verify()
        say("all checksums match")


def _print_state(contents: Contents) -> None:
    if contents.config is not None:
        settings = _without_defaults(contents.config.model, SIZES)
    else:
        settings = shape_of_model(contents.tensors) | {"n_head": "?", "feed_forward": "? (add --preset or --config)"}
    _print_settings("model", settings)
    if contents.base is not None and contents.config is not None:
        _print_settings("adapter", _without_defaults(contents.config.adapter, ("adapter_rank", "adapter_alpha")))
        there = "" if contents.base.is_dir() else ", which is not there"
        say(f"base: {one_line(str(contents.base))}{there}")
    if contents.grids:
        kinds = Counter(f"{grid.bits} bits, groups of {grid.group_size}" for grid in contents.grids.values())
        parts = [f"{n} {'matrix' if n == 1 else 'matrices'} in {kind}" for kind, n in kinds.most_common()]
        _print_parts("quantised", parts, "; ")
    loss = "" if contents.best_val_loss is None else f", best validation loss {contents.best_val_loss:.4f}"
    state = "no optimiser state"
    if contents.moments:
        kind = "adamw" if contents.config is None else contents.config.optim.optimizer
        state = f"{OPTIMIZERS[kind]} state of {len({name.partition('.')[2] for name in contents.moments})} tensors"
    say(f"step {contents.step:,}, {state}{loss}")
    try:
        tokenizer, notes = contents.find_tokenizer()
    except UserError as error:
        tokenizer, notes = None, (str(error),)
    if tokenizer is not None:
        say(f"tokenizer: {tokenizer.kind}, {tokenizer.vocab_size:,} tokens, fingerprint {tokenizer.fingerprint[:12]}")
    for note in (*contents.notes, *notes):
        say(f"note: {note}")


def _without_defaults(config: ModelConfig | AdapterConfig, always: Collection[str]) -> dict[str, object]:
    """The fields that are always told, and those that differ from the defaults."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: value for name, value in fields.items() if name in always or value != getattr(type(config)(), name)}


def _print_settings(what: str, settings: Mapping[str, object]) -> None:
    """`what: name value, ...` in lines that break between settings."""
    _print_parts(what, [f"{name} {value}" for name, value in settings.items()], ", ")


def _print_parts(what: str, parts: Iterable[str], between: str) -> None:
    words = between.join(part.replace(" ", "\xa0") for part in parts)
    lines = textwrap.wrap(f"{what}: {words}", LINE, subsequent_indent="  ", break_on_hyphens=False)
    say("\n".join(lines).replace("\xa0", " "))


def _print_tensors(contents: Contents, tensors: Mapping[str, Tensor], hashes: bool) -> None:
    """One line for each, two where a narrow terminal would break them, and one name where the file's is ours."""
    names = {name: contents.own_name(name) for name in tensors}
    width = max([len(name) for name in tensors] + [6])
    own = max([len(name) for name in names.values()] + [16])
    kinds = {name: f"{_dtype(contents, name):<5} {'x'.join(map(str, t.shape))}" for name, t in tensors.items()}
    total = width + own + 4 + max([len(kind) for kind in kinds.values()] + [0])
    foreign = any(name != theirs for name, theirs in names.items())
    apart = foreign and not hashes and sys.stdout.isatty() and total > shutil.get_terminal_size().columns
    if foreign and not apart:
        say(f"\n{'tensor':<{width}}  {'name in the file':<{own}}  dtype shape")
    else:
        say(f"\n{'tensor':<{width}}  dtype shape" + ("\n  name in the file" if apart else ""))
    for name, tensor in tensors.items():
        theirs = f"  {names[name]:<{own}}" if foreign and not apart else ""
        line = f"{name:<{width}}{theirs}  {kinds[name]}" + (f"\n  {names[name]}" if apart else "")
        say(f"{line}  {_sha256(tensor)}" if hashes else line, flush=hashes)
    if hashes:
        for name, tensor in contents.moments.items():
            say(f"{name:<{width}}  {tensor.dtype:<5} {'x'.join(map(str, tensor.shape))}  {_sha256(tensor)}", flush=True)


def _dtype(contents: Contents, name: str) -> str:
    """Of a tensor; of a quantised matrix its bits."""
    grid = contents.grids.get(name.removesuffix(".weight"))
    return {**contents.tensors, **contents.unknown}[name].dtype if grid is None else f"{grid.bits}bit"


def _sha256(tensor: Tensor) -> str:
    """As in a native checkpoint's manifest, and whether the tensor holds what is no number."""
    blocks, sha256 = hashed(tensor)
    spoilt = sum(not all_finite(tensor.dtype, block) for block in blocks)
    return sha256() + ("  NaN or infinity" if spoilt else "")
