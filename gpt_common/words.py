"""Sizes, durations and rates in words, the same on every screen, and text that is harmless to a terminal."""

from __future__ import annotations

import math
import re

WIDTH = 80
"""Columns that everything we print fits into."""


LONGEST_MESSAGE, MESSAGE_LINES = 2000, 3
"""Characters and lines of an error, at most."""

# Control characters but line breaks; what turns the direction of text, or is not seen; halves of surrogate pairs, which
# names of files may hold and no terminal takes; tags. Joiners stay: scripts need them.
_STEERING = re.compile(
    "[\\x00-\\x09\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u206f"
    "\\ufeff\\ufff9-\\ufffb\\ud800-\\udfff\\U000e0000-\\U000e007f]"
)


def printable(text: str) -> str:
    """Text that cannot steer a terminal: what would is spelt out (`\\x1b`, `\\u202e`), except line breaks."""
    return _STEERING.sub(lambda match: match.group().encode("unicode_escape").decode(), text.expandtabs(4))


def one_line(text: str) -> str:
    """`printable`, with line breaks spelt out too: for a name in the middle of a line."""
    return printable(text).replace("\n", "\\n")


def shortened(text: str, room: int) -> str:
    """The text, or as much of its beginning as a column has room for, and a sign that there is more."""
    return text if len(text) <= room else text[: room - 1] + "…"


def say(text: str, *, flush: bool = False) -> None:
    """Print what names and values out of files are in; `printable`."""
    print(printable(text), flush=flush)


def message(text: str) -> str:
    """An error as it may be printed, whatever names and values out of files are in it: short, in a few lines."""
    first, *rest = printable(text[: 2 * LONGEST_MESSAGE]).split("\n", MESSAGE_LINES - 1)
    shown = "\n".join([first, *(line.replace("\n", "\\n") for line in rest)])
    return shown if len(shown) <= LONGEST_MESSAGE else shown[:LONGEST_MESSAGE] + " ..."


def duration(seconds: float) -> str:
    """`0:07`, `12:33`, `1:02:33`, `3d 04:05`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def rate(per_second: float) -> str:
    """`950`, `25.8k`, `1.21M`; `-` where it was not measured."""
    if math.isnan(per_second):
        return "-"
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if per_second >= size:
            return f"{per_second / size:.3g}{unit}" if per_second < 100 * size else f"{per_second / size:.0f}{unit}"
    return f"{per_second:.0f}"


def milliseconds(seconds: float) -> str:
    """`7.25`, `119.3`, `12345`; `-` where it was not measured."""
    if math.isnan(seconds):
        return "-"
    ms = seconds * 1e3
    return f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 10_000 else f"{ms:.0f}"


def share(part: float | None) -> str:
    """`34.2%`; `-` where it is not known."""
    return "-" if part is None or math.isnan(part) else f"{part:.1%}"


def watts(power: float | None) -> str:
    """`8.2`, `35.0`, `1234`; `-` where it is not known."""
    return "-" if power is None else f"{power:.1f}" if power < 1000 else f"{power:.0f}"


def usage(part: float | None) -> str:
    """`98%`; `-` where it is not known."""
    return "-" if part is None else f"{part:.0%}"


def in_bytes(count: float) -> str:
    """Bytes on a disk, with a decimal unit: `6.2 GB` is 6.2 x 10^9."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def in_joules(joules: float) -> str:
    """Energy, beside it as a meter counts it: `950 J`, `54.00 kJ (15.00 Wh)`, `7.20 MJ (2.00 kWh)`."""
    if joules < 1000:
        return f"{joules:.3g} J"
    size, unit = (1e6, "MJ") if joules >= 1e6 else (1e3, "kJ")
    hours, of = (joules / 3.6e6, "kWh") if joules >= 3.6e6 else (joules / 3600, "Wh")
    return f"{joules / size:,.2f} {unit} ({hours:,.2f} {of})"


def in_memory(count: float) -> str:
    """Bytes of memory, which is sold in powers of two: `512 MiB`; `1.25 GiB` is 1.25 x 2^30."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def parameters_in_words(parameters: int, active: int) -> str:
    """`1,075,060,736 parameters (508,829,696 active)`; without the bracket where a token meets all."""
    return f"{parameters:,} parameters" + (f" ({active:,} active)" if active != parameters else "")
