"""Errors that a person can act on, and the exit codes that go with them.

0 done; 1 the work itself failed (a run diverged, parity broke); 2 the person must change something;
130 and 143 stopped by SIGINT or SIGTERM after saving.
"""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence


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


def nearest(word: str, choices: Iterable[str]) -> str:
    """`did you mean 'x'?` for the closest choice, or the list of choices if none is close."""
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else "choose from: " + ", ".join(choices)


def run_main(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> None:
    """Run a command and end the process with its exit code.

    Errors for people become one `error:` line on stderr; a traceback appears only with `--debug`.

    Args:
        main: the command; takes the arguments without the program's name, returns when done.
        argv: the arguments; `sys.argv[1:]` if None. `--debug` is removed before `main` sees them.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    if debug:
        args.remove("--debug")
    try:
        main(args)
    except (UserError, WorkFailed) as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Stopped as stop:
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # `... | head` closed our output: nothing is wrong, and nothing more can be said.
        sys.stderr.close()
        sys.exit(0)
    sys.exit(0)
