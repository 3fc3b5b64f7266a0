"""nanoGPT as a peer: whether a folder is a clone of it, and whether its model can be ours. Loads no framework."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

from convert.contents import gpt2_fields, refuse_fields
from gpt_common.config import RunConfig
from gpt_common.errors import UserError

FILE = "model.py"
PARTS = {"GPTConfig": (), "GPT": ("forward", "configure_optimizers", "generate")}
"""What is used of it: classes, and their methods."""


def check_nanogpt(peers: str, path: Path | None, configs: Sequence[RunConfig]) -> str:
    """The folder of nanoGPT's code as an absolute path, `""` if it is not among the peers.

    Args:
        peers: as on the command line.
        path: what `--nanogpt-path` says.
        configs: what will be measured.

    Raises:
        UserError: no folder is given, or one that holds something else; a shape that nanoGPT's model does not have.
    """
    if "nanogpt" not in [name.strip() for name in peers.split(",")]:
        if path is not None:
            raise UserError("--nanogpt-path is for --peers nanogpt: add that, or leave the path out")
        return ""
    if path is None:
        raise UserError("nanogpt needs --nanogpt-path DIR, your clone of https://github.com/karpathy/nanoGPT")
    _check_code(path)
    for config in configs:
        _refuse_others(config)
    return str(path.resolve())


def _check_code(path: Path) -> None:
    """Whether the folder's model.py has what nanoGPT's has; nothing of it is run."""
    file = path / FILE
    try:
        tree = ast.parse(file.read_bytes())
    except OSError as error:
        raise UserError(f"--nanogpt-path {path}: {file} cannot be read: {error.strerror}") from None
    except (SyntaxError, ValueError) as error:
        raise UserError(f"--nanogpt-path {path}: {file} is no Python: {error}") from None
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    for name, methods in PARTS.items():
        if name not in classes:
            raise UserError(f"--nanogpt-path {path}: {file} has no class {name}, so it is not nanoGPT's")
        own = {node.name for node in classes[name].body if isinstance(node, ast.FunctionDef)}
        for method in methods:
            if method not in own:
                raise UserError(f"--nanogpt-path {path}: {name} of {file} has no {method}, so it is not nanoGPT's")


def _refuse_others(config: RunConfig) -> None:
    """Refuse what nanoGPT's model, optimiser and step do not do."""
    model = config.model
    rng = ("native",) if model.dropout else ("native", "shared")
    only = {"feed_forward": "gelu", "norm_eps": 1e-5, "tied_head": True, "head_bias": False, "dropout_rng": rng}
    refuse_fields(model, "nanoGPT", {**gpt2_fields(model), **only}, "leave --peers nanogpt out")
    for name, found, wanted in (
        ("optimizer", config.optim.optimizer, "adamw"),
        ("adam_eps", config.optim.adam_eps, 1e-8),
        ("gradient_checkpointing", config.train.gradient_checkpointing, False),
        ("dtype", config.train.dtype, "float32"),
    ):
        if found != wanted:
            raise UserError(f"{name} is {found}, and --peers nanogpt is measured with {wanted} only: leave it out")
