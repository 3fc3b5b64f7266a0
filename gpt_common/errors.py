"""Errors that a person can act on, and the exit codes that go with them.

0 done; 1 the work itself failed (a run diverged, parity broke); 2 the person must change something;
129, 130 and 143 stopped by SIGHUP, SIGINT or SIGTERM after saving.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from gpt_common.words import message


class UserError(Exception):
    """What a person did wrong and what to do about it, in one or two lines. Exit code 2."""

    exit_code = 2


class WorkFailed(Exception):
    """The command was right and the work itself failed: a diverged run, a broken parity. Exit code 1."""

    exit_code = 1


class Stopped(Exception):
    """A signal ended the work after everything was saved.

    Args:
        signal_number: 2 for SIGINT, 15 for SIGTERM; the exit code is 128 more.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.exit_code = 128 + signal_number


class ToldElsewhere(Exception):
    """Another process of the same run says what is wrong: this one ends without a word, with its exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("rank 0 says what is wrong")
        self.exit_code = exit_code


MOST_LISTED = 500
"""Choices that a message lists; a longer list is none that anybody reads."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """`did you mean 'x'?` for the choice of which `word` is a slip of the pen, or the list of choices if there is none.

    A slip is the beginning of a choice, or one wrong letter, two from 6 letters on, three from 10. What is further away
    is another word, and to suggest it would mislead.
    """
    choices = sorted(choices, key=lambda choice: (int(choice) if choice.isdecimal() else 0, choice))
    letters = word.lstrip("-")
    # What is longer than all choices is none of them, and out of a file it may be endless.
    near = [choice for choice in choices if abs(len(choice.lstrip("-")) - len(letters)) <= 3]
    by_distance = sorted((_edits(letters, choice.lstrip("-")), choice) for choice in near)
    begun = [choice for choice in choices if len(letters) >= 4 and choice.lstrip("-").startswith(letters)]
    allowed = 3 if len(letters) >= 10 else 2 if len(letters) >= 6 else 1 if len(letters) >= 3 else 0
    close = [choice for edits, choice in by_distance if edits <= allowed][:1] or begun
    if 0 < len(close) <= 3:
        return f"did you mean {' or '.join(map(repr, close))}?"
    if len(choices) > MOST_LISTED:
        return f"none of the {len(choices):,} that there are is like it"
    return "choose from: " + ", ".join(choices)


def _edits(one: str, other: str) -> int:
    """Letters to insert, delete, change or swap with their neighbour that make `one` the `other`."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one):
        before, last, row = row, before, [i + 1]
        for j, b in enumerate(other):
            row.append(min(before[j + 1] + 1, row[j] + 1, before[j] + (a != b)))
            if i and j and a == other[j - 1] and one[i - 1] == b:
                row[-1] = min(row[-1], last[j - 1] + 1)
    return row[-1]


@contextmanager
def watching_signals(remember: Callable[[int], None]) -> Iterator[None]:
    """Let `remember` hear of the first SIGINT, SIGTERM or SIGHUP, with its number, instead of ending the process.

    A second SIGINT means now: KeyboardInterrupt. SIGHUP says that the terminal is gone, or the connection of a process
    that was started from another machine; who was started deaf to it, by nohup, stays so.
    """

    def heard(number: int, _: object) -> None:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if number == signal.SIGHUP:
            nobody_listens()
        remember(number)

    deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = (signal.SIGINT, signal.SIGTERM, *(() if deaf else (signal.SIGHUP,)))
    before = {number: signal.signal(number, heard) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def nobody_listens() -> None:
    """Whoever read what this process prints is gone: print to nowhere, since an error in that would end the work.

    A file is still written to.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        with suppress(OSError):
            if os.isatty(descriptor) or stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                os.dup2(nowhere, descriptor)
    os.close(nowhere)


def end_at_once(*_: object) -> None:
    """What Ctrl-C does until `run_main` takes over.

    While a framework is imported, which takes seconds, nothing is to be saved, and a traceback says nothing.
    """
    os.write(2, b"interrupted\n")
    os._exit(130)


def quiet_pipe() -> None:
    """Write out what was printed; a reader that has gone (`... | head`) is not an error and is not mentioned."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Python tries again when it ends, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_main(
    main: Callable[[Sequence[str]], object], argv: Sequence[str] | None = None, *, go_on: bool = False
) -> None:
    """Run a command and end the process with its exit code.

    Errors for people become one `error:` line on stderr; a traceback appears only with `--debug`.

    Args:
        main: the command; takes the arguments without the program's name, returns when done.
        argv: the arguments; `sys.argv[1:]` if None. `--debug` is removed before `main` sees them.
        go_on: return where the command has succeeded.
    """
    if signal.getsignal(signal.SIGINT) is end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    if debug:
        args.remove("--debug")
    try:
        try:
            main(args)
        finally:
            quiet_pipe()
    except (UserError, WorkFailed) as error:
        if debug:
            traceback.print_exc()
        print(f"error: {message(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (Stopped, ToldElsewhere) as stop:
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # `... | head` closed our output: nothing is wrong, and nothing more can be said.
        quiet_pipe()
        sys.exit(0)
    if not go_on:
        sys.exit(0)
