"""Documents on a terminal."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.tables import operating, running
from pareflow.reporting import view
from pareflow.reporting.precision import precisions
from pareflow.search import Ended
from pareflow.stages import outcome
from pareflow.variant import Recipe, Step

DOCUMENT = Path(__file__).with_name("report.json")
"""The document of a whole run, for the page's tests."""


def test_versions_tell_where_they_stand_and_what_the_gate_said() -> None:
    """By hand: two environments promote and one rejects; tags of no interest to people are left out."""
    rows = [
        {
            "name": "digits",
            "version": "3",
            "aliases": ["champion"],
            "pareflow.recipe": "static_int8 → onnxruntime",
            "pareflow.content_sha256": "0123abcd",
            "pareflow.verdict.aaaaaaaaaaaa": "promote",
            "pareflow.verdict.bbbbbbbbbbbb": "reject",
            "pareflow.verdict.cccccccccccc": "promote",
        },
        {"name": "digits", "version": "2", "aliases": []},
    ]
    console = Console(width=120, record=True, file=io.StringIO())
    operating.versions(rows, console)
    shown = console.export_text()
    assert "promote ×2, reject" in shown
    assert "static_int8 → onnxruntime" in shown
    assert "0123abcd" not in shown


def test_no_versions_are_none() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    operating.versions([], console)
    assert console.export_text() == "none\n"


def run_document() -> dict[str, Any]:
    """A run that minimised size: the winner was judged, and a row of the search was not."""
    variants = json.loads(DOCUMENT.read_text("utf-8"))
    winner = variants["variants"][2]
    winner["speedup"] = {"estimate": 0.21, "low": 0.2, "high": 0.25}
    winner["verdict"]["checks"][-1].update(estimate=4, low=4, high=4)
    step: dict[str, Any] = {"step": "static_int8", "without": "onnxruntime", "reason": None, "size": 0.25}
    step["speedup"] = {"estimate": 2.35, "low": 2.3, "high": 2.4}
    more = {"sweep": [], "target": None, "contributions": [step], "search": None, "registered": None}
    return {**variants, "objective": "size", **more}


def test_a_run_is_told_by_what_it_minimised_and_each_number_by_its_split_and_interval() -> None:
    """By hand: one over 0.21 is 4.76, and its bounds are one over 0.25 and one over 0.2."""
    console = Console(width=400, record=True, file=io.StringIO())
    document = run_document()
    running.outcome(document, console)
    shown = console.export_text()
    assert "0.25× (0.25–0.25) the size of ONNX Runtime fp32, and 4.76× (4.00–5.00) slower, accuracy" in shown
    assert "static_int8: 0.25× the size and 2.35× (2.30–2.40) as fast as onnxruntime, which lacks it" in shown
    searched = [row for row in document["variants"] if (row["quality"] or {}).get("split") == "search"]
    assert shown.count(" (search)") >= len(searched) > 0


def test_the_baseline_is_called_by_what_it_computed_in() -> None:
    console = Console(width=400, record=True, file=io.StringIO())
    document = run_document()
    document["baseline"]["ran"]["precision"] = "float16"
    side = {"latency_ms": {"p50": 1.0, "p99": 2.0}, "throughput": 9.0}
    speedup = {"estimate": 2.0, "low": 1.9, "high": 2.1}
    point = {"batch_size": 1, "length": None, "reason": None, "baseline": side, "winner": side}
    running.outcome({**document, "sweep": [{**point, "speedup": speedup}]}, console)
    shown = console.export_text()
    assert "every variant, against ONNX Runtime fp16 on as many threads" in shown
    assert "the winner against ONNX Runtime fp16, by batch size" in shown
    assert "the size of ONNX Runtime fp16, and" in shown


def test_long_times_are_written_out_as_the_report_writes_them() -> None:
    row = run_document()["variants"][2]
    row["latency_ms"] |= {"p50": 1234.5, "p99": 0.0862}
    assert running._cells(row)[2:4] == ["1\u202f234", "0.0862"]


def test_a_run_that_nothing_won_names_no_row_as_promoted() -> None:
    """The row that was never built has no id, as the winner has none."""
    document = run_document()
    unbuilt = {"id": None, "recipe": "fp16 → onnxruntime", "quality": None, "speedup": None}
    verdict = {**document["verdict"], "decision": "reject", "reason": "nothing met the SLA"}
    document |= {"winner": None, "variants": [unbuilt, *document["variants"]], "verdict": verdict}
    assert running._verdict(document) == "verdict: reject: nothing met the SLA"


def test_what_takes_longer_than_one_variant_may_is_told_with_its_minutes() -> None:
    recipe = Recipe((Step("qat_int8"),), Step("onnxruntime"))
    found = outcome._search(Ended("so it is", (), (), ((recipe, 12.34),)))
    assert list(running._search({"contributions": [], "search": found})) == [
        "the search ended: so it is",
        "left out, for `budget.variant_minutes` allows less: qat_int8 → onnxruntime (12.3 minutes)",
    ]


def test_a_version_judged_again_shows_each_clause_with_the_limit_of_its_time() -> None:
    """By hand: one limit was 2 and is 3, one clause is asked no more, and one is new."""

    def check(clause: str, limit: float) -> dict[str, Any]:
        return {"clause": clause, "limit": limit, "estimate": 1, "low": 1, "high": 1, "decision": "promote"}

    document = {
        **{"name": "digits", "version": "3", "recipe": "onnxruntime", "environment_changes": {}},
        "was": {"checks": [check("latency.p50_ms", 2), check("size.max_mib", 4)]},
        "now": {"checks": [check("latency.p50_ms", 3), check("memory.max_mib", 5)]},
        **{"holds": True, "reason": "every clause is met here too"},
    }
    console = Console(width=200, record=True, file=io.StringIO())
    operating.rejudged(document, console)
    lines = [line for line in console.export_text().splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in line.strip("│").split("│")] for line in lines] == [
        ["latency.p50_ms", "1 (1 to 1)", "2", "1 (1 to 1)", "3", "promote"],
        ["size.max_mib", "1 (1 to 1)", "4", "", "", "not judged"],
        ["memory.max_mib", "", "", "1 (1 to 1)", "5", "promote"],
    ]


@pytest.mark.parametrize(("mib", "limit"), [(0.0, 0), (0.5, 1), (1024.0, 1), (1024.5, 2)])
def test_leftovers_are_removed_by_a_limit_that_spares_every_entry(mib: float, limit: int) -> None:
    counted: dict[str, Any] = {"entries": 1, "mib": mib, "kinds": [], "needed": [], "running": []}
    console = Console(width=200, record=True, file=io.StringIO())
    operating.store({"store": "/data/store", "leftovers": 3, **counted}, console)
    said = f"3 leftovers of killed commands: `pareflow collect --max-gib {limit}` removes them"
    assert said in console.export_text()


def test_a_finalist_that_failed_says_why_beside_what_it_was_timed_at() -> None:
    document = run_document()
    winner = document["variants"][2]
    winner |= {"verdict": None, "status": "failed", "reason": "CrashedError: it must answer, but died"}
    *_, said = running._cells(winner)
    assert said == "failed: CrashedError: it must answer, but died"
    assert winner not in [row["variant"] for row in precisions(document)]
    assert 2 not in [point.row for point in view._points(document)]
