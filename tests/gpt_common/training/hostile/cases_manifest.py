"""state.json: what nobody writes in earnest, entries of wrong types and out of range, sizes that no file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt_common.training.manifest import MODEL_FILE, OPTIMIZER_FILE, STATE_FILE
from tests.gpt_common.training.hostile.case import READING, TRAINING, Case
from tests.gpt_common.training.hostile.sound import Damage, checkpoint_of, config, content, place, state


def _text(written: bytes) -> Damage:
    return content(STATE_FILE, lambda _: written)


def _set(**values: Any) -> Damage:
    return state(lambda entries: entries.update(values))


def _without(name: str) -> Damage:
    return state(lambda entries: entries.pop(name))


def _listed_elsewhere(name: str) -> Damage:
    """The manifest lists a file somewhere else on the disk; there it is."""

    def damage(run: Path) -> None:
        outside = run.parent / "outside.safetensors"
        outside.write_bytes(place(run, MODEL_FILE).read_bytes())
        where = name.format(outside=outside, up="../../../outside.safetensors")
        state(lambda entries: entries["tensors"].update({where: entries["tensors"][MODEL_FILE]}))(run)

    return damage


def _numbers(name: str, written: bytes) -> Damage:
    """An entry with a number that Python's own writer would not give."""

    def damage(run: Path) -> None:
        state(lambda entries: entries.update({name: 12345.5}))(run)
        path = checkpoint_of(run) / STATE_FILE
        path.write_bytes(path.read_bytes().replace(b"12345.5", written))

    return damage


S = "state.json"
TEXTS = {
    "nothing": b"",
    "no JSON": b"hello",
    "no UTF-8": b'{"step": "\xff\xfe"}',
    "a list": b"[1, 2]",
    "null": b"null",
    "a number of 100 000 digits": b'{"step": ' + b"9" * 100_000 + b"}",
    "100 000 deep": b'{"a":' * 100_000,
    "lists 100 000 deep": b"[" * 100_000 + b"]" * 100_000,
    "millions of lists": b"[" + b"[]," * 4_000_000 + b"[]]",
    "a text of 40 MB": b'{"prompt": "' + b"x" * 40_000_000 + b'"}',
    "a step twice": b'{"format_version": 1, "step": 3, "step": 4, "config": {}, "tensors": {}}',
}
CASES = [
    *(Case(f"manifest: {name}", _text(text), S) for name, text in TEXTS.items()),
    Case("manifest: torn", content(STATE_FILE, lambda text: text[:100]), S),
    *(Case(f"manifest: no {name}", _without(name), name) for name in ("format_version", "step", "config", "tensors")),
    *(
        Case(f"manifest: {name} {value!r:.40}", _set(**{name: value}), f"{S}.*{name}|format version")
        for name, value in (
            ("format_version", 2),
            ("format_version", "1"),
            ("format_version", [1]),
            ("step", -1),
            ("step", "3"),
            ("step", True),
            ("step", 3.5),
            ("step", None),
            ("step", 10**400),
            ("tokens", -5),
            ("tokens", 1e300),
            ("best_step", 1.5),
            ("best_step", {}),
            ("val_loss", "low"),
            ("best_val_loss", "2.0"),
            ("best_val_loss", [2.0]),
            ("best_val_loss", 10**400),
            ("config", []),
            ("config", {"model": 1}),
            ("config", "x"),
            ("tensors", {}),
            ("tensors", []),
            ("tensors", {MODEL_FILE: {}}),
            ("tensors", {MODEL_FILE: 3}),
            ("tensors", {MODEL_FILE: {"a": 5}}),
            ("tensors", {OPTIMIZER_FILE: {"a": "0"}}),
            ("dataset", "letters"),
            ("dataset", {"name": 1, "fingerprint": "0"}),
            ("tokenizer", {"kind": "char"}),
            ("tokenizer", {"kind": "char", "fingerprint": "0", "vocab_size": 2.5}),
            ("written_by", "me"),
            ("prompt", 5),
        )
    ),
    *(
        Case(f"manifest: {name} {written.decode()}", _numbers(name, written), S)
        for name in ("val_loss", "best_val_loss")
        for written in (b"NaN", b"Infinity", b"-Infinity", b"1e999")
    ),
    *(
        Case(f"manifest: a file at {where}", _listed_elsewhere(where), "tensors must list")
        for where in ("{up}", "{outside}", "./model.safetensors", "\x1b[2J", "nul\0byte")
    ),
    # Sizes: what the tensors' header says is compared before anything is made of them.
    *(
        Case(
            f"config: {name!r:.20} {value!r:.40}",
            config("model", **{name: value}),
            f"{S}|configuration|head.weight",
            READING,
        )
        for name, value in (
            ("n_layer", 10**9),
            ("n_layer", 9_999),
            ("n_layer", 3),
            ("n_layer", 1),
            ("n_layer", 0),
            ("n_layer", -1),
            ("n_layer", "2"),
            ("n_layer", 2.0),
            ("n_layer", True),
            ("n_layer", 10**30),
            ("n_embd", 2**40),
            ("n_embd", 2**40 + 1),
            ("n_embd", 16),
            ("n_embd", -8),
            ("n_head", 2**40),
            ("n_head", 3),
            ("head_size", 2**40),
            ("block_size", 2**40),
            ("block_size", 15),
            ("block_size", 0),
            ("vocab_size", 0),
            ("vocab_size", 2**40),
            ("vocab_size", 10**9),
            ("vocab_size", 9),
            ("vocab_size", -1),
            ("feed_forward_width", 2**40),
            ("n_kv_head", 1),
            ("attention", "none"),
            ("attention", ["multi_head"]),
            ("norm_eps", "x"),
            ("norm_eps", -1.0),
            ("norm_eps", 10**400),
            ("dropout", 1.5),
            ("tied_head", 1),
            ("tied_head", False),
            ("what", 1),
            ("\x1b[2J", 1),
            ("x" * 1_000_000, 1),
        )
    ),
    Case(
        "config: experts without end",
        config("model", feed_forward="moe", n_expert=2**40, experts_per_token=1, expert_width=2**40),
        S,
        READING,
    ),
    Case("config: a million lists", config("model", n_layer=[[]] * 1_000_000), S),
    Case("config: an unknown table", config("modl", n_layer=1), S),
    *(
        Case(f"config: {table} {name} {value!r:.40}", config(table, **{name: value}), f"{S}.*{name}", TRAINING)
        for table, name, value in (
            ("optim", "learning_rate", -1.0),
            ("optim", "learning_rate", "fast"),
            ("optim", "beta1", 1),
            ("optim", "optimizer", "sgd"),
            ("train", "max_steps", 0),
            ("train", "batch_size", -1),
            ("train", "trackers", ["x"]),
            ("train", "prompts", [1]),
            ("train", "prompts", "abc"),
            ("train", "device", "tpu"),
        )
    ),
    Case("config: another dataset", config("data", dataset="../letters"), "letters", {"resume"}),
    Case("config: a batch of 2^40", config("train", batch_size=2**40), "memory|batch", {"resume"}),
    Case("config: muon", config("optim", optimizer="muon"), "momentum|optimizer.safetensors", {"resume"}),
    Case("config: a mean of weights", config("optim", ema_decay=0.9), "weights", {"resume"}),
    Case("manifest: finished", _set(step=5), "finished", {"resume"}),
    Case("manifest: beyond its end", _set(step=10**15), "finished", {"resume"}),
    Case(
        "manifest: other data",
        _set(dataset={"name": "letters", "fingerprint": "\x1b[31m"}),
        "fingerprint",
        {"resume"},
    ),
    Case(
        "manifest: another tokenizer",
        _set(tokenizer={"kind": "\x1b[31m", "fingerprint": "0" * 64, "vocab_size": 9}),
        "tokenizer",
        TRAINING,
    ),
]
