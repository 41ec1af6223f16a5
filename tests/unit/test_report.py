"""The report page: what it says, what it refuses to say, and where its marks stand.

`report.json` is the document of a whole run of the digits pipeline, with every kind of row.
"""

import copy
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from flows.tables import cells
from pareflow.errors import StoreError
from pareflow.reporting import formats, page, view, wording
from pareflow.reporting.checks import bounds_of, closest, excess, outcome
from pareflow.reporting.labels import Box, Label, arrange
from pareflow.reporting.pareto import TOP, Limits, Point, axes_for, front
from pareflow.reporting.pareto_plot import pareto_plot
from pareflow.reporting.plots import interval_bar, span_bar
from pareflow.reporting.precision import precisions
from pareflow.reporting.scale import Scale, covering

DOCUMENT = Path(__file__).with_name("report.json")
VOID = {"meta", "link", "br"}


@pytest.fixture
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DOCUMENT.read_text("utf-8"))
    return found


class Page(HTMLParser):
    """Every tag with its attributes, and the text that is seen, by the id of what it stands in."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str | None, ...], str]] = []
        self._open: list[tuple[str, str | None]] = []
        self.feed(html)
        self.close()
        assert not self._open, f"these are never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append((tag, dict(attrs).get("id")))

    def handle_endtag(self, tag: str) -> None:
        opened, _ = self._open.pop()
        assert opened == tag, f"<{opened}> is closed by </{tag}>"

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & {tag for tag, _ in self._open}:
            self.texts.append((tuple(name for _, name in self._open), data))

    def text(self, inside: str | None = None) -> str:
        chosen = (text for names, text in self.texts if inside is None or inside in names)
        return " ".join(" ".join(chosen).split())

    def having(self, style: str) -> list[dict[str, str | None]]:
        """The attributes of the tags with a class."""
        return [attributes for _, attributes in self.tags if style in (attributes.get("class") or "").split()]


def check(**changes: Any) -> dict[str, Any]:
    """A check of a p50 latency that is well inside its limit."""
    clause = {"clause": "latency.p50_ms", "limit": 5, "estimate": 2, "low": 1, "high": 3}
    return {**clause, "decision": "promote", "reason": "", **changes}


def point(row: int, latency_ms: float, quality: float, **changes: Any) -> Point:
    fields: dict[str, Any] = {
        "kind": "candidate",
        "low": None,
        "high": None,
        "judged": True,
        "tip": f"row {row}",
    }
    return Point(row=row, latency_ms=latency_ms, quality=quality, **{**fields, **changes})


# The whole page


def test_the_verdict_is_one_sentence_with_speed_up_drop_and_their_intervals(document: dict[str, Any]) -> None:
    said = Page(page.render(document)).text("sentence")

    assert said == (
        "static_int8(method=minmax) → onnxruntime(threads=1, graph_level=all) answers 2.87 times as fast as "
        "ONNX Runtime fp32 (2.78 to 2.95), with a drop in accuracy of 0.00286 (−0.0014 to 0.0100; "
        "limit 0.02), and meets every clause of the SLA."
    )


def test_an_error_rises_where_an_accuracy_drops(document: dict[str, Any]) -> None:
    for row in [document["baseline"], *document["variants"]]:
        if row["quality"]:
            row["quality"] |= {"metric": "mae", "higher_is_better": False}
    step: dict[str, Any] = {"step": "static_int8", "without": "onnxruntime", "reason": None, "size": 0.27}
    step["speedup"] = {"estimate": 2.87, "low": 2.78, "high": 2.95}
    step["quality_lost"] = {"estimate": 0.0012, "low": -0.001, "high": 0.003}
    document["contributions"] = [step]
    drop = step["quality_lost"]
    document["slices"] = [{"name": "class 7", "samples": 8, "original": 0.1, "value": 0.2, "drop": drop}]

    shown = Page(page.render(document))

    assert "with a rise in mae of 0.00286 (−0.0014 to 0.0100; limit 0.02)" in shown.text("sentence")
    assert "Mae risen on the search data" in shown.text()
    labels = {cell["data-label"] for cell in shown.having("number") if "data-label" in cell}
    assert {"Mae risen", "Risen"} <= labels
    assert "Lost" not in labels


def smallest(document: dict[str, Any]) -> dict[str, Any]:
    """The same, had size been minimised: the winner has a quarter of the size, and is 4.76 times slower."""
    winner = document["variants"][2]
    winner["speedup"] = {"estimate": 0.21, "low": 0.2, "high": 0.25}
    gain = {"clause": "do_no_harm", "limit": 1, "estimate": 4, "low": 4, "high": 4, "samples": 0}
    winner["verdict"]["checks"][-1].update(gain)
    return {**document, "objective": "size"}


def test_a_winner_by_size_is_not_sold_as_fast(document: dict[str, Any]) -> None:
    shown = Page(page.render(smallest(document)))

    assert shown.text("verdict") == "Promote: 0.250 times the size, 4.76 times slower, inside the SLA"
    assert (
        "has 0.250 times the size of ONNX Runtime fp32 and is 4.76 times (4.00 to 5.00) slower, with a drop"
        in shown.text("sentence")
    )


def test_the_baseline_is_called_by_what_it_computed_in(document: dict[str, Any]) -> None:
    for row in (document["baseline"], *document["variants"]):
        if row["ran"]:
            row["ran"]["precision"] = "float16"
    html = page.render(document)
    assert "as fast as ONNX Runtime fp16 (2.78 to 2.95)" in Page(html).text("sentence")
    assert "× ORT fp16" in html
    assert "ONNX Runtime fp32" not in html
    assert "ORT fp32" not in html
    assert wording.baseline_name({}) == "ONNX Runtime"


def test_a_baseline_is_kept_for_what_was_minimised(document: dict[str, Any]) -> None:
    document |= {"winner": document["variants"][0]["id"], "objective": "size"}

    assert wording.headline(document).sentence.startswith("No candidate was better by size inside the SLA.")


def test_one_value_is_no_exact_one(document: dict[str, Any]) -> None:
    once = check(clause="memory.max_mib", limit=60, estimate=50, low=50, high=50, samples=1)
    document["variants"][2]["verdict"]["checks"].append(once)

    assert "≤ 60 MiB 50 MiB measured once ✓ met" in Page(page.render(document)).text()
    assert bounds_of({**once, "clause": "size.max_mib"}) == "exact"
    assert "50\u00a0MiB (measured once) where" in wording.shortfall({**once, "limit": 40})


def test_what_the_search_found_out_is_shown(document: dict[str, Any]) -> None:
    step: dict[str, Any] = {"step": "static_int8", "without": "onnxruntime", "reason": None, "size": 0.27}
    step["speedup"] = {"estimate": 2.87, "low": 2.78, "high": 2.95}
    step["quality_lost"] = {"estimate": 0.0012, "low": -0.001, "high": 0.003}
    gone = {"step": "onnxruntime", "without": "static_int8 → torch_eager", "reason": "it cannot run here"}
    document["contributions"] = [step, gone]
    document["search"] = {"ended": "the budget of 10 minutes was used up", "next": ["low_rank → onnxruntime"]}
    document["search"]["too_long"] = [{"recipe": "qat_int8 → onnxruntime", "minutes": 12.34}]
    document["explanations"] = [f"row {index}: <others> are faster." for index in range(6)]
    document["variants"][5]["reason"] = "no longer timed"

    shown = Page(page.render(document))

    told = shown.text().split("Each step of the winner")[1].split("The search ended")[0]
    assert all(word in told for word in ("static_int8", "2.87", "2.78 to 2.95", "0.0012", "0.27"))
    assert "it cannot run here" in told
    assert (
        "The search ended: the budget of 10 minutes was used up. More budget would try next:" in shown.text()
    )
    assert "low_rank → onnxruntime" in shown.text("ended")
    assert "allows: qat_int8 → onnxruntime (12.3 minutes)." in shown.text("too-long")
    assert "row 5: <others> are faster." in shown.text("variant-5")
    assert "no longer timed" in shown.text("variant-5")


def test_without_a_search_nothing_is_said_of_one(document: dict[str, Any]) -> None:
    assert "The search ended" not in Page(page.render(document)).text()


def test_every_variant_and_every_check_is_a_row(document: dict[str, Any]) -> None:
    shown = Page(page.render(document))

    for index, row in enumerate(document["variants"]):
        text = shown.text(f"variant-{index}")
        assert row["recipe"] in text
        assert row["reason"] is None or row["reason"] in text
    for clause in document["verdict"]["checks"]:
        assert clause["clause"] in shown.text()
        assert clause["reason"] in shown.text()
    assert len(shown.having("interval-bar")) == len(document["verdict"]["checks"]) == 5


def test_row_0_is_the_baseline_and_the_winner_is_marked(document: dict[str, Any]) -> None:
    shown = Page(page.render(document))

    assert "baseline" in shown.text("variant-0")
    assert [a["id"] for tag, a in shown.tags if tag == "tr" and "winner" in (a.get("class") or "")] == [
        "variant-2"
    ]
    assert "winner" in shown.text("variant-2")


def test_what_really_ran_is_told_not_what_was_asked_for(document: dict[str, Any]) -> None:
    text = Page(page.render(document)).text("variant-5")

    assert "bf16, 1 thread openvino 2026.4.1, CPU asked for float32, ran bf16" in text


def test_every_variant_with_quality_and_latency_is_a_mark_in_each_plot(document: dict[str, Any]) -> None:
    shown = Page(page.render(document))
    measured = [row for row in document["variants"] if row["latency_ms"] and row["quality"]]

    plots = len(shown.having("pareto"))

    assert (plots, len(measured)) == (3, 14)
    assert len(shown.having("mark")) == plots * len(measured)


def test_a_winner_is_set_beside_the_baseline_of_as_many_threads(document: dict[str, Any]) -> None:
    one, two = document["variants"][0], document["variants"][7]

    assert two["recipe"] == "onnxruntime(threads=2, graph_level=all)"
    assert wording.rival_of(document["variants"][8], document)["id"] == two["id"]
    assert wording.rival_of(document["variants"][2], document)["id"] == one["id"]


def test_environment_lineage_and_command_are_there(document: dict[str, Any]) -> None:
    text = Page(page.render(document)).text("lineage") + Page(page.render(document)).text()
    environment = document["environment"]

    facts = [
        environment["processor"],
        environment["fingerprint"],
        document["data_digest"],
        document["command"],
    ]
    for fact in [*facts, document["run_id"], document["winner"], *environment["flags"], "1.32.0", "700"]:
        assert fact in text


def test_the_same_document_gives_the_same_bytes(document: dict[str, Any]) -> None:
    assert page.render(document) == page.render(copy.deepcopy(document))


def test_nothing_is_loaded_from_anywhere(document: dict[str, Any]) -> None:
    html = page.render(document)
    addresses = [
        value
        for _, attributes in Page(html).tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action") and value is not None
    ]

    assert not re.findall(r"https?:|@import|url\(", html)
    assert all(a.startswith(("#variant-", "data:,", "traces/")) for a in addresses)


def test_the_profile_says_what_could_help_how_much_at_most(document: dict[str, Any]) -> None:
    text = Page(page.render(document)).text()

    assert "inference takes 66% of a request; making it free would make the request 2.9 times faster" in text
    assert "low rank smaller factors for the matrix operators of inference 61 % 2.56" in text
    assert "data loading: the request's JSON decoded into raw samples" in text


def test_the_profile_says_how_much_of_the_machine_is_used(document: dict[str, Any]) -> None:
    text = Page(page.render(document)).text()

    assert "Matrix rate used 81 % of 102 GFLOP/s" in text
    assert "Conv 90.6 89 % 20 % compute" in text
    assert "GlobalAveragePool – – 90 % memory" in text
    assert "Not counted perf is not installed" in text
    assert "Instructions" not in text.replace("Instruction flags", "")


def test_the_profile_says_what_graph_optimization_did(document: dict[str, Any]) -> None:
    text = Page(page.render(document)).text()

    assert "21 nodes became 12; new are 7 FusedConv, 2 ReorderInput" in text
    assert "gone are 9 Relu, 7 Conv" in text
    assert "take 905 000 bytes in places of their own; planned, so that memory is used again, 131 072" in text


def test_what_the_processor_counted_is_shown(document: dict[str, Any]) -> None:
    counted = {"instructions": 3e6, "cycles": 2e6, "cache_misses": None, "ipc": 1.5, "reason": "some are not"}
    document["profile"]["counters"] = counted

    text = Page(page.render(document)).text()

    assert "Instructions 3 000 000 per request, 1.50 per cycle" in text
    assert "Cache misses – Not counted some are not" in text


def test_a_runtime_that_was_not_profiled_and_event_files_are_told(document: dict[str, Any]) -> None:
    document["profile"].update(unavailable={"openvino": "not installed"}, tensorboard="tensorboard")

    text = Page(page.render(document)).text()

    assert "openvino was not profiled: not installed." in text
    assert "tensorboard --logdir tensorboard" in text


def test_a_profile_of_before_these_were_measured_is_still_shown(document: dict[str, Any]) -> None:
    for name in ("advice", "graph", "roofline", "counters", "unavailable", "tensorboard", "threads"):
        del document["profile"][name]

    text = Page(page.render(document)).text()

    assert "Where the time of a request goes" in text
    assert "What each family" not in text
    assert "How much of the machine" not in text


def test_where_there_is_no_profile_the_page_says_why(document: dict[str, Any]) -> None:
    document |= {
        "profile": None,
        "no_profile": "it could not be profiled: <it> must end in 300 s, but it did not",
    }

    shown = Page(page.render(document))

    assert "Not known: it could not be profiled: <it> must end in 300 s" in shown.text()


# Nothing met


@pytest.fixture
def unmet(document: dict[str, Any]) -> dict[str, Any]:
    """The same run with a p50 limit of 0.2 ms, that row 2 misses by 0.048 ms."""
    row = document["variants"][2]
    row["verdict"]["decision"] = "reject"
    row["verdict"]["checks"][1].update(limit=0.2, decision="reject", reason="0.243 is not at most 0.2")
    document.update(winner=None, registered=None)
    document["verdict"] = {**row["verdict"], "variant": row["id"], "reason": "nothing met the SLA"}
    return document


def test_nothing_met_names_the_closest_and_by_how_much(unmet: dict[str, Any]) -> None:
    shown = Page(page.render(unmet))

    assert shown.text("verdict") == "Nothing met the SLA"
    assert shown.text("sentence") == (
        "No candidate met every clause of the SLA. The closest was "
        "static_int8(method=minmax) → onnxruntime(threads=1, graph_level=all) : "
        "the p50 latency is 0.248 ms (0.243 to 0.254) where at most 0.2 ms is allowed, "
        "0.0480 ms or 24 % over."
    )
    assert "The closest candidate beside the baseline" in shown.text()
    assert "winner" not in shown.text("variant-2")


def test_inconclusive_is_neither_met_nor_promoted(unmet: dict[str, Any]) -> None:
    unmet["verdict"]["decision"] = "inconclusive"

    shown = Page(page.render(unmet))

    assert shown.text("verdict") == "Undecided: nothing is promoted"
    assert "promote" not in shown.text("sentence")


def test_a_decision_that_is_not_known_never_passes() -> None:
    assert outcome("promote") == "pass"
    assert {outcome(word) for word in (None, "", "yes", "0", True)} == {"unknown"}


def test_a_promise_without_a_winner_is_no_verdict(document: dict[str, Any]) -> None:
    document["winner"] = "somebody else"

    assert wording.headline(document).outcome == "unknown"


def test_a_baseline_that_wins_is_kept_not_promoted(document: dict[str, Any]) -> None:
    document["winner"] = document["variants"][0]["id"]

    assert wording.headline(document).title == "Keep the baseline"


def test_the_closest_misses_the_fewest_clauses_then_the_least() -> None:
    missed = check(estimate=6.0, decision="reject")  # 20 % over 5
    rows: list[dict[str, Any]] = [
        {"id": "two missed", "verdict": {"checks": [missed, missed]}},
        {"id": "far", "verdict": {"checks": [check(estimate=10.0, decision="reject"), check()]}},
        {"id": "near", "verdict": {"checks": [missed, check()]}},
        {"id": "not judged", "verdict": None},
        {"id": "no number", "verdict": {"checks": [check(estimate=None, decision="inconclusive")]}},
    ]

    found = closest(rows)

    assert found is not None
    assert found["id"] == "near"
    assert excess(missed) == pytest.approx(0.2)
    assert excess(check(estimate=None)) == math.inf


@pytest.mark.parametrize(
    ("estimate", "low", "high", "said"),
    [
        (6.0, 5.5, 6.5, "is 6.00 ms (5.50 to 6.50) where at most 5 ms is allowed, 1.00 ms or 20 % over"),
        (
            4.9,
            4.0,
            5.8,
            "is 4.90 ms (4.00 to 5.80) where at most 5 ms is allowed, not surely inside the limit",
        ),
        (
            4.9,
            4.0,
            None,
            "is 4.90 ms (at least 4.00) where at most 5 ms is allowed, with no bound on that side",
        ),
        (None, None, None, "is not known, where at most 5 ms is allowed"),
    ],
)
def test_a_shortfall_tells_the_value_the_limit_and_the_distance(
    estimate: float | None, low: float | None, high: float | None, said: str
) -> None:
    found = wording.shortfall(check(estimate=estimate, low=low, high=high))

    assert found.replace("\u00a0", " ") == f"the p50 latency {said}"


def test_below_a_lower_limit_is_short() -> None:
    quality = check(clause="quality.min", limit=0.9, estimate=0.81, low=None, high=None)
    gain = check(clause="do_no_harm", limit=1, estimate=0.5, low=0.5, high=0.5)

    assert wording.shortfall(quality) == (
        "the quality is 0.810 where at least 0.9 is required, 0.0900 or 10 % short"
    )
    assert wording.shortfall(gain) == (
        "the gain over the baseline is 0.500× where at least 1× is required, 0.500× or 50 % short"
    )


def test_what_the_device_cannot_keep_is_not_told_as_doubt() -> None:
    reason = "roomy takes at least 8 ms (estimated from its peak rates), more than 5"
    found = wording.shortfall(check(decision="reject", reason=reason))

    assert found.replace("\u00a0", " ") == (
        f"the p50 latency is 2 ms (1.00 to 3.00) where at most 5 ms is allowed, but {reason}"
    )


# What is not known


def test_none_is_a_dash_and_never_a_zero(document: dict[str, Any]) -> None:
    failed = Page(page.render(document)).text("variant-15")

    figures = failed.split("machine with one. ")[1]

    assert figures == "? unavailable" + " –" * 11


@pytest.mark.parametrize("key", sorted(json.loads(DOCUMENT.read_text("utf-8"))))
def test_any_part_may_be_missing(document: dict[str, Any], key: str) -> None:
    without = {name: value for name, value in document.items() if name != key}

    assert "None" not in Page(page.render({**document, key: None})).text()
    assert page.render(without) == page.render({**document, key: None})


def test_a_document_of_which_nothing_is_known_makes_no_claim() -> None:
    shown = Page(page.render({}))

    assert shown.text("verdict") == "No verdict: nothing is promoted"
    assert not re.search(r"\b0\b", shown.text().replace("Row 0", ""))


def test_leaves_that_are_none_are_dashes(document: dict[str, Any]) -> None:
    def emptied(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: emptied(inner) for key, inner in value.items()}
        return [emptied(inner) for inner in value] if isinstance(value, list) else None

    text = Page(page.render(emptied(document))).text()

    assert "None" not in text
    assert "nan" not in text.lower()
    assert not re.search(r"\b0[. ]", text.replace("Row 0 ", "").replace("# ", "").split("Really ran", 2)[0])


def test_nan_and_infinity_are_not_numbers() -> None:
    assert [formats.number(x) for x in (None, math.nan, math.inf, "1", True)] == ["–"] * 5


# What users may write


@pytest.mark.parametrize(
    "where", ["reason", "recipe", "notes", "clause", "pipeline", "command", "metric", "trace"]
)
def test_markup_from_users_is_text(document: dict[str, Any], where: str) -> None:
    evil = "</title></style></script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    row = document["variants"][2]
    if where in ("reason", "recipe"):
        row[where] = evil
    elif where == "notes":
        row["ran"]["notes"] = evil
    elif where == "clause":
        row["verdict"]["checks"][0]["clause"] = evil
    elif where == "metric":
        document["baseline"]["quality"]["metric"] = evil
    elif where == "trace":
        document["profile"]["traces"]["torch"] = evil
    else:
        document[where] = evil

    shown = Page(page.render(document))

    assert sum(tag == "script" for tag, _ in shown.tags) == 1
    assert not [tag for tag, _ in shown.tags if tag == "img"]
    assert not [name for _, attributes in shown.tags for name in attributes if name.startswith("on")]


@pytest.mark.parametrize(
    "path", ["javascript:alert(1)", "https://example.com/x.json", "/etc/passwd", "//host/x"]
)
def test_a_trace_is_a_link_only_if_it_lies_beside_the_page(document: dict[str, Any], path: str) -> None:
    document["profile"]["traces"] = {"torch": path}

    addresses = [a["href"] for tag, a in Page(page.render(document)).tags if tag == "a"]

    assert not [a for a in addresses if a and not a.startswith("#variant-")]


# Numbers


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (4.1289, "4.13"),
        (0.08617, "0.0862"),
        (12345.6, "12\u202f346"),
        (-0.5, "−0.500"),
        (7, "7"),
        (0.0, "0"),
        (2e-6, "2.00e−06"),
    ],
)
def test_numbers_have_three_significant_digits(value: float, shown: str) -> None:
    assert formats.number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0.0000"), (0.97142, "0.9714"), (0.01, "0.0100"), (0.0012345, "0.00123"), (-4e-5, "−4.00e−05")],
)
def test_small_errors_keep_their_digits(value: float, shown: str) -> None:
    assert formats.quality(value) == shown
    assert cells.quality({"value": value, "split": "search"}) == f"{shown} (search)"


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (-0.00143, 0.01, "−0.0014 to 0.0100"),
        (9.4, 10.1, "9.4 to 10.1"),
        (0.0, 0.0, "exact"),
        (0, 1e-7, "0 to 1.00e−07"),
        (2.5, None, "at least 2.50"),
        (None, 3.0, "at most 3.00"),
        (None, None, ""),
    ],
)
def test_both_ends_of_an_interval_have_the_same_decimals(low: Any, high: Any, shown: str) -> None:
    assert formats.span({"low": low, "high": high}) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(45.4, "45 s"), (143.4, "2 min 23 s"), (3720, "1 h 2 min"), (None, "–")]
)
def test_durations_are_read_not_computed(seconds: Any, shown: str) -> None:
    assert formats.duration(seconds) == shown


# Scales and plots, against coordinates computed by hand


def test_a_linear_scale_is_a_straight_line() -> None:
    scale = Scale(0, 10, 100, 200)

    assert (scale(0), scale(5), scale(10)) == (100, 150, 200)
    assert scale.ticks(5) == [0, 2, 4, 6, 8, 10]


def test_a_logarithmic_scale_gives_each_decade_the_same_room() -> None:
    scale = Scale(1, 100, 0, 200, log=True)

    assert (scale(1), scale(10), scale(100)) == (0, 100, 200)
    assert scale.ticks(7) == [1, 2, 5, 10, 20, 50, 100]


def test_a_wide_range_is_logarithmic_only_where_that_is_allowed() -> None:
    assert covering([1, 11], 0, 1, may_log=True).log
    assert not covering([1, 10], 0, 1, may_log=True).log
    assert not covering([1, 11], 0, 1).log
    assert not covering([0, 11], 0, 1, may_log=True).log


@pytest.mark.parametrize("value", [0.0, 0.98, 120.0])
def test_one_value_alone_stands_in_the_middle(value: float) -> None:
    assert covering([value], 0, 100)(value) == pytest.approx(50)


def test_the_front_holds_what_nothing_beats() -> None:
    a, b, c, d = point(0, 1, 0.90), point(1, 2, 0.92), point(2, 3, 0.91), point(3, 2, 0.90)

    assert front([c, d, b, a], Limits()) == [a, b]
    assert front([c, d, b, a], Limits(higher_is_better=False)) == [a]


def test_marks_front_and_limits_stand_where_they_were_computed_by_hand() -> None:
    # 200 px wide from 58 to 258 for 0.88 to 3.12 ms; 200 px high from 226 up to 26 for 0.898 to 0.922.
    points = [point(0, 1, 0.90), point(1, 2, 0.92), point(2, 3, 0.91)]
    limits = Limits(latency_ms=2.0, quality=0.91)

    axes = axes_for(points, limits, 272, 276)
    drawn = pareto_plot(points, limits, "accuracy", 272, 276)

    assert list(axes.place(points[1])) == pytest.approx([158, 42 + 2 / 3])
    assert 'class="front" d="M68.71 209.33 H158.00 V42.67 H258.00"' in drawn
    assert '<line class="limit" x1="158" x2="158"' in drawn
    assert re.search(r'<line class="limit" x1="58" x2="258" y1="126" y2="126"', drawn)


def test_a_whisker_has_a_cap_only_where_the_bound_is_known() -> None:
    both, one = point(0, 2, 0.9, low=1.0, high=3.0), point(0, 2, 0.9, low=1.0)

    drawn = [pareto_plot([p], Limits(), "accuracy", 272, 276) for p in (both, one)]
    lines = [re.search(r'<g class="whisker.*?</g>', svg) for svg in drawn]

    assert [found and found[0].count("<line") for found in lines] == [3, 2]


def test_what_lies_far_below_does_not_crowd_the_rest() -> None:
    points = [point(0, 1, 0.98), point(1, 2, 0.97), point(2, 3, 0.10)]
    limits = Limits(quality=0.96, worst=0.86)

    axes = axes_for(points, limits, 400, 300)

    assert axes.y.low > 0.95
    assert axes.beyond(points[2])
    assert axes.place(points[2])[1] < axes.bottom
    assert "2: 0.1000" in pareto_plot(points, limits, "accuracy", 400, 300)


def test_an_error_far_above_does_not_crowd_the_rest() -> None:
    points = [point(0, 1, 0.02), point(1, 2, 0.03), point(2, 3, 0.90)]
    limits = Limits(quality=0.04, worst=0.14, higher_is_better=False)

    axes = axes_for(points, limits, 400, 300)

    assert axes.y.high < 0.05
    assert [axes.beyond(p) for p in points] == [False, False, True]
    assert axes.place(points[2])[1] > TOP
    assert "2: 0.9000" in pareto_plot(points, limits, "mae", 400, 300)


def test_of_an_error_front_and_limit_are_on_the_other_side() -> None:
    # The same axes as above: the front falls from the fastest to the best, and the shade is above the limit.
    points = [point(0, 1, 0.92), point(1, 2, 0.90), point(2, 3, 0.91)]
    limits = Limits(quality=0.91, higher_is_better=False)

    drawn = pareto_plot(points, limits, "mae", 272, 276)

    assert 'class="front" d="M68.71 42.67 H158.00 V209.33 H258.00"' in drawn
    assert '<rect class="outside" x="58" y="26" width="200" height="100"' in drawn
    assert "mae: lower is better" in drawn
    assert "SLA: mae ≤ 0.91" in drawn


@pytest.mark.parametrize(
    ("clause", "allowed"),
    [
        pytest.param({"max": 0.5}, 0.5, id="what is stated"),
        pytest.param({"max_drop": 0.1}, 0.3, id="what may be lost"),
        pytest.param({"max": 0.5, "max_drop": 0.1}, 0.3, id="the stricter of both"),
        pytest.param({"min": 0.9}, None, id="a least that an error does not need"),
    ],
)
def test_limit_of_an_error_is_the_most_it_may_be(
    document: dict[str, Any], clause: dict[str, float], allowed: float | None
) -> None:
    document["sla"] = {"quality": {"metric": "mae", **clause}}
    for row in (document["baseline"], *document["variants"]):
        if row["quality"]:
            row["quality"] = {"metric": "mae", "value": 0.2, "split": "verdict", "higher_is_better": False}

    limits = view._limits(document)

    assert not limits.higher_is_better
    assert limits.quality == (None if allowed is None else pytest.approx(allowed))
    assert "mae: lower is better" in page.render(document)


def test_a_limit_far_outside_is_named_at_the_edge() -> None:
    drawn = pareto_plot([point(0, 1, 0.9), point(1, 2, 0.8)], Limits(latency_ms=500), "accuracy", 400, 300)

    assert "SLA: p50 ≤ 500 ms →" in drawn
    assert 'class="limit"' not in drawn


def test_labels_never_meet_each_other_or_a_mark() -> None:
    labels = [Label(str(i), "label", 100 + 9 * i, 100) for i in range(12)]
    area = Box(0, 0, 400, 200)

    placed = [box for _, box in arrange(labels, area)]

    assert placed
    assert not [(a, b) for a in placed for b in placed if a is not b and a.meets(b)]
    assert all(area.holds(box) for box in placed)


def test_an_interval_is_drawn_against_its_limit() -> None:
    # The range is 1 to 5 and 0.72 more at both ends: 5.44 in 180 px.
    drawn = interval_bar(check())

    assert '<rect class="allowed" x="0" width="156.18"' in drawn
    assert '<line class="limit" x1="156.18" x2="156.18"' in drawn
    assert '<circle class="dot" cx="56.91"' in drawn


def test_the_allowed_side_of_a_lower_limit_is_above_it() -> None:
    drawn = interval_bar(check(clause="throughput.min_per_s"))

    assert '<rect class="allowed" x="156.18" width="23.82"' in drawn


def test_an_unknown_bound_is_an_arrow_and_an_unknown_interval_is_nothing() -> None:
    assert interval_bar(check()).count("<path") == 0
    assert interval_bar(check(high=None)).count("<path") == 1
    assert "whisker" not in interval_bar(check(low=None, high=None))
    assert interval_bar(check(estimate=None)) == ""


def test_an_unknown_share_has_no_bar() -> None:
    assert 'x="25" width="50"' in span_bar(0.25, 0.5)
    assert 'class="bar"' not in span_bar(0.25, None)


# Writing


def test_write_puts_the_page_there_whole(document: dict[str, Any], tmp_path: Path) -> None:
    target = tmp_path / "runs" / "report.html"

    page.write(document, target)
    page.write(document, target)

    assert target.read_text("utf-8") == page.render(document)
    assert list(target.parent.iterdir()) == [target]


def test_a_failed_write_leaves_the_old_page(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        page.write(document, target)

    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_place_that_cannot_be_written_is_a_store_error(document: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StoreError, match="must be writable"):
        page.write(document, tmp_path / "file" / "report.html")


def test_a_confidence_near_one_is_not_rounded_to_certainty(document: dict[str, Any]) -> None:
    document["sla"]["confidence"] = 0.999
    assert "of ratios through the server at 99.9 %" in Page(page.render(document)).text()


def test_page_says_what_the_choice_may_hide(document: dict[str, Any]) -> None:
    selection = {
        "candidates": 12, "finalists": 5, "correction": "Holm", "quality_bias": 0.0123, "speedup_bias": 1.04,
    }  # fmt: skip
    drop = {"estimate": 0.25, "low": 0.05, "high": 0.5}
    slices = [{"name": "class <7>", "samples": 8, "original": 1.0, "value": 0.75, "drop": drop}]
    shown = Page(page.render({**document, "selection": selection, "slices": slices})).text()
    assert "Chosen of 12 candidates, 5 of them judged" in shown
    assert "0.0123 better" in shown
    assert "1.04 times as fast while it was screened" in shown
    assert "class <7>" in shown
    assert (
        "What the choice may hide"
        not in Page(page.render({**document, "selection": None, "slices": []})).text()
    )


def test_slice_of_unknown_quality_is_shown_as_a_dash(document: dict[str, Any]) -> None:
    drop = {"estimate": None, "low": None, "high": None}
    slices = [{"name": "class 7", "samples": 8, "original": None, "value": None, "drop": drop}]
    row = page.render({**document, "slices": slices}).split("class 7")[1].split("</tr>")[0]
    assert row.count("–") == 3


def test_page_has_a_row_for_each_precision(document: dict[str, Any]) -> None:
    shown = Page(page.render(document))
    html = page.render(document).split('id="precision"')[1].split("</table>")[0]
    kinds = {(row["stored_by"], row["computed_in"]) for row in precisions(document)}
    assert len(kinds) > 2
    assert html.count('role="rowheader"') == len(kinds)
    assert all(stored in html and computed in html for stored, computed in kinds)
    assert "By precision" in shown.text()


def test_a_winner_whose_load_no_plan_keeps_is_no_pass(document: dict[str, Any]) -> None:
    """What was kept, or not tried, changes nothing."""
    plain = wording.headline(document)
    for kept in (True, None):
        assert wording.headline({**document, "serving": {"kept": kept, "reason": "so"}}) == plain
    for decision, found in (("reject", "fail"), ("failed", "fail"), ("inconclusive", "doubt")):
        serving = {"kept": False, "decision": decision, "reason": "no plan keeps 5 ms"}
        unkept = wording.headline({**document, "serving": serving})
        assert unkept.outcome == found
        assert unkept.title == "Inside the SLA alone, and not through the server"
        assert unkept.sentence == f"{plain.sentence} But no plan keeps 5 ms."
