"""Checkpoints of ours that were edited, and paths that are not what a path should be."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from gpt_common.training.manifest import MODEL_FILE, OPTIMIZER_FILE, STATE_FILE
from tests.convert.hostile.corpus import Case, Make, native_run, rehash

UP_PROJ = "blocks.1.feed_forward.up_proj.weight"
NORM = "final_norm.weight"


def _state(**values: Any) -> Make:
    return native_run(state=lambda state: state.update(values))


def _model_config(**values: Any) -> Make:
    return native_run(state=lambda state: state["config"]["model"].update(values))


def _tampered(file: str, change: Callable[[dict[str, np.ndarray]], Any], *, hide: bool) -> Make:
    """Tensors changed after the manifest was written; `hide` corrects the manifest as well."""

    def finish(checkpoint: Path) -> None:
        tensors = load_file(checkpoint / file)
        change(tensors)
        save_file(tensors, checkpoint / file)
        if hide:
            rehash(checkpoint)

    return native_run(finish=finish)


def _text(content: str) -> Make:
    return native_run(finish=lambda checkpoint: (checkpoint / STATE_FILE).write_text(content))


def _bytes(file: str, change: Callable[[bytes], bytes]) -> Make:
    return native_run(finish=lambda c: (c / file).write_bytes(change((c / file).read_bytes())))


def _remove(*files: str) -> Make:
    def remove(checkpoint: Path) -> None:
        for file in files:
            (checkpoint / file).unlink()

    return native_run(finish=remove)


def _pointer(target: str) -> Make:
    """`latest` and `best` that name something else, with nothing else to fall back on."""

    def make(folder: Path) -> Path:
        run = native_run()(folder)
        (run / "checkpoints" / "step-000003").rename(folder / "elsewhere")
        for name in ("latest", "best"):
            (run / "checkpoints" / name).write_text(target + "\n")
        return run

    return make


MODEL, MOMENTS, STATE = MODEL_FILE, OPTIMIZER_FILE, STATE_FILE
NATIVE = [
    Case("a wrong hash", native_run(state=lambda s: s["tensors"][MODEL].update({NORM: "0" * 64})), (NORM,), file=MODEL),
    Case("a hash too few", native_run(state=lambda s: s["tensors"][MODEL].pop(NORM)), (NORM,), file=MODEL),
    Case("a hash too many", native_run(state=lambda s: s["tensors"][MODEL].update(x="0" * 64)), ("x",), file=MODEL),
    Case(
        "hashes of no file",
        native_run(state=lambda s: s.update(tensors={})),
        (MODEL.replace(".", r"\."),),
        file="step-000003",
    ),
    Case("hashes that are a list", _state(tensors=[1]), ("tensors",), file=STATE),
    Case(
        "hashes of one file that are a list",
        native_run(state=lambda s: s["tensors"].update({MODEL: [1]})),
        ("tensors",),
        file=STATE,
    ),
    Case("a best loss as text", _state(best_val_loss="low"), ("best_val_loss",), file=STATE),
    Case("a future version", _state(format_version=99), ("99",), file=STATE),
    Case("no version", native_run(state=lambda s: s.pop("format_version")), ("format_version",), file=STATE),
    Case("no step", native_run(state=lambda s: s.pop("step")), ("step",), file=STATE),
    Case("a step as text", _state(step="three"), ("step", "three"), file=STATE),
    Case("a negative step", _state(step=-3), ("step", "-3"), file=STATE),
    Case("a step of NaN", _state(step=float("nan")), ("step", "nan"), file=STATE),
    Case("no configuration", native_run(state=lambda s: s.pop("config")), ("config",), file=STATE),
    Case("a configuration that is text", _state(config="tiny"), ("config",), file=STATE),
    Case("an unknown field", _model_config(n_heads=2), ("n_heads", "n_head"), file=STATE),
    Case("n_head that does not divide", _model_config(n_head=3), ("n_head", "3"), file=STATE),
    Case("n_layer of 10^9", _model_config(n_layer=10**9), ("n_layer|layers", "1000000000"), file="step-000003"),
    Case("a vocabulary that follows a tokenizer", _model_config(vocab_size=0), ("vocab_size",), file="step-000003"),
    Case(
        "a wider model than its tensors",
        _model_config(n_embd=16),
        (r"token_embedding\.weight", "16"),
        file="step-000003",
    ),
    Case("state.json is empty", _text(""), (), file=STATE),
    Case("state.json is no JSON", _text("step: 3"), (), file=STATE),
    Case("state.json is a number", _text("3"), (), file=STATE),
    Case("state.json is a list", _text("[]"), (), file=STATE),
    Case("state.json nested 100 000 deep", _text("[" * 100_000), (), file=STATE),
    Case("state.json is no UTF-8", _bytes(STATE, lambda d: b"\xff" + d), (), file=STATE),
    Case("no weights", _remove(MODEL), (), file=MODEL),
    Case("no moments though listed", _remove(MOMENTS), (), file=MOMENTS),
    Case(
        "a bit in the weights",
        _bytes(MODEL, lambda d: d[:-9] + bytes([d[-9] ^ 4]) + d[-8:]),
        ("changed|hash",),
        file=MODEL,
    ),
    Case(
        "a bit in the moments",
        _bytes(MOMENTS, lambda d: d[:-9] + bytes([d[-9] ^ 4]) + d[-8:]),
        ("changed|hash",),
        file=MOMENTS,
    ),
    Case("cut weights", _bytes(MODEL, lambda d: d[:-9]), (), file=MODEL),
    Case("a tensor missing", _tampered(MODEL, lambda t: t.pop(UP_PROJ), hide=False), (UP_PROJ,), file=MODEL),
    Case("a tensor missing, hidden", _tampered(MODEL, lambda t: t.pop(UP_PROJ), hide=True), (UP_PROJ,), file=None),
    Case(
        "a tensor too many, hidden",
        _tampered(MODEL, lambda t: t.update(adapter=t[NORM]), hide=True),
        ("adapter",),
        file=None,
    ),
    Case(
        "a misshapen tensor, hidden",
        _tampered(MODEL, lambda t: t.update({NORM: t[NORM][:7]}), hide=True),
        (NORM, "7"),
        file=None,
    ),
    Case(
        "float64, hidden",
        _tampered(MODEL, lambda t: t.update({NORM: t[NORM].astype("f8")}), hide=True),
        (NORM, "F64|float64"),
        file=None,
    ),
    Case(
        "integers, hidden",
        _tampered(MODEL, lambda t: t.update({NORM: t[NORM].astype("i4")}), hide=True),
        (NORM, "I32|int32"),
        file=None,
    ),
    Case(
        "a moment missing, hidden",
        _tampered(MOMENTS, lambda t: t.pop(f"exp_avg.{NORM}"), hide=True),
        (f"exp_avg.*{NORM}",),
        file=None,
    ),
    Case(
        "a moment too many, hidden",
        _tampered(MOMENTS, lambda t: t.update(momentum=t[f"exp_avg.{NORM}"]), hide=True),
        ("momentum",),
        file=None,
    ),
    Case(
        "a misshapen moment, hidden",
        _tampered(MOMENTS, lambda t: t.update({f"exp_avg_sq.{UP_PROJ}": np.ones((8, 32), np.float32)}), hide=True),
        (f"exp_avg_sq.*{UP_PROJ}", "8, 32"),
        file=None,
    ),
    Case("a pointer up the path", _pointer("../../elsewhere"), (), file="run"),
    Case("a pointer at an absolute path", _pointer("/etc"), (), file="run"),
    Case(
        "a run without checkpoints",
        native_run(finish=shutil.rmtree),
        (),
        file="run",
    ),
]
NATIVE = [Case(f"native: {c.name}", c.make, c.says, file=c.file or "step-000003", command="mlx2torch") for c in NATIVE]


def _nothing(name: str) -> Make:
    return lambda folder: folder / name


def _folder(name: str) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).mkdir()
        return folder / name

    return make


def _link(target: str) -> Make:
    def make(folder: Path) -> Path:
        (folder / "ckpt.pt").symlink_to(target)
        return folder / "ckpt.pt"

    return make


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "ckpt.pt")
    return folder / "ckpt.pt"


def _readme(folder: Path) -> Path:
    (folder / "notes").mkdir()
    (folder / "notes" / "README.md").write_text("nothing here")
    (folder / "notes" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    return folder / "notes"


NO_FILE = "no such|not exist|not found|there is no|missing"
PATHS = [
    Case("nothing there", _nothing("ckpt.pt"), (NO_FILE,)),
    Case("an empty folder", _folder("empty"), ("(without a|holds no) checkpoint",)),
    Case("a folder called ckpt.pt", _folder("ckpt.pt"), ("(without a|holds no) checkpoint",)),
    Case("a folder of notes", _readme, ("safetensors|weights|n_layer|n_embd|no known|neither|holds no",)),
    Case("a link to nothing", _link("nothing.pt"), (NO_FILE + "|link",)),
    Case("a link to itself", _link("ckpt.pt"), ("link|loop|too many|" + NO_FILE,)),
    Case("a pipe", _pipe, ("neither a file nor a folder",)),
    Case("/dev/zero", _link("/dev/zero"), ("neither a file nor a folder",)),
    Case("/dev/null", _link("/dev/null"), ("neither a file nor a folder",)),
    Case("nothing there, on the way back", _nothing("run"), (NO_FILE,), command="mlx2torch"),
    Case(
        "an empty folder, on the way back",
        _folder("run"),
        ("(without a|holds no) checkpoint",),
        command="mlx2torch",
    ),
]
