"""Command lines: dataclasses in, dataclasses out; every mistake is one line that names the nearest valid choice."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypeVar

from gpt_common.config import RunConfig
from gpt_common.errors import UserError, nearest

T = TypeVar("T")


def parse(kind: type[T], argv: Sequence[str], *, prog: str, default: T | None = None) -> T:
    """`argv` as an instance of a dataclass (or a union of dataclasses: subcommands); fields are flags, with - or _.

    Args:
        kind: the dataclass; its docstring is the description, its fields' docstrings the help.
        default: values of the flags that are not given.

    Raises:
        UserError: unknown flag, wrong type, value that is no choice; one line.
        SystemExit: 0 after `--help`.
    """
    import tyro

    with _one_line_errors(kind):
        flat = tyro.conf.OmitArgPrefixes[Annotated[kind, tyro.conf.arg(name="")]]  # type: ignore[valid-type]
        extra: dict[str, Any] = {} if default is None else {"default": default}
        return tyro.cli(flat, args=list(argv), prog=prog, console_outputs=True, compact_help=False, **extra)  # type: ignore[no-any-return]


def answer_help(kind: type[Any], prog: str) -> None:
    """Print the help and end if the command line asks for it; called before a framework is imported (< 0.5 s)."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        parse(kind, ["--help"], prog=prog)


def flag_names(kind: type[Any]) -> list[str]:
    """Every `--flag` of a dataclass, nested dataclasses flattened."""
    names = []
    for field in dataclasses.fields(kind):
        if field.default_factory is RunConfig:
            for section in dataclasses.fields(RunConfig):
                names += flag_names(section.default_factory)  # type: ignore[arg-type]
        else:
            names.append("--" + field.name.replace("_", "-"))
    return names


@contextlib.contextmanager
def _one_line_errors(kind: type[Any]) -> Iterator[None]:
    """Turn tyro's boxed error messages into a UserError."""

    def reject(event: Any) -> None:
        name = type(event).__name__
        flag = "" if getattr(event, "argument", None) is None else str(event.argument.lowered.name_or_flags[-1])
        if name == "UnrecognizedArgs":
            word = event.tokens[0]
            known = flag_names(kind) if dataclasses.is_dataclass(kind) else []
            hint = (
                nearest(word.partition("=")[0].replace("_", "-"), known)
                if known and word.startswith("-")
                else "see --help"
            )
            raise UserError(f"unknown argument '{word}': {hint if len(hint) < 200 else 'see --help'}")
        if name == "InvalidChoice":
            raise UserError(f"{flag} '{event.value}' is not a choice: {nearest(event.value, event.choices)}")
        if name == "BadValue":
            raise UserError(f"{flag} needs a value; see --help")
        if name == "InstantiationFailure":
            raise UserError(" ".join(f"{flag} {event.message}".split()))
        if name == "MissingArgs":
            missing = [str(found.arg.lowered.name_or_flags[-1]) for found in event.missing_arguments]
            words = [word if word.startswith("-") else word.upper() for word in missing]
            raise UserError(f"missing argument{'s'[: len(words) - 1]}: {', '.join(words)}; see --help")
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
