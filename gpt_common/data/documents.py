"""Texts of many documents: where one ends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from gpt_common.data.tokenizers import END_OF_TEXT
from gpt_common.errors import UserError

Part = tuple[bool, str]
"""Whether this is a separator, and its text; a document may come in several parts."""


def split_documents(blocks: Iterable[str], separator: str | None) -> Iterator[Part]:
    """The text that `blocks` make, in parts: concatenated they are the text again, separators included.

    A separator that fills a line takes its line end with it: the document behind it begins with its first word.

    Args:
        separator: None: there is none, and all is one document.
    """
    if separator is None:
        yield from ((False, block) for block in blocks)
        return
    pattern, waiting, line_begins = re.compile(re.escape(separator)), "", True
    for block in _and_last(blocks):
        waiting += block or ""
        done = 0
        # Two characters more: the line end, which may be \r\n.
        while (match := pattern.search(waiting, done)) and (block is None or match.end() + 2 <= len(waiting)):
            if match.start() > done:
                yield False, waiting[done : match.start()]
                line_begins = waiting[match.start() - 1] == "\n"
            done = match.end()
            if line_begins and "\n" not in separator:
                done += 2 if waiting[done : done + 2] == "\r\n" else waiting[done : done + 1] == "\n"
            yield True, waiting[match.start() : done]
            line_begins = waiting[done - 1] == "\n"
        # What may be the beginning of a separator waits for the next block.
        keep = match.start() if match else max(done, len(waiting) - len(separator) + 1) if block is not None else None
        if waiting[done:keep]:
            yield False, waiting[done:keep]
            line_begins = waiting[done:keep][-1] == "\n"
        waiting = "" if keep is None else waiting[keep:]


def _and_last(blocks: Iterable[str]) -> Iterator[str | None]:
    yield from blocks
    yield None


def separator_of(choice: str | None) -> str | None:
    """What `--separator` means: <|endoftext|> if it was not given, None for `none`, else the text itself.

    A person cannot type a line end: \\n and \\t stand for themselves.

    Raises:
        UserError: it is empty, which stands everywhere.
    """
    if choice == "":
        raise UserError("--separator is empty: give what stands between two documents, or `none`")
    if choice is None:
        return END_OF_TEXT
    return None if choice == "none" else choice.replace("\\n", "\n").replace("\\t", "\t").replace("\\r", "\r")


def cut_at_document(parts: Iterable[Part], cut: int, total: int, start: int) -> int:
    """Where to divide a text of `total` characters near `cut`: behind the separator that comes next.

    A separator is never divided. Where the next one comes so late that less than half of the second part were left,
    the cut stays where it is.

    Args:
        parts: of the text from character `start` on.
    """
    position = start
    for is_separator, text in parts:
        before, position = position, position + len(text)
        if is_separator and position >= cut:
            return position if before < cut or 2 * (total - position) >= total - cut else cut
        if not is_separator and 2 * (total - position) < total - cut:
            return cut
    return cut
