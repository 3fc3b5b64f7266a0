"""The result file: every property explained, what is wrong refused, and the document beside it complete."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from benchmarks.measuring.session import Settings
from benchmarks.report.schema import VERSION, finite, read_result, schema, validate, write_result
from gpt_common.errors import UserError
from tests.benchmarks.recipes import make_result

DOCUMENT = Path(__file__).parents[3] / "docs" / "benchmark-results.md"


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    settings = Settings(rounds=2, seconds=0.3, cooldown=0.0, sustained=1.0, generation=True, overhead=True)
    return dict(
        finite(
            make_result(
                settings=settings, backends="mps,mlx,cpu,mps-compiled", absent=("mps-compiled", "transformers-cpu")
            )
        )
    )


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


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    assert schema()["properties"]["version"]["const"] == VERSION


def test_every_property_is_explained() -> None:
    missing = [path for path, node in properties(schema()) if not node.get("description")]
    assert not missing


def test_the_document_names_every_part() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    names = [*schema()["properties"], *schema()["$defs"]["row"]["properties"], *schema()["$defs"]["run"]["properties"]]
    assert not [name for name in names if f"`{name}`" not in text]


def test_a_result_comes_back_equal(tmp_path: Path, result: dict[str, Any]) -> None:
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
def test_what_is_wrong_is_not_written(
    tmp_path: Path, result: dict[str, Any], path: tuple[Any, ...], value: Any
) -> None:
    broken = json.loads(json.dumps(result))
    node = broken
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        write_result(tmp_path / "r.json", broken)
    assert not list(tmp_path.iterdir())


def test_a_missing_part_is_refused(result: dict[str, Any]) -> None:
    for key in result:
        with pytest.raises(jsonschema.ValidationError):
            validate({name: value for name, value in result.items() if name != key})


def test_nan_becomes_null() -> None:
    assert finite({1: [float("nan"), (float("inf"), 2.0)]}) == {"1": [None, [None, 2.0]]}


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
    with pytest.raises(UserError, match="not a benchmark result"):
        read_result(tmp_path / "none.json")


RESULTS = Path(__file__).parents[3] / "docs" / "results"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("benchmark-*.json")), ids=lambda path: path.stem)
def test_committed_results_can_be_read(path: Path) -> None:
    """With every backend that was asked for as a row, and every measured one verified in every round."""
    result = read_result(path)
    rows = [row for row in result["cases"][0]["rows"] if row["status"] == "measured"]
    assert {row["backend"] for row in result["cases"][0]["rows"]} >= {"mps", "mlx", "cpu", "cpu-compiled"}
    assert all(len(row["processes"]) == result["settings"]["rounds"] for row in rows)
    assert all(row["verified"] in ("parity", "losses") for row in rows)
