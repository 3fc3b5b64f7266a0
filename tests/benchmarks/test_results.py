"""The result file: every property explained, what is wrong refused, and the document beside it complete."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from benchmarks.readings import Process
from benchmarks.results import (
    VERSION,
    BackendRow,
    Result,
    Settings,
    read_result,
    to_json,
    write_result,
)
from gpt_common.errors import UserError
from tests.benchmarks.recipes import make_result

DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmark-results.md"


@pytest.fixture(scope="module")
def result() -> Result:
    settings = Settings(rounds=2, seconds=0.3, cooldown=0.0, sustained=1.0, generation=True, overhead=True)
    absent = ("mps-compiled", "transformers-cpu")
    return make_result(settings=settings, backends="mps,mlx,cpu,mps-compiled", absent=absent)


def properties(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property of the schema with its path."""
    if isinstance(node, dict):
        for name, child in node.get("properties", {}).items():
            yield f"{path}.{name}", child
        for key, child in node.items():
            yield from properties(child, f"{path}.{key}")
    elif isinstance(node, list):
        for i, child in enumerate(node):
            yield from properties(child, f"{path}[{i}]")


def test_every_property_is_explained() -> None:
    schema = Result.model_json_schema()
    assert schema["properties"]["version"]["const"] == VERSION
    found = list(properties(schema))
    assert len(found) > 120
    # Where a property would say the same as its type, the type alone says it.
    explained = {f"#/$defs/{name}" for name, node in schema["$defs"].items() if node.get("description")}
    missing = [path for path, node in found if not node.get("description") and node.get("$ref") not in explained]
    assert not missing


def test_the_document_names_every_part() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    names = [*Result.model_json_schema()["properties"], *BackendRow.model_fields, *Process.model_fields]
    assert not [name for name in names if f"`{name}`" not in text]


def test_a_result_comes_back_equal(tmp_path: Path, result: Result) -> None:
    write_result(tmp_path / "new" / "r.json", result)
    assert read_result(tmp_path / "new" / "r.json") == result


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("version",), "1"),
        (("extra",), 1),
        (("cases", 0, "rows", 0, "status"), "fast"),
        (("cases", 0, "rows", 0, "summary", "seconds_per_step"), 0),
        (("cases", 0, "rows", 0, "processes", 0, "throughput", "marks"), {"0": ["lucky"]}),
        (("environment", "hardware", "power_source"), "sun"),
        (("parity", "passed"), {"mlx": "yes"}),
    ],
)
def test_what_is_wrong_is_not_read(tmp_path: Path, result: Result, path: tuple[Any, ...], value: Any) -> None:
    broken = json.loads(to_json(result))
    node = broken
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    file = tmp_path / "r.json"
    file.write_text(json.dumps(broken))
    with pytest.raises(UserError, match="damaged" if path != ("version",) else "version 1"):
        read_result(file)
    with pytest.raises(ValidationError):
        Result.model_validate(broken)


def test_what_is_wrong_is_not_written(tmp_path: Path, result: Result) -> None:
    """Types are checked when a part is made; one that was made without is caught before it is on the disk."""
    broken = result.model_copy(update={"created": 7})
    with pytest.raises(ValidationError), pytest.warns(UserWarning, match="serialized value may not be as expected"):
        write_result(tmp_path / "r.json", broken)
    assert not list(tmp_path.iterdir())


def test_a_missing_part_is_refused(result: Result) -> None:
    plain = json.loads(to_json(result))
    for key in plain:
        with pytest.raises(ValidationError):
            Result.model_validate({name: value for name, value in plain.items() if name != key})


def test_nan_becomes_null(result: Result) -> None:
    row = result.cases[0].rows[0]
    process = row.processes[0].model_copy(update={"losses": [float("nan"), float("inf"), 2.0]})
    text = row.model_copy(update={"processes": [process]}).model_dump_json()
    assert json.loads(text)["processes"][0]["losses"] == [None, None, 2.0]


def test_a_machine_may_be_described_more_closely(result: Result) -> None:
    plain = json.loads(to_json(result))
    plain["environment"]["hardware"]["fans"] = 2
    assert Result.model_validate(plain) == result


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "is not a benchmark result"),
        ("[]", "is not a benchmark result"),
        ("{}", "is not a benchmark result"),
        ('{"version": 99}', "version 99"),
        ('{"version": 1}', "damaged"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as refusal:
        read_result(path)
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.json: No such file or directory$"):
        read_result(tmp_path / "none.json")


RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("benchmark-*.json")), ids=lambda path: path.stem)
def test_committed_results_can_be_read(path: Path) -> None:
    """With every backend that was asked for as a row, and every measured one verified in every round."""
    result = read_result(path)
    assert json.loads(to_json(result)) == json.loads(path.read_text())
    rows = [row for row in result.cases[0].rows if row.status == "measured"]
    assert {row.backend for row in result.cases[0].rows} >= {"mps", "mlx", "cpu", "cpu-compiled"}
    assert all(len(row.processes) == result.settings.rounds for row in rows)
    assert all(row.verified in ("parity", "losses") for row in rows)
