"""Rows of a column of text, from parquet by row groups and from JSON lines, from any row on, in memory that is flat."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from gpt_common.errors import UserError, nearest
from gpt_common.words import in_bytes

ROWS_AT_ONCE = 512
LONGEST_LINE = 1 << 26
"""Bytes."""

Row = tuple[int, str]
"""Its number in the file, and its text."""


def require_pyarrow() -> None:
    """Raise a UserError that names the extra, where pyarrow is missing."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise UserError("--hub needs pyarrow: pip install -e '.[hub]'") from None


def rows_of(path: Path, shown: str, column: str, start: int) -> Iterator[Row]:
    """Rows `start` and later; those without text are left out.

    Args:
        path: the file; its name says what it is.
        shown: what to call it in messages.

    Raises:
        UserError: no such column, a row that is no text, or a file that is not what its name says.
    """
    import pyarrow

    read = _parquet if path.name.endswith(".parquet") else _json_lines
    try:
        for number, text in read(path, shown, column, start):
            if text is None or text == "":
                continue
            if not isinstance(text, str):
                raise UserError(f"row {number:,} of {shown} has no text in '{column}': {type(text).__name__}")
            text.encode()
            yield number, text
    except UnicodeError:
        raise UserError(f"a row of {shown} is not valid Unicode") from None
    except (pyarrow.ArrowException, OSError, EOFError) as error:
        raise UserError(f"{shown} cannot be read: {' '.join(str(error).split())[:200]}") from None


def _parquet(path: Path, shown: str, column: str, start: int) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet as parquet
    from pyarrow import types

    with parquet.ParquetFile(path) as file:
        fields = {field.name: field.type for field in file.schema_arrow}
        if column not in fields:
            raise UserError(f"{shown} has no column '{column}': {nearest(column, fields)}")
        kind = fields[column].value_type if types.is_dictionary(fields[column]) else fields[column]
        if not (types.is_string(kind) or types.is_large_string(kind)):
            raise UserError(f"column '{column}' of {shown} holds {kind}, and no text: --column names another")
        first = 0
        for group in range(file.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            if end > start:
                number = first
                for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[column]):
                    skipped = min(max(0, start - number), len(batch))
                    for i, text in enumerate(batch.column(0).slice(skipped).to_pylist()):
                        yield number + skipped + i, text
                    number += len(batch)
            first = end


def _json_lines(path: Path, shown: str, column: str, start: int) -> Iterator[tuple[int, Any]]:
    with _opened(path) as file:
        number = -1
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise UserError(f"line {number + 1:,} of {shown} is longer than {in_bytes(LONGEST_LINE)}")
            if number < start or not line.strip():
                continue
            try:
                row = json.loads(line)
            except UnicodeError:
                raise
            except (ValueError, RecursionError) as error:
                raise UserError(f"line {number + 1:,} of {shown} is no JSON: {str(error)[:80]}") from None
            if not isinstance(row, dict):
                raise UserError(f"line {number + 1:,} of {shown} is no JSON object")
            if column not in row:
                raise UserError(f"line {number + 1:,} of {shown} has no '{column}': {nearest(column, row)}")
            yield number, row[column]


def _opened(path: Path) -> BinaryIO:
    if path.name.endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.name.endswith(".zst"):
        import pyarrow

        return cast(BinaryIO, io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd")))
    return path.open("rb")
