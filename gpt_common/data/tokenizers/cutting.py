"""Where a long text may be cut into pieces that are encoded one by one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

LONGEST_PIECE = 1 << 20
"""Characters. A text without a cut for so long is cut all the same, so that memory stays flat."""

# The splitting rule of GPT-2 (and of ByteLevel, which copies it) reads a text from left to right:
#     's|'t|... | ?letters | ?digits | ?other | whitespace(?!non-whitespace) | whitespace
# A piece is whitespace only, or has none but one space in front; and only whitespace pieces look ahead. So a piece
# always ends between a non-whitespace and a whitespace character, nothing on its left depends on what follows, and
# the right is read afresh. Cutting after the whitespace would be wrong: "a\n\nb" has the pieces a, \n, \n, b, but
# "a\n\n" alone has a, \n\n. Python takes all that is whitespace to either library for whitespace, and more.
_BEFORE_WHITESPACE = re.compile(r".*\S(?=[ \n])", re.DOTALL)

# Of other rules nothing is known: there a cut is tried out on what stands around it. A splitting rule forgets what
# lies several words back, so the surroundings stand for the whole; two sizes, so that they do not begin alike.
_WORD_OR_LINE = re.compile(r"(?<=\S)(?=\s)|(?<=\n)(?=\S)")
_SURROUNDINGS = (257, 640)
_TRIES = 64


def last_cut_before_whitespace(text: str) -> int:
    """`Tokenizer.last_cut` for everything that splits a text as GPT-2 does."""
    match = _BEFORE_WHITESPACE.match(text)
    return match.end() if match else 0


def last_checked_cut(text: str, encode: Callable[[str], list[int]]) -> int:
    """`Tokenizer.last_cut` for any other rule: a word's or line's end at which cutting its surroundings changes no id.

    It needs 640 characters of what follows the cut, so that no continuation of `text` matters.
    """

    def changes_nothing(cut: int) -> bool:
        for size in _SURROUNDINGS:
            left, right = text[max(0, cut - size) : cut], text[cut : cut + size]
            if encode(left) + encode(right) != encode(left + right):
                return False
        return True

    stop, tries = len(text) - max(_SURROUNDINGS), 0
    while stop > 0:
        start = max(0, stop - 4096)
        for position in reversed([match.start() for match in _WORD_OR_LINE.finditer(text, start, stop)]):
            if changes_nothing(position):
                return position
            tries += 1
            if tries == _TRIES:
                return 0
        stop = start
    return 0


def cut_pieces(
    blocks: Iterable[str], last_cut: Callable[[str], int], *, at_least: int = 0, longest: int = LONGEST_PIECE
) -> Iterator[str]:
    """The text that `blocks` make, in pieces that can be encoded one by one.

    Args:
        last_cut: of the tokenizer.
        at_least: cut no earlier than after so many characters.
        longest: cut after so many characters also where no cut is known, at the end of a paragraph, line or word if
            there is one: the one place where encoding the whole text could give another token.
    """
    rest = ""
    for block in blocks:
        rest += block
        while len(rest) > longest:
            cut = last_cut(rest[:longest]) or _end_of_paragraph(rest[:longest])
            yield rest[:cut]
            rest = rest[cut:]
        if len(rest) >= at_least and (cut := last_cut(rest)):
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


def _end_of_paragraph(text: str) -> int:
    """Just behind the last empty line of `text`, else its last line end, else before its last space, else its end."""
    for mark, size in (("\n\n", 2), ("\n", 1), (" ", 0)):
        position = text.rfind(mark)
        if position > 0:
            return position + size
    return len(text)
