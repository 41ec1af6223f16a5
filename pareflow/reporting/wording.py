"""The verdict in words that a tired engineer can trust: what won, or what failed, and by how much."""

from dataclasses import dataclass

from markupsafe import Markup

from pareflow.reporting import gains
from pareflow.reporting.checks import (
    Outcome,
    Record,
    at_least,
    beyond,
    bounds_of,
    checks_of,
    closest,
    excess,
    misses,
    named,
    outcome,
    unit_of,
    worst,
)
from pareflow.reporting.formats import UNKNOWN, amount, known, limit, number, percent, quality, span
from pareflow.reporting.gains import Ratio
from pareflow.sla import OBJECTIVES

_SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True, slots=True)
class Headline:
    """The first thing to read: a few words, one sentence, and which outcome it is."""

    outcome: Outcome
    title: str
    sentence: Markup


def headline(document: Record) -> Headline:
    """The verdict of a whole run."""
    decision = outcome((document.get("verdict") or {}).get("decision"))
    winner = winning(document)
    if decision == "pass" and winner is not None:
        kept = winner.get("role") in ("baseline", "original")
        told = _kept(winner, document) if kept else _won(winner, document)
        return _as_served(told, document.get("serving") or {})
    titles: dict[Outcome, str] = {"fail": "Nothing met the SLA", "doubt": "Undecided: nothing is promoted"}
    if decision not in titles:
        return Headline("unknown", "No verdict: nothing is promoted", _not_met(document, "unknown"))
    return Headline(decision, titles[decision], _not_met(document, decision))


def baseline_of(document: Record) -> Record:
    """The strong baseline: named by the document, else its first row, else empty."""
    rows: list[Record] = document.get("variants") or [{}]
    return document.get("baseline") or rows[0]


def baseline_name(document: Record) -> str:
    """What speed-ups are against, by what it really computed in: `ONNX Runtime fp32`."""
    precision = (baseline_of(document).get("ran") or {}).get("precision")
    return f"ONNX Runtime {_SHORT.get(precision, precision)}" if precision else "ONNX Runtime"


def winning(document: Record) -> Record | None:
    """The variant that won, or None."""
    wanted = document.get("winner")
    found = (row for row in document.get("variants") or [] if row.get("id") == wanted)
    return next(found, None) if wanted is not None else None


def subject(document: Record) -> Record | None:
    """The variant that the page is about: the winner, else the verdict's, else the closest."""
    rows = document.get("variants") or []
    judged = (document.get("verdict") or {}).get("variant")
    named_one = (row for row in rows if judged is not None and row.get("id") == judged)
    return winning(document) or next(named_one, None) or closest(rows)


def rival_of(row: Record | None, document: Record) -> Record:
    """The baseline that a variant is compared with: the one with as many threads, else row 0's."""
    rows = [other for other in document.get("variants") or [] if other.get("role") == "baseline"]
    alike = (other for other in rows if row and other.get("threads") == row.get("threads"))
    return next(alike, baseline_of(document))


def shortfall(check: Record) -> str:
    """How a limit was missed: `the p50 latency is 4 ms where at most 3 ms is allowed, 1 ms or 33 % over`."""
    estimate, unit = check.get("estimate"), unit_of(check)
    allowed = amount(limit(check.get("limit")), unit)
    asked = f"at least {allowed} is required" if at_least(check) else f"at most {allowed} is allowed"
    if not known(estimate):
        return f"{named(check)} is not known, where {asked}"
    bounds = f" ({bounds_of(check)})" if bounds_of(check) not in ("", "exact") else ""
    found = f"{named(check)} is {amount(number(estimate), unit)}{bounds} where {asked}"
    if beyond(check, estimate) > 0:
        far = amount(number(beyond(check, estimate)), unit)
        return f"{found}, {far} or {percent(excess(check))} {'short' if at_least(check) else 'over'}"
    if outcome(check.get("decision")) == "fail":  # of another device, whatever was measured here
        return f"{found}, but {check.get('reason') or UNKNOWN}"
    bounded = known(worst(check))
    return f"{found}, {'not surely inside the limit' if bounded else 'with no bound on that side'}"


def recipe_of(row: Record) -> str:
    return row.get("recipe") or UNKNOWN


def _won(winner: Record, document: Record) -> Headline:
    speedup = winner.get("speedup") or {}
    loss = _loss(winner, document)
    if not known(speedup.get("estimate")):
        text = Markup("<code>{}</code> meets every clause of the SLA, with {}; its speed-up is not known.")
        return Headline("pass", "Promote: inside the SLA", text.format(recipe_of(winner), loss))
    text = Markup("<code>{}</code> {}, with {}, and meets every clause of the SLA.")
    sentence = text.format(recipe_of(winner), _gained(winner, speedup, document), loss)
    return Headline("pass", f"Promote: {_title(winner, speedup, document)}, inside the SLA", sentence)


def by_objective(row: Record, document: Record) -> tuple[Ratio, str] | None:
    """How many times the strong baseline's a judged row's objective is, and what that is called; None where
    it is the speed-up, or not known."""
    objective = str(document.get("objective"))
    checks = (check for check in checks_of(row) if check.get("clause") == "do_no_harm")
    gain = next(checks, {})
    if objective not in OBJECTIVES or objective == "latency_p50" or not known(gain.get("estimate")):
        return None
    return gains.share(objective, gain), OBJECTIVES[objective]


def _gained(winner: Record, speedup: Ratio, document: Record) -> str:
    """`answers 2.87 times as fast as …`; by another objective that first, and how fast it is then."""
    found = by_objective(winner, document)
    if found is None:
        return f"answers {_times(speedup)} as fast as {baseline_name(document)}{_bounds(speedup)}"
    ratio, name = found
    speed = gains.in_speed(speedup, lambda one: _times(one) + _bounds(one))
    return f"has {_times(ratio)} the {name} of {baseline_name(document)}{_bounds(ratio)} and is {speed}"


def _title(winner: Record, speedup: Ratio, document: Record) -> str:
    found = by_objective(winner, document)
    if found is None:
        return f"{_times(speedup)} as fast"
    ratio, name = found
    return f"{_times(ratio)} the {name}, {gains.in_speed(speedup, _times)}"


def _times(ratio: Ratio) -> str:
    return f"{number(ratio['estimate'])} times"


def _bounds(ratio: Ratio) -> str:
    return f" ({span(ratio)})" if span(ratio) not in ("", "exact") else ""


def _kept(winner: Record, document: Record) -> Headline:
    role, objective = winner["role"], str(document.get("objective"))
    better = f"better by {OBJECTIVES[objective]}" if objective in OBJECTIVES else "faster"
    text = Markup("No candidate was {} inside the SLA. The {}, <code>{}</code>, meets every clause of it.")
    return Headline("pass", f"Keep the {role}", text.format(better, role, recipe_of(winner)))


def _as_served(told: Headline, serving: Record) -> Headline:
    """What is told of the winner, unless no plan was proved to keep the SLA's load through the server."""
    if serving.get("kept") is not False:
        return told
    sentence = Markup("{} But {}.").format(told.sentence, serving.get("reason"))
    doubted = outcome(serving.get("decision")) == "doubt"
    return Headline(
        "doubt" if doubted else "fail", "Inside the SLA alone, and not through the server", sentence
    )


def _loss(winner: Record, document: Record) -> str:
    """`a drop in accuracy of 0.0014 (at most 0.0086; limit 0.02)`, of an error a rise; without that clause,
    both values."""
    found = winner.get("quality") or {}
    metric = found.get("metric") or "quality"
    checks = checks_of(winner) or checks_of(document)
    drop = next((check for check in checks if check.get("clause") == "quality.max_drop"), None)
    if drop is None or not known(drop.get("estimate")):
        ours, theirs = (
            (row.get("quality") or {}).get("value") for row in (winner, rival_of(winner, document))
        )
        return f"{metric} {quality(ours)} beside the baseline's {quality(theirs)}"
    bounds = f"({span(drop) or 'no interval'}; limit {limit(drop.get('limit'))})"
    way = "a rise in" if found.get("higher_is_better") is False else "a drop in"
    return f"{way} {metric} of {number(drop['estimate'])} {bounds}"


def _not_met(document: Record, decision: Outcome) -> Markup:
    nearest = subject(document)
    missed = misses(checks_of(nearest))
    if nearest is None or not missed:
        return _not_told_by_clauses(document, nearest)
    doubt = "No candidate was proved to meet the SLA; a larger budget or more verdict data may settle it."
    start = doubt if decision == "doubt" else "No candidate met every clause of the SLA."
    listed = "; ".join(shortfall(check) for check in missed)
    return Markup("{} The closest was <code>{}</code>: {}.").format(start, recipe_of(nearest), listed)


def _not_told_by_clauses(document: Record, nearest: Record | None) -> Markup:
    """Where no clause was missed: nothing was judged, or what met all does not fit the device."""
    reason = (document.get("verdict") or {}).get("reason")
    start = "No candidate can be promoted"
    if not checks_of(nearest):
        start = "No candidate was judged against every clause of the SLA, so none can be promoted"
    return Markup("{}: {}").format(start, reason) if reason else Markup("{}.").format(start)
