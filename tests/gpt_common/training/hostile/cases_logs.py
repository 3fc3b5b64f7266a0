"""config.toml, run.json, metrics.jsonl and samples.jsonl: endless, deep, garbled, out of order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.gpt_common.training.hostile.case import LOG, Case
from tests.gpt_common.training.hostile.sound import Damage, content
from tests.gpt_common.training.made_up import SESSION, step

NONE: frozenset[str] = frozenset()
REPORT = frozenset({"report"})
"""A page takes a second, so it is made where figures could go wrong, and once for many that end in text."""


def _written(file: str, text: bytes) -> Damage:
    return content(file, lambda _: text)


def _added(file: str, *rows: Any, raw: bytes = b"") -> Damage:
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    return content(file, lambda data: data + lines + raw)


def _about(**values: Any) -> Damage:
    return content("run.json", lambda data: json.dumps({**json.loads(data), **values}).encode())


def _session(**values: Any) -> Damage:
    return _about(sessions=[{**SESSION, **values}])


def _toml(text: str) -> Damage:
    return _written("config.toml", text.encode("utf-8", "surrogateescape"))


def _empty(run: Path) -> None:
    for path in run.iterdir():
        if path.is_file():
            path.unlink()


TOML = {
    "no TOML": "{]",
    "arrays 100 000 deep": "a = " + "[" * 100_000,
    "tables 100 000 deep": "a = " + "{a = " * 40_000,
    "a key of 100 000 parts": ".".join("a" * 100_000) + " = 1",
    "headers of many parts": "\n".join(f"[{'.'.join('ab' * 100)}.x{i}]" for i in range(500)),
    "a number of 100 000 digits": "[model]\nn_layer = " + "9" * 100_000,
    "a number of 100 000 hexadecimal digits": "[model]\nn_layer = 0x" + "f" * 100_000,
    "a list of such numbers": "[train]\nprompts = [0x" + "f" * 100_000 + "]",
    "a key twice": "[model]\nn_layer = 1\nn_layer = 2",
    "a table twice": "[model]\n[model]",
    "a billion layers": "[model]\nn_layer = 1_000_000_000",
    "a date for a number": "[model]\nn_layer = 1979-05-27",
    "not a number": "[optim]\nmin_lr = nan",
    "endless": "[train]\nmax_minutes = inf",
    "an unknown key": "[model]\nn_layr = 1",
    "a value for a table": "model = 1",
    "an escape in a key": '[model]\n"\\u001b[2J" = 1',
    "a choice that is none": '[model]\nnorm = "\\u001b]0;gone\\u0007"',
    "no bytes of UTF-8": "\udcff",
}
METRICS = {
    "garbage in the middle": b"\x00\xff{{{\n",
    "a list": b"[1]\n",
    "a row without a step": b'{"loss": 1}\n',
    "a step below nothing": b'{"step": -1, "loss": 1}\n',
    "a step of 400 digits": b'{"loss": 1, "step": 1' + b"0" * 400 + b"}\n",
    "a step of 10 000 digits": b'{"loss": 1, "step": 1' + b"0" * 10_000 + b"}\n",
    "a step in words": b'{"step": "4", "loss": 1}\n',
    "a row 100 000 deep": b'{"step": 4, "loss": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "a line of 20 MB": b'{"step": 4, "alarm": "' + b"x" * 20_000_000 + b'"}\n',
    "a line of 20 MB without end": b"x" * 20_000_000,
}
DRAWN: dict[str, list[dict[str, Any]]] = {
    "steps out of order": [step(9), step(2), step(7), step(1)],
    "steps far apart": [step(4), step(2**52)],
    "one step many times": [step(4)] * 2000,
    "numbers of 400 digits": [step(4, loss=10**400, lr=10**400, dt=-(10**400), memory=10**400)],
    "numbers at the edge": [step(4, loss=1e308, lr=-1e308, dt=1e308, tps=1e-320), step(5, loss=-1e308)],
    "texts for numbers": [step(4, loss="low", dt="x", memory=True, tps=[1], mfu={})],
    "times that run backwards": [step(4, time=1e300), step(5, time=-1e300)],
    "loads that are none": [step(4, expert_load=[[1, "x"], []]), step(5, expert_load=[[1e308] * 3, [1]])],
}
READ: dict[str, list[dict[str, Any]]] = {
    "an end without a reason": [{"event": "end", "step": 4}, {"event": "start", "step": 4, "start_up": "x"}],
    "events of strange kinds": [{"event": ["resume"], "step": 4}, {"event": {}, "step": 4}],
    "a million resumptions": [{"event": "resume", "step": 3}] * 60_000,
    "ten thousand alarms": [{"step": 4, "alarm": "\x1b[2J" * 10}] * 10_000,
    "the whole split without numbers": [{"step": 4, "whole_val_loss": None, "bits_per_byte": "x"}],
    "a floor in words": [{"step": 4, "val_loss": "x", "floor": "y"}, {"step": 4, "val_loss": 1.0, "floor": 1e400}],
}
SESSIONS: dict[str, dict[str, Any]] = {
    "a command of a megabyte": {"command": "'" * 1_000_000},
    "a command that is a list": {"command": ["x"]},
    "versions of strange kinds": {"versions": {"python": ["x"], "\x1b[2J": {}}, "git": 5, "chip": {"a": [1]}},
    "versions as a text": {"versions": "3"},
    "a start before time": {"started": "0001-01-01T00:00:00+00:00"},
    "a start after time": {"started": "9999-12-31T23:59:59-12:00"},
    "a start in words": {"started": "soon"},
    "a first step in words": {"first_step": ["x"]},
    "a preset with an escape": {"preset": "\x1b[31m", "device": "\u202edevice"},
}
CASES = [
    *(
        Case(
            f"config.toml: {name}",
            _toml(text),
            "config.toml",
            LOG,
        )
        for name, text in TOML.items()
    ),
    *(
        Case(
            f"metrics.jsonl: {name}",
            _added("metrics.jsonl", raw=raw + b"{}\n" * raw.endswith(b"\n")),
            "metrics.jsonl",
            LOG,
        )
        for name, raw in METRICS.items()
    ),
    *(Case(f"metrics.jsonl: {name}", _added("metrics.jsonl", *rows), "", NONE, REPORT) for name, rows in DRAWN.items()),
    *(Case(f"metrics.jsonl: {name}", _added("metrics.jsonl", *rows), "", NONE) for name, rows in READ.items()),
    Case(
        "metrics.jsonl: all of these",
        _added("metrics.jsonl", *(row for rows in READ.values() for row in rows)),
        "",
        NONE,
        REPORT,
    ),
    Case(
        "run.json: all of these",
        _about(sessions=[{**SESSION, **values} for values in SESSIONS.values()]),
        "",
        NONE,
        REPORT,
    ),
    Case(
        "metrics.jsonl: a resumption without a step", _added("metrics.jsonl", {"event": "resume"}), "metrics.jsonl", LOG
    ),
    *(
        Case(f"run.json: {name}", _written("run.json", text), "run.json", LOG | {"resume"})
        for name, text in (
            ("no JSON", b"{"),
            ("a list", b"[]"),
            ("100 000 deep", b"[" * 100_000),
            ("millions of lists", b"[" + b"[]," * 4_000_000 + b"[]]"),
            ("one key twice", b'{"sessions": [], "sessions": [1]}'),
            ("not a number", b'{"sessions": [NaN]}'),
        )
    ),
    Case("run.json: no sessions", _written("run.json", b"{}"), "run.json", {"resume"}),
    Case("run.json: sessions that are none", _about(sessions=[1, None, "x"]), "", NONE),
    Case("run.json: sessions as a text", _about(sessions="abc"), "run.json", {"resume"}),
    Case("run.json: a dataset that is none", _about(dataset=[1]), "", NONE),
    Case("run.json: a dataset with an escape", _about(dataset={"name": "\x1b[2J"}), "", NONE),
    *(Case(f"run.json: {name}", _session(**values), "", NONE) for name, values in SESSIONS.items()),
    Case(
        "samples.jsonl: garbage",
        _added(
            "samples.jsonl",
            {"step": 4},
            {"step": 10**400, "prompt": "a", "text": "b"},
            raw=b"\x00\xff\n" + b"[" * 100_000,
        ),
        "",
        NONE,
    ),
    Case(
        "samples.jsonl: half a pair",
        _added("samples.jsonl", {"step": 4, "prompt": "\ud800", "text": "\udfff\x1b[2J"}),
        "",
        NONE,
        REPORT,
    ),
    Case("no file but checkpoints", _empty, "is not the folder of a run|holds checkpoints and no log", LOG),
]
