"""What `--help`, `--help-all` and `--presets` print: read from the dataclass of a command, without a framework.

`--help` fits a screen: flags in the order in which they are needed, one short sentence each, with the value that holds
if the flag is left out. `--help-all` has every flag and the whole of its docstring.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.config import PRESETS_FOLDER, DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig, preset_names

HELP_WORDS = frozenset({"-h", "--help", "--help-all", "--presets"})
INDENT = 27
"""Column at which the sentences begin."""

PRESETS = {
    "stories": ("stories", "stories-cpu", "stories-worlds", "stories-qa"),
    "Shakespeare": ("shakespeare-char", "shakespeare-char-cpu", "shakespeare-bpe"),
    "TinyStories": ("tinystories",),
    "fast": ("shakespeare-char-cpu-fast", "shakespeare-char-fast", "stories-fast"),
    "families": ("llama-tiny", "deepseek-tiny", "custom-llm-tiny"),
    "GPT-2": ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"),
    "published": ("smollm-135m", "custom-llm-1b"),
}
"""Presets by group, in the order in which a person meets them."""

SHORT = {
    "data": ("dataset",),
    "size": ("n_layer", "n_head", "n_embd", "block_size"),
    "steps": ("max_steps", "max_minutes", "patience", "batch_size", "grad_accum_steps", "seed", "device", "dtype"),
    "rate": ("learning_rate", "warmup_steps"),
    "adapter": ("adapter",),
    "log": ("eval_interval", "checkpoint_interval", "prompts"),
}
"""Fields of a configuration that `--help` shows, by section."""
MORE = {
    "size": ("vocab_size", "dropout"),
    "log": (
        "log_interval",
        "eval_batches",
        "eval_full",
        "keep_checkpoints",
        "sample_interval",
        "sample_tokens",
        "sample_temperature",
    ),
}
"""Fields that `--help-all` has in a section with those."""
SECTION_OF = {
    DataConfig: "data",
    OptimConfig: "rate",
    TrainConfig: "steps",
    AdapterConfig: "adapter",
    ModelConfig: "model families",
}
"""Where `--help-all` has all others."""
KINDS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
NAMES = {"preset": "NAME", "name": "NAME", "dataset": "NAME", "data_dir": "PATH"}
"""Texts that are something more certain."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """One line of the page."""

    name: str
    """The field's."""
    words: str
    """What is typed: `--n-layer N`, or `SRC` for an argument without a flag."""
    text: str
    """The field's docstring, and the choices where they do not fit into `words`."""
    value: str
    """What holds if it is left out; empty if that says nothing."""
    positional: bool = False


def asked(argv: Sequence[str]) -> bool:
    """Whether the command line asks for help."""
    return bool(HELP_WORDS & set(argv))


def answer(kind: type[Any], argv: Sequence[str], prog: str, default: Any = None, values_from: str = "") -> None:
    """Print the page that `argv` asks for."""
    if "--presets" in argv and any(field.name == "preset" for field in dataclasses.fields(kind)):
        print(list_presets())
    else:
        print(page(kind, prog, default, everything="--help-all" in argv, values_from=values_from))


def page(kind: type[Any], prog: str, default: Any = None, *, everything: bool = False, values_from: str = "") -> str:
    """The help of a command.

    Args:
        kind: its dataclass; `examples` of it, where it has any, are shown with `prog` before them.
        default: an instance with the values that hold for flags that are not given.
        everything: all flags, all sentences.
        values_from: whose values these are, for people.
    """
    width = min(shutil.get_terminal_size().columns, 100)
    own, sections = _sections(kind, default, everything)
    nested = any(field.default_factory is RunConfig for field in dataclasses.fields(kind))
    positional = "".join(f" {flag.words}" for flag in own if flag.positional)
    lines = [f"usage: {prog}{positional} [--FLAG VALUE ...]", ""]
    description = " ".join(_docstring(kind).split())
    lines += textwrap.wrap(
        description if everything or len(description) < 2 * width else _first_sentence(description), width
    )
    if examples := getattr(kind, "examples", ()):
        lines += ["", *(f"    {prog} {example}" for example in examples)]
    if values_from:
        lines += ["", *textwrap.wrap(f"[ ]: value of a flag that is left out, from {values_from}", width)]
    for title, flags in (("", own), *sections.items()):
        lines += ["", *([title] if title else [])]
        for flag in flags:
            lines += _flag_lines(flag, width, everything)
        if title == "" and nested:
            lines += _preset_lines(width)
    more = [] if nested or not any(flag.name == "preset" for flag in own) else ["--presets: which there are"]
    if not everything:
        more += [f"--help-all: {'every field of the configuration is a flag' if nested else 'every word on each'}"]
    return "\n".join([*lines, *([""] if more else []), *more])


def list_presets() -> str:
    """Every preset with a line, by group."""
    lines = ["presets, for --preset NAME:"]
    for group, names in PRESETS.items():
        lines += ["", group]
        for name in names:
            lines += textwrap.wrap(
                _about(name), 80, initial_indent=f"  {name:<{INDENT - 4}}  ", subsequent_indent=" " * INDENT
            )
    return "\n".join(lines)


def _about(preset: str) -> str:
    """The first sentence of a preset's header, after its command."""
    text = (PRESETS_FOLDER / f"{preset}.toml").read_text(encoding="utf-8")
    header = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    return _first_sentence(" ".join(header[1:]))


def _preset_lines(width: int) -> list[str]:
    listed = [f"{group}: {', '.join(names)}" for group, names in PRESETS.items()]
    assert sorted(name for names in PRESETS.values() for name in names) == preset_names()
    indent = " " * 6
    lines = [
        line for text in listed for line in textwrap.wrap(text, width, initial_indent="    ", subsequent_indent=indent)
    ]
    return ["  presets (--presets says more of each)", *lines]


def _sections(kind: type[Any], default: Any, everything: bool) -> tuple[list[Flag], dict[str, list[Flag]]]:
    """The flags of a command itself, and those of the configuration in it by section."""
    found: dict[str, dict[str, Flag]] = {}
    for field in dataclasses.fields(kind):
        if field.default_factory is not RunConfig:
            continue
        run = RunConfig() if default is None else getattr(default, field.name)
        for section in dataclasses.fields(RunConfig):
            home = type(getattr(run, section.name))
            for flag in _flags(home, getattr(run, section.name), everything):
                title = next((title for title in SHORT if flag.name in _named(title)), SECTION_OF[home])
                found.setdefault(title, {})[flag.name] = flag
    seldom = () if everything else getattr(kind, "seldom", ())
    own = [flag for flag in _flags(kind, default, everything) if flag.name not in seldom]
    short = getattr(kind, "shows_configuration", False)
    sections: dict[str, list[Flag]] = {}
    for title in (*SHORT, "model families"):
        flags = found.get(title, {})
        first = [flags.pop(name) for name in (_named(title) if everything else SHORT.get(title, ())) if name in flags]
        if everything or short:
            sections[title] = first + (list(flags.values()) if everything else [])
    return own, {title: flags for title, flags in sections.items() if flags}


def _named(title: str) -> tuple[str, ...]:
    return SHORT.get(title, ()) + MORE.get(title, ())


def _flags(kind: type[Any], values: Any, everything: bool) -> list[Flag]:
    """The flags of a dataclass, without those of dataclasses in it."""
    hints = get_type_hints(kind, include_extras=True)
    told = _docstrings(kind)
    return [
        _flag(field, hints[field.name], told.get(field.name, ""), values, everything)
        for field in dataclasses.fields(kind)
        if field.default_factory is not RunConfig
    ]


def _flag(field: dataclasses.Field[Any], hint: Any, text: str, values: Any, everything: bool) -> Flag:
    marks: tuple[Any, ...] = ()
    while get_origin(hint) is Annotated:
        marks += hint.__metadata__
        hint = get_args(hint)[0]
    value = field.default if values is None else getattr(values, field.name)
    metavar = next((mark.metavar for mark in marks if getattr(mark, "metavar", None)), None)
    aliases = [alias for mark in marks for alias in getattr(mark, "aliases", None) or ()]
    # tyro's marker for an argument without a flag.
    if any(str(mark) == "Positional" for mark in marks):
        return Flag(field.name, metavar or field.name.upper(), text, _value(value), positional=True)
    flag = "--" + field.name.replace("_", "-")
    if hint is bool:
        words = f"--no-{field.name.replace('_', '-')}" if value and not everything else flag
        shown = "" if value is dataclasses.MISSING else "on" if value else "off"
        if everything:
            return Flag(field.name, f"{flag}, --no-{flag[2:]}", text, shown)
        return Flag(field.name, words, f"Do not {text[:1].lower()}{text[1:]}" if value else text, "")
    what = metavar or NAMES.get(field.name) or _metavar(hint)
    if not everything and len(flag) + len(what) > INDENT - 5 and "|" in what and metavar is None:
        text, what = what, "KIND"
    return Flag(field.name, " ".join([*aliases, f"{flag} {what}"]).replace(" --", ", --"), text, _value(value))


def _metavar(hint: Any) -> str:
    """What a value of a type is called on the page: `N`, `TEXT`, `adamw|muon`, `PATH...`."""
    origin = get_origin(hint)
    if origin is Literal:
        return "|".join(str(choice) for choice in get_args(hint) if choice)
    if origin in (Union, UnionType):
        return "|".join(_metavar(part) for part in get_args(hint) if part is not NoneType)
    if origin in (tuple, list):
        parts = [part for part in get_args(hint) if part is not Ellipsis]
        several = Ellipsis in get_args(hint) or origin is list
        return _metavar(parts[0]) + "..." if several else " ".join(_metavar(part) for part in parts)
    return KINDS.get(hint, "VALUE")


def _value(value: Any) -> str:
    if value is None or value is dataclasses.MISSING or value in ("", (), []):
        return ""
    if isinstance(value, tuple | list):
        return " ".join(repr(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _flag_lines(flag: Flag, width: int, everything: bool) -> list[str]:
    value = f" [{flag.value}]" if flag.value and not flag.positional else ""
    text = " ".join(flag.text.split())
    text = text if everything else _shortened(re.sub(r"(?<!\.)\.$", "", text), width - INDENT - len(value))
    wrapped = textwrap.wrap(text + value, width - INDENT, break_long_words=False, break_on_hyphens=False)
    head = f"  {flag.words}"
    if len(head) > INDENT - 2:
        return [head, *(" " * INDENT + line for line in wrapped)]
    return [f"{head:<{INDENT}}{line}" if i == 0 else " " * INDENT + line for i, line in enumerate(wrapped)]


def _shortened(text: str, room: int) -> str:
    """As many of the clauses of `text` as fit on a line; the first alone if it does not."""
    ends = [match.start() for match in re.finditer(r"\. |; | \(|$", text) if match.start() >= 12] or [len(text)]
    return text[: max((end for end in ends if end <= room), default=ends[0])]


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s(?=[A-Z`])", text)[0]


def _docstring(kind: type[Any]) -> str:
    return kind.__doc__ or ""


def _docstrings(kind: type[Any]) -> dict[str, str]:
    """Docstrings of the fields of a dataclass and its bases."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        module = sys.modules.get(base.__module__)
        if dataclasses.is_dataclass(base) and module is not None and getattr(module, "__file__", None):
            found |= _docstrings_in(str(module.__file__)).get(base.__name__, {})
    return found


@functools.cache
def _docstrings_in(path: str) -> dict[str, dict[str, str]]:
    """By class and field: the string that stands below a field."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    return {
        node.name: {
            field.target.id: re.sub(r"\s+", " ", below.value.value)
            for field, below in zip(node.body, node.body[1:], strict=False)
            if isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
