"""Command lines: dataclasses in, dataclasses out; every mistake is one line that names the nearest valid choice."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any, TypeVar

from gpt_common import foreign, manual
from gpt_common.config import RunConfig, preset_names
from gpt_common.errors import UserError, end_at_once, nearest, run_main

T = TypeVar("T")


def parse(kind: type[T], argv: Sequence[str], *, prog: str, default: T | None = None, values_from: str = "") -> T:
    """`argv` as an instance of a dataclass; fields are flags, with - or _, and so are other trainers' names for them.

    Args:
        kind: the dataclass; its docstring is the description, its fields' docstrings the help.
        default: values of the flags that are not given.
        values_from: whose values these are, for the help.

    Raises:
        UserError: unknown flag, wrong type, value that is no choice; one line.
        SystemExit: 0 after `--help`, `--help-all` or `--presets`.
    """
    words = list(argv)
    if manual.asked(words):
        manual.answer(kind, words, prog, default, values_from)
        raise SystemExit(0)

    import tyro

    words = in_our_words(kind, words)
    with _one_line_errors(kind):
        flat = tyro.conf.OmitArgPrefixes[Annotated[kind, tyro.conf.arg(name="")]]  # type: ignore[valid-type]
        extra: dict[str, Any] = {} if default is None else {"default": default}
        return tyro.cli(flat, args=words, prog=prog, console_outputs=True, **extra)  # type: ignore[no-any-return]


def parse_subcommand(kinds: Mapping[str, type[T]], argv: Sequence[str], *, prog: str, takes: str = "...") -> T | None:
    """`COMMAND` and what follows it as an instance of its dataclass; None where the list of commands was asked for, and
    is printed.

    Args:
        kinds: the dataclass of each command; the first line of its docstring stands in the list.
        takes: what follows a command, for the list.

    Raises:
        UserError: no such command; and as `parse`.
    """
    if not argv or argv[0] in ("-h", "--help", "--help-all"):
        width = max(8, *map(len, kinds))
        lines = [f"  {name:<{width}} {(kind.__doc__ or '').splitlines()[0]}" for name, kind in kinds.items()]
        print("\n".join([f"usage: {prog} COMMAND {takes}", "", *lines, "", "Each has a --help of its own."]))
        return None
    name, *arguments = argv
    if name not in kinds:
        raise UserError(f"unknown command '{name}': {nearest(name, kinds)}")
    return parse(kinds[name], arguments, prog=f"{prog} {name}")


def in_our_words(kind: type[Any], argv: Sequence[str]) -> list[str]:
    """`argv` with the names that other trainers have for the flags of `kind` put into ours; says what was read so.

    Raises:
        UserError: a foreign name for which there is no flag; the message says what to do.
    """
    if manual.asked(argv):
        return list(argv)
    flags, switches = ([flag.removeprefix("--") for flag in flag_names(kind, of)] for of in (None, bool))
    words, notes = foreign.translated(argv, flags, switches)
    if notes:
        print(f"note: read {'; '.join(notes)}", file=sys.stderr)
    return words


def peek(argv: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Values of flags that must be known before the others are parsed: the last of each, by field name.

    Raises:
        UserError: one of them without a value.
    """
    found: dict[str, str] = {}
    for i, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        key = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and key in names:
            if not equals and (i + 1 == len(argv) or argv[i + 1].startswith("--")):
                choices = f": {', '.join(preset_names())}" if key == "preset" else ""
                raise UserError(f"{flag} needs a value{choices}")
            found[key] = value if equals else argv[i + 1]
    return found


def answer_early(parse_line: Callable[[Sequence[str]], object]) -> None:
    """Say what can be said before a framework is imported, which takes seconds: the help (< 0.5 s), or what is wrong
    with the command line. From here on Ctrl-C ends the process without a traceback.

    Args:
        parse_line: reads the command line. It is read again when the framework is there: what it has to say besides
            is said then.
    """

    def silently(argv: Sequence[str]) -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            parse_line(argv)

    try:
        with contextlib.redirect_stderr(io.StringIO()) if is_other_rank() else contextlib.nullcontext():
            run_main(silently, go_on=True)
    except SystemExit:
        if is_other_rank():
            time.sleep(1)  # for the first to say it: a launcher ends it when another rank ends
        raise
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has made it deaf to Ctrl-C
        signal.signal(signal.SIGINT, end_at_once)


def is_other_rank() -> bool:
    """Whether a launcher has started this process beside a first one, which says the same of the same command line."""
    torchrun = os.environ.get("RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else "0"
    found = [os.environ.get(name, "0") for name in ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")]
    return any(rank not in ("", "0") for rank in [torchrun, *found])


def flag_names(kind: type[Any], of: type[Any] | None = None) -> list[str]:
    """Every `--flag` of a dataclass, nested dataclasses flattened; with `of`, those of that type alone."""
    names = []
    for field in dataclasses.fields(kind):
        if field.default_factory is RunConfig:
            for section in dataclasses.fields(RunConfig):
                names += flag_names(section.default_factory, of)  # type: ignore[arg-type]
        elif of is None or field.type in (of, of.__name__):
            names.append("--" + field.name.replace("_", "-"))
    return names


@contextlib.contextmanager
def _one_line_errors(kind: type[Any]) -> Iterator[None]:
    """Turn tyro's boxed error messages into a UserError."""

    def reject(event: Any) -> None:
        name = type(event).__name__
        flag = "" if getattr(event, "argument", None) is None else str(event.argument.lowered.name_or_flags[-1])
        if name == "UnrecognizedArgs":
            raise UserError(f"unknown argument '{event.tokens[0]}': {_hint(kind, event.tokens[0])}")
        if name == "InvalidChoice":
            choices = [choice for choice in event.choices if choice != "None"]  # which is said by leaving the flag out
            raise UserError(f"{flag} '{event.value}' is not a choice: {nearest(event.value, choices)}")
        if name == "BadValue":
            raise UserError(f"{flag} needs a value; see --help")
        if name == "InstantiationFailure":
            raise UserError(" ".join(f"{flag} {_in_our_words(event.message)}".split()))
        if name == "MissingArgs":
            missing = [str(found.arg.lowered.name_or_flags[-1]) for found in event.missing_arguments]
            words = [word if word.startswith("-") else word.upper() for word in missing]
            choices = [lowered.choices for found in event.missing_arguments if (lowered := found.arg.lowered).choices]
            hint = f"choose from: {', '.join(choices[0])}" if len(missing) == len(choices) == 1 else "see --help"
            raise UserError(f"missing argument{'s'[: len(words) - 1]}: {', '.join(words)}; {hint}")
        if name == "MissingSubcommand":
            raise UserError(f"missing command: choose from: {', '.join(event.subcommand_spec.parser_from_name)}")

    try:
        # Private in tyro 1.0 (the version range in pyproject.toml is narrow for this reason). Without it
        # tyro prints its own box, with the same exit code.
        from tyro._errors import on_parse_error
    except ImportError:
        yield
        return
    with on_parse_error(reject):
        yield


def _in_our_words(message: str) -> str:
    """What is wrong with a value; Python's own words for what is no number are not for people."""
    found = re.search(r"(invalid literal for int\(\) with base 10|could not convert string to float): (.*)", message)
    if found is None:
        return message
    return f"{found[2]} is no {'whole number' if 'int' in found[1] else 'number'}"


def _hint(kind: type[Any], word: str) -> str:
    """What to do about an argument that is none."""
    if word.endswith(".py"):
        return "a configuration is a TOML file: --config FILE.toml; or take a --preset NAME"
    if not word.startswith("-"):
        return "see --help"
    hint = nearest("--" + word.partition("=")[0].lstrip("-").replace("_", "-"), flag_names(kind))
    return hint if len(hint) < 200 else "see --help"


def __getattr__(name: str) -> Any:
    """`parse_training`, for scripts: it builds on this module, and comes when it is asked for."""
    if name == "parse_training":
        return import_module("gpt_common.training.command_line").parse_training
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
