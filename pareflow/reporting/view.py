"""What the page shows, from the run's JSON document: whom it is about, the checks, the points to plot."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from pareflow.reporting import checks, formats, pareto, wording
from pareflow.reporting.checks import Record
from pareflow.reporting.pareto_plot import pareto_plot
from pareflow.reporting.precision import precisions

# One plot for each width of screen, and not one that is scaled: text stays readable.
SIZES = {"wide": (1180.0, 440.0), "middle": (720.0, 420.0), "narrow": (360.0, 400.0)}
SHOWN_DROPS = 6  # what lost more than so many times the allowed drop is an arrow at the edge


def view(document: Record) -> dict[str, Any]:
    """The names that the template uses."""
    subject = wording.subject(document)
    return {
        "document": document,
        "rival": wording.rival_of(subject, document),
        "baseline": wording.baseline_name(document),
        "metric": _metric(document),
        "lost": "lost" if _higher_is_better(document) else "risen",
        "headline": wording.headline(document),
        "winner": wording.winning(document),
        "subject": subject,
        "judged": checks.checks_of(subject) or checks.checks_of(document),
        "stages": list(_stages((document.get("profile") or {}).get("stages") or [])),
        "precisions": precisions(document),
        **_plot(document),
    }


def _plot(document: Record) -> dict[str, Any]:
    """The plot for each width of screen, empty if there is nothing to plot, and what its legend must name."""
    points, limits, metric = list(_points(document)), _limits(document), _metric(document)
    return {
        "pareto": {
            name: pareto_plot(points, limits, metric, *size) for name, size in SIZES.items() if points
        },
        "kinds": {point.kind for point in points},
        "mixed": len({point.judged for point in points}) > 1,
        "limited": limits.latency_ms is not None or limits.quality is not None,
    }


def _metric(document: Record) -> str:
    return next((found["metric"] for found in _qualities(document) if found.get("metric")), "quality")


def _higher_is_better(document: Record) -> bool:
    """Which way the metric goes; documents from before it was written down are read as they were."""
    return next((found.get("higher_is_better", True) for found in _qualities(document)), True)


def _qualities(document: Record) -> list[Record]:
    rows = [wording.baseline_of(document), *(document.get("variants") or [])]
    return [row["quality"] for row in rows if row.get("quality")]


def _limits(document: Record) -> pareto.Limits:
    """What the SLA says about the two axes; a drop counts from the original, as the gate counts it."""
    sla = document.get("sla") or {}
    quality, p50 = sla.get("quality") or {}, (sla.get("latency") or {}).get("p50_ms")
    drop, start = quality.get("max_drop"), _original_quality(document)
    higher_is_better = _higher_is_better(document)
    stated = quality.get("min" if higher_is_better else "max")
    bounds, worst = [stated] if formats.known(stated) else [], None
    if formats.known(drop) and formats.known(start):
        lost = drop if higher_is_better else -drop
        bounds.append(start - lost)
        worst = start - SHOWN_DROPS * lost
    strictest = max if higher_is_better else min
    return pareto.Limits(
        p50 if formats.known(p50) else None, strictest(bounds, default=None), worst, higher_is_better
    )


def _original_quality(document: Record) -> Any:
    """The quality of the original, or of its plain export if there is no such row."""
    originals = [row for row in document.get("variants") or [] if row.get("role") == "original"]
    rows = [*originals, wording.baseline_of(document)]
    values = ((row.get("quality") or {}).get("value") for row in rows)
    return next((value for value in values if formats.known(value)), None)


def _points(document: Record) -> Iterator[pareto.Point]:
    """The variants of which both quality and latency are known, and that did not fail after that."""
    for index, row in enumerate(document.get("variants") or []):
        latency, quality = row.get("latency_ms") or {}, row.get("quality") or {}
        measured = formats.known(latency.get("p50")) and formats.known(quality.get("value"))
        if measured and row.get("status", "ok") == "ok":
            yield pareto.Point(
                row=index,
                kind=_kind(row, document),
                latency_ms=latency["p50"],
                low=latency.get("low") if formats.known(latency.get("low")) else None,
                high=latency.get("high") if formats.known(latency.get("high")) else None,
                quality=quality["value"],
                judged=quality.get("split") in (None, "verdict"),
                tip=_tip(index, row),
            )


def _kind(row: Record, document: Record) -> pareto.Kind:
    if document.get("winner") is not None and row.get("id") == document["winner"]:
        return "winner"
    if row.get("role") == "baseline":
        return "baseline"
    if row.get("role") == "original":
        return "original"
    rejected = checks.outcome((row.get("verdict") or {}).get("decision")) == "fail"
    return "rejected" if rejected else "candidate"


def _tip(index: int, row: Record) -> str:
    latency, quality = row["latency_ms"], row["quality"]
    bounds = f" ({formats.span(latency)})" if formats.span(latency) else ""
    return "\n".join(
        [
            f"{index}: {row.get('recipe') or formats.UNKNOWN}",
            f"p50 {formats.number(latency['p50'])} ms{bounds}",
            f"{quality.get('metric') or 'quality'} {formats.quality(quality['value'])}",
        ]
    )


def _stages(stages: Sequence[Record]) -> Iterator[dict[str, Any]]:
    """Each stage with `start`, the sum of the shares before it, so that the bars read as a time line."""
    shares = [stage["share"] if formats.known(stage.get("share")) else 0.0 for stage in stages]
    starts = accumulate(shares, initial=0.0)
    yield from ({**stage, "start": start} for stage, start in zip(stages, starts, strict=False))
