"""Regular expressions of JSON schemas, which are JavaScript's, in the words of the library that follows them.

Where both have the same words for different things, they are translated; what only one of them has is refused.
"""

from __future__ import annotations

import re

from gpt_common.errors import UserError

LONGEST = 10_000
"""Characters of an expression."""
BLANKS = r"\t\n\x0b\x0c\r \u{a0}\u{1680}\u{2000}-\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}\u{feff}"
"""JavaScript's `\\s`."""
LINE_ENDS = r"\n\r\u{2028}\u{2029}"
"""What JavaScript's `.` does not match."""
_AHEAD = {"(?=": "lookahead", "(?!": "lookahead", "(?<=": "lookbehind", "(?<!": "lookbehind"}


def translated(pattern: str, where: str) -> str:
    """An expression of a JSON schema for llguidance; unanchored, as it was.

    Args:
        where: its place, for the message.

    Raises:
        UserError: something in it that would be followed wrongly or not at all.
    """
    if len(pattern) > LONGEST:
        raise UserError(f"{where}: the pattern has {len(pattern)} characters: {LONGEST}, at most")
    made: list[str] = []
    at, inside = 0, False

    def refuse(what: str) -> UserError:
        return UserError(f"{where}: the pattern has {what} at position {at}, which is not supported")

    while at < len(pattern):
        letter, rest = pattern[at], pattern[at:]
        step = 1
        if letter == "\\":
            escaped, step = _escaped(rest, inside)
            if step == 0:
                raise refuse(escaped)
            made.append(escaped)
        elif inside:
            if rest.startswith("--"):
                raise refuse("'--' in a class")
            inside = letter != "]"
            made.append(f"\\{letter}" if letter in "[&~" else letter)
        elif letter == "[":
            negated = rest.startswith("[^")
            step = 2 if negated else 1
            if rest[step : step + 1] == "]":
                raise refuse("an empty class")
            # A class with all control characters and without the quotation mark or the backslash would let these two
            # through (derivre 0.3.x, json_quote): so none has them all.
            made.append(r"[^\x00" if negated else "[")
            inside = True
        elif letter == ".":
            made.append(f"[^{LINE_ENDS}]")
        elif rest.startswith("(?"):
            name = re.match(r"\(\?<[A-Za-z_$][\w$]*>", rest)
            ahead = next((what for sign, what in _AHEAD.items() if rest.startswith(sign)), None)
            if ahead or not (name or rest.startswith("(?:")):
                raise refuse(f"a {ahead}" if ahead else f"the group {rest[:4]!r}")
            made.append("(?:")
            step = len(name[0]) if name else 3
        elif letter == "{":
            times = re.match(r"\{\d{1,6}(,\d{0,6})?\}", rest)
            if times is None:
                raise refuse("a brace that is no count")
            made.append(times[0])
            step = len(times[0])
        else:
            made.append(f"\\{letter}" if letter in "]}&~-#" else letter)
        at += step
    if inside:
        raise refuse("a class that does not end")
    return "".join(made)


def _escaped(rest: str, inside: bool) -> tuple[str, int]:
    """What a backslash and what follows it mean, and how many characters that are; 0: what is refused."""
    letter = rest[1:2]
    if not letter:
        return "a backslash with nothing behind it", 0
    if letter in "sS":
        sign = "^" if letter == "S" else ""
        return (BLANKS if inside and not sign else f"[{sign}{BLANKS}]"), 2
    if letter in "dDwWnrtfv":
        return rest[:2], 2
    if letter == "b" and inside:
        return r"\x08", 2
    if match := re.match(r"\\c([A-Za-z])", rest):
        return f"\\x{ord(match[1]) % 32:02x}", 3
    match = re.match(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]{1,6})\})", rest)
    if match:
        code = int(match[1] or match[2] or match[3], 16)
        if code == 0 or 0xD800 <= code < 0xE000 or code > 0x10FFFF:
            return "U+0000" if code == 0 else "half a surrogate pair", 0
        return f"\\u{{{code:x}}}", len(match[0])
    if match := re.match(r"\\p\{(?!C)[A-Za-z_=]+\}", rest):
        return match[0], len(match[0])
    if letter in "0pP":
        return "U+0000" if letter == "0" else "a class of what has not a property, or of control characters", 0
    if letter in "bB":
        return f"a word boundary (\\{letter})", 0
    if letter.isdigit() or letter == "k":
        return "a backreference", 0
    if letter.isascii() and letter.isalpha():
        return f"the escape \\{letter}", 0
    return (f"\\{letter}" if letter.isascii() and not letter.isspace() and letter != "_" else letter), 2


def class_of(characters: frozenset[str] | set[str]) -> str:
    """A class of these characters."""
    return "[" + "".join(f"\\u{{{ord(c):x}}}" for c in sorted(characters)) + "]"


def literal_letters(regex: str) -> str:
    """The letters that stand for themselves in a regular expression outside its classes, as far as can be seen."""
    bare = re.sub(r"\[\^?\]?(?:\\.|[^\]\\])*\]|\\[pPxu]\{[^}]*\}|\\x..|\\u....|\\[A-Za-z0-9]", "", regex)
    bare = re.sub(r"\{[\d,]*\}|\(\?[^:)]*[:)]", "", bare)
    return "".join(one or other for one, other in re.findall(r"\\(.)|([^\\.^$*+?()|])", bare, re.DOTALL))
