"""The table of precisions: bits by hand, and the fastest of each kind."""

from typing import Any

import pytest
from rich.console import Console

from flows.tables import running as tables
from pareflow.reporting.precision import precisions


def variant(steps: list[Any], precision: str, size_mib: float, speedup: float | None) -> dict[str, Any]:
    measured = speedup is not None
    return {
        "recipe": " → ".join(name for step in steps for name in step),
        "steps": steps,
        "latency_ms": {"p50": 1.0, "p99": 2.0} if measured else None,
        "ran": {"runtime": "onnxruntime", "precision": precision, "threads": 1} if measured else None,
        "quality": {"metric": "accuracy", "value": 0.9} if measured else None,
        "size_mib": size_mib,
        "speedup": {"estimate": speedup, "low": None, "high": None} if measured else None,
    }


@pytest.fixture
def document() -> dict[str, Any]:
    ort: dict[str, Any] = {"onnxruntime": {}}
    openvino = {"openvino": {"precision": "bf16"}}
    rows = [
        variant([ort], "float32", 8, 1.0),
        variant([openvino], "bfloat16", 8, 1.7),
        variant([{"static_int8": {}}, ort], "int8", 2.2, 2.5),
        variant([{"static_int8": {"method": "entropy"}}, ort], "int8", 2.5, 2.8),
        variant([{"low_rank": {}}, {"static_int8": {}}, ort], "int8", 1.2, 9.9),  # smaller, too: not shown
        variant([{"int4": {}}, ort], "float32", 1, 0.9),
        variant([{"fp16": {}}, ort], "float16", 4, None),
    ]
    return {"baseline": rows[0], "variants": rows}


def test_bits_are_the_share_of_the_baseline_s(document: dict[str, Any]) -> None:
    """2.5 of 8 MiB are 10 of 32 bits; 1 of 8 are 4."""
    found = [(row["stored_by"], row["computed_in"], row["bits"]) for row in precisions(document)]
    assert found == [
        ("the original", "float32", 32),
        ("the original", "bfloat16", 32),
        ("static_int8", "int8", 10),
        ("int4", "float32", 4),
    ]


def test_fastest_of_each_is_shown_and_nothing_that_was_not_measured(document: dict[str, Any]) -> None:
    shown = {row["stored_by"]: row["variant"]["speedup"]["estimate"] for row in precisions(document)}
    assert shown == {"the original": 1.7, "static_int8": 2.8, "int4": 0.9}


def test_table_is_printed(document: dict[str, Any]) -> None:
    console = Console(width=200, record=True)
    console.print(tables._precisions(document))
    (row,) = [line for line in console.export_text().splitlines() if "static_int8" in line]
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "static_int8", "int8", "10.0", "2.50", "2.80× (?–?)", "0.9000",
    ]  # fmt: skip


def test_bits_are_unknown_where_the_baseline_computes_in_another_type_than_it_stores(
    document: dict[str, Any],
) -> None:
    """As a graph of fp16 does on most processors; one that computes in fp16 has 16 bits."""
    ran = document["baseline"]["ran"]
    ran["notes"] = "an fp16 graph; the CPU provider computes it in fp32"
    assert {row["bits"] for row in precisions(document)} == {None}
    console = Console(width=200, record=True)
    console.print(tables._precisions(document))
    (row,) = [line for line in console.export_text().splitlines() if "static_int8" in line]
    assert [cell.strip() for cell in row.strip("│").split("│")][2:4] == ["", "2.50"]
    ran |= {"precision": "float16", "notes": ""}
    assert max(row["bits"] for row in precisions(document)) == 16
