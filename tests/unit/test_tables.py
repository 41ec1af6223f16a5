"""Documents on a terminal."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.tables import operating, running, serving
from pareflow.hardware import graphics
from pareflow.reporting import view
from pareflow.reporting.precision import precisions
from pareflow.search import Ended
from pareflow.serving.traffic import Traffic
from pareflow.stages import outcome
from pareflow.stages.deployment import Seen
from pareflow.variant import Recipe, Step
from tasks import deployment
from tests.terminal import lines, rendered, rows

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
    assert rows(rendered(operating.rejudged, document)) == [
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


@pytest.mark.parametrize(
    ("decision", "said"), [("promote", "is promoted to all"), ("reject", "is not promoted")]
)
def test_a_rollout_shows_what_each_step_saw_and_what_came_of_it(decision: str, said: str) -> None:
    """By hand; in the second step the challenger became another, and nothing was seen."""
    seen = Seen({"asked": 40, "compared": 20, "agreed": 19}, (), ())
    steps = [
        deployment.Step(Traffic(version="3", shadow=0.5, canary=0), "promote", "it is as good", seen),
        deployment.Step(Traffic(version="3", shadow=0.5, canary=0.05), "gone", "version 4 is [challenger]"),
    ]
    document = {
        **{"name": "digits", "version": "3", "champion": "2", "promotion": None},
        **{"decision": decision, "reason": "so says [the gate]", "steps": [step.to_json() for step in steps]},
    }
    text = rendered(operating.rolled_out, document)
    assert "models:/digits/3 on live traffic" in text
    assert rows(text) == [
        ["0.5", "0", "40", "19 of 20", "promote", "it is as good"],
        ["0.5", "0.05", "0", "0 of 0", "gone", "version 4 is [challenger]"],
    ]
    assert lines(text) == [f"version 3 {said}: so says [the gate]"]


def test_what_was_watched_shows_the_last_figures_and_each_breach_with_what_followed() -> None:
    breaches = [
        {"version": "3", "reason": "errors: half [of them]", "rolled_back_to": "2"},
        {"version": "2", "reason": "errors: all of them", "rolled_back_to": None},
    ]
    figures = {"exact_cache.hit_share": 0.123456, "errors": 0.5}
    document = {"name": "digits", "version": "2", "looks": 12, "figures": figures, "breaches": breaches}
    text = rendered(operating.monitored, document)
    assert "digits version 2, 12 looks" in text
    assert rows(text) == [["errors", "0.5"], ["exact_cache.hit_share", "0.1235"]]
    assert lines(text) == [
        "breach by version 3: errors: half [of them]; rolled back to version 2",
        "breach by version 2: errors: all of them",
    ]


def test_what_was_written_for_a_server_is_named_file_by_file_and_so_is_what_is_left_out() -> None:
    files = ["digits/1/model.onnx", "digits/config.pbtxt"]
    document = {"to": "/srv/[models]", "files": files, "left_out": ["`exact_cache` by [row]: it has none"]}
    assert lines(rendered(serving.exported_for_a_server, document)) == [
        "wrote /srv/[models]/digits/1/model.onnx",
        "wrote /srv/[models]/digits/config.pbtxt",
        "`exact_cache` by [row]: it has none",
    ]


MACHINE: dict[str, Any] = {
    "caches": [{"level": 1, "kind": "Data", "kib": 32, "cores": "0"}],
    "memory_nodes": [{"node": 0, "cores": "0-1", "mib": 7900}],
    "rates": {"by_precision": {"float32": 195.4, "int8": None}, "copy_gb_per_s": 11.26},
    "no_rates": None,
    "graphics": [
        graphics.described("GTX 980", None, "5.2", None),
        graphics.described("H200", 143771.0, "9.0", None),
    ],
    "devices": {"openvino": {"CPU": "AMD EPYC"}},
    "allocators": {"jemalloc": None},
    "huge_pages": None,
}


def test_doctor_tells_the_machine_its_servers_and_what_to_fix() -> None:
    """By hand: what is not known is left out, or said to be."""
    answering = {"name": "MLflow", "version": "3.1", "url": "http://m", "problems": [], "clock_s": 0.3}
    away = {"name": "Prefect", "version": None, "url": "http://p", "problems": ["away"], "clock_s": None}
    document = {
        "environment": {"processor": "EPYC", "cores": 2, "memory_mib": 7900, "flags": ["avx2", "amx"]},
        **{"free_mib": 50000, "machine": MACHINE, "promotions_meet_in": "data folder"},
        "techniques": [{"name": "fp16", "what": "Half the bits.", "settings": {}, "unavailable": None}],
        "backends": [{"name": "tvm", "what": "Kernels.", "settings": {}, "unavailable": "not [there]"}],
        "servers": [answering, {**answering, "clock_s": None}, away],
        "problems": ["Prefect at [::1] must be reachable"],
    }
    text = rendered(operating.doctor, document)
    assert lines(text) == [
        "EPYC, 2 cores, 7900 MiB; avx2, amx; 50000 MiB of disk free",
        "caches of a core: L1 data 32 KiB",
        "memory node 0: cores 0-1, 7900 MiB",
        "one thread multiplies matrices at 10⁹ operations per second: float32 195",
        "and copies 11.3 GB/s, read and written",
        "GTX 980: memory not told, capability 5.2, tensor cores: none",
        "H200: 143771 MiB, capability 9.0, tensor cores: float16, int8, bfloat16, tf32, fp8",
        "openvino lists CPU (AMD EPYC)",
        "huge pages: not told; allocators: glibc only",
        "MLflow 3.1 at http://m answers, its clock +0.3 s from ours",
        "MLflow 3.1 at http://m answers",
        "promotions meet in the data folder: on a second host they need PAREFLOW_LOCK_DATABASE",
        "to fix: Prefect at [::1] must be reachable",
    ]
    assert rows(text) == [["fp16", "Half the bits.", "available"], ["tvm", "Kernels.", "not [there]"]]
    busy = {**MACHINE, "rates": None, "no_rates": "others use [half] of it"}
    assert "rates: not measured (others use [half] of it)" in lines(
        rendered(operating.doctor, {**document, "machine": busy})
    )
