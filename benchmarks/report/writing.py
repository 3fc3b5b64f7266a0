"""Everything that a result becomes: JSON, terminal table, page, pictures."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from benchmarks.report.figures import write_pictures
from benchmarks.report.page import render_page
from benchmarks.report.table import print_result
from benchmarks.results import Result, write_result
from gpt_common.files import write_atomically


def write_report(folder: Path, created: datetime, result: Result, parity: Mapping[str, str]) -> list[Path]:
    """Write all files of a result, print its table; returns the paths.

    Args:
        parity: reports of the ladder by their SHA-256, written beside the result so that the hash can be checked.
    """
    stem = folder / f"{result.environment.host or 'host'}-{created:%Y-%m-%d-%H%M%S}"
    path, page = stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.html")
    # The samples first: whatever happens to pictures, they are on disk.
    result = write_result(path, result)
    print_result(result)
    write_atomically(page, render_page(result))
    reports = {stem.with_name(f"{stem.name}-parity-{digest[:8]}.json"): text for digest, text in parity.items()}
    for report, text in reports.items():
        write_atomically(report, text)
    paths = [path, page, *reports, *write_pictures(stem, result)]
    print("\n" + "\n".join(str(path) for path in paths))
    return paths
