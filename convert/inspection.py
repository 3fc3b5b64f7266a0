"""What a checkpoint is, without reading more than its headers; hashes on request."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from convert import formats
from convert.contents import OPTIMIZERS, Contents, problems, shape_of_model
from convert.options import ReadOptions
from convert.progress import readable
from convert.tensors import Tensor, beside
from gpt_common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Say what a checkpoint is: format, configuration, size, dtypes, step, tensors, and what is not understood."""

    src: Positional[Path]
    """Any checkpoint that convert reads."""
    hashes: bool = False
    """Read everything: verify checksums and print the SHA-256 of every tensor."""
    latest: bool = False
    """Of a run folder, take the latest checkpoint and not the best."""


def inspect(command: Inspect) -> None:
    """Print the report.

    Raises:
        UserError: the source is not known, or damaged.
    """
    contents = formats.read(command.src, ReadOptions(latest=command.latest))
    weights = {**contents.tensors, **contents.unknown}
    count = sum(tensor.size for tensor in weights.values())
    dtypes = Counter(tensor.dtype for tensor in weights.values())
    kinds = ", ".join(f"{n} {dtype}" for dtype, n in dtypes.most_common())
    size = readable(sum(t.nbytes for t in weights.values()))
    print(
        f"{contents.path}: {contents.format}, {count:,} parameters in {len(weights)} tensors ({kinds}), {size}",
        flush=True,
    )
    _print_state(contents)
    found = problems(contents)
    for problem in found:
        print(f"problem: {problem}")
    if contents.config is None:
        for name in contents.unknown:
            print(f"problem: tensor {name} is not part of {contents.family}")
    _print_tensors(contents, command.hashes)
    if command.hashes:
        contents.verify()
        print("every checksum in the file is right")


def _print_state(contents: Contents) -> None:
    if contents.config is not None:
        model = contents.config.model
        settings = {name: getattr(model, name) for name in model.__dataclass_fields__ if name != "dropout_rng"}
    else:
        settings = shape_of_model(contents.tensors) | {"n_head": "?", "feed_forward": "? (add --preset or --config)"}
    print("model: " + ", ".join(f"{name} {value}" for name, value in settings.items()))
    loss = "" if contents.best_val_loss is None else f", best validation loss {contents.best_val_loss:.4f}"
    state = "no optimiser state"
    if contents.moments:
        kind = "adamw" if contents.config is None else contents.config.optim.optimizer
        state = f"{OPTIMIZERS[kind]} state of {len({name.partition('.')[2] for name in contents.moments})} tensors"
    print(f"step {contents.step:,}, {state}{loss}")
    try:
        tokenizer, notes = contents.find_tokenizer()
    except UserError as error:
        tokenizer, notes = None, (str(error),)
    if tokenizer is not None:
        print(f"tokenizer: {tokenizer.kind}, {tokenizer.vocab_size:,} tokens, fingerprint {tokenizer.fingerprint[:12]}")
    for note in (*contents.notes, *notes):
        print(f"note: {note}")


def _print_tensors(contents: Contents, hashes: bool) -> None:
    tensors = {**contents.tensors, **contents.unknown}
    width = max([len(name) for name in tensors] + [6])
    own = max([len(contents.own_name(name)) for name in tensors] + [16])
    print(f"\n{'tensor':<{width}}  {'name in the file':<{own}}  {'dtype':<5} shape")
    for name, tensor in tensors.items():
        line = (
            f"{name:<{width}}  {contents.own_name(name):<{own}}  {tensor.dtype:<5} {'x'.join(map(str, tensor.shape))}"
        )
        print(f"{line}  {_sha256(tensor)}" if hashes else line, flush=hashes)
    if hashes:
        for name, tensor in contents.moments.items():
            print(
                f"{name:<{width}}  {tensor.dtype:<5} {'x'.join(map(str, tensor.shape))}  {_sha256(tensor)}", flush=True
            )


def _sha256(tensor: Tensor) -> str:
    """As in a native checkpoint's manifest."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    for _ in beside(tensor.blocks(), digest.update):
        pass
    return digest.hexdigest()
