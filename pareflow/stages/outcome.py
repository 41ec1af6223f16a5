"""The outcome of a run as one document: what `--json` prints, the report shows, and MLflow keeps."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pareflow.catalog import complete
from pareflow.intervals import pooled_quantile_interval
from pareflow.measurement import Interval, Measurement, Quality
from pareflow.search import Ended
from pareflow.stages.explaining import explanation
from pareflow.stages.run import Row, Run
from pareflow.stages.selection import selection, slice_drops
from pareflow.variant import Recipe


def document(
    run: Run,
    rows: Sequence[Row],
    screened: Sequence[Row],
    winner: Row | None,
    profile: Mapping[str, Any] | None,
    registered: Mapping[str, Any] | None,
    sweep: Sequence[Mapping[str, Any]] = (),
    ended: Ended | None = None,
    contributions: Sequence[Mapping[str, Any]] = (),
    serving: Mapping[str, Any] | None = None,
    no_profile: str | None = None,
    firsts: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The document of docs/reference/json.md; row 0 is the strong baseline.

    `screened` holds the rows as they were before finalists were measured again; `ended` says why the search
    did, `contributions` what each step of the winner gives, `serving` what its plan keeps, `no_profile` why
    there is no profile, and `firsts` what was judged while the search went on, and registered if it passed.
    """
    shown = winner or _closest(rows)
    named = "" if run.target is None else f" --target {run.target}"
    return {
        "pipeline": run.spec.name,
        "run_id": run.id,
        "command": f"pareflow optimize {run.config}{named} --data-dir {run.data_dir} --remeasure",
        "target": target(run, rows),
        "objective": run.spec.objective,
        "sla": run.spec.sla.model_dump(mode="json", exclude_none=True),
        "environment": {**run.environment.to_json(), "fingerprint": run.environment.fingerprint},
        "splits": dict(run.facts.sizes),
        "data_digest": run.facts.data_digest,
        "seed": run.facts.seed,
        "baseline": variant(rows[0]),
        "profile": None if profile is None else dict(profile),
        "no_profile": no_profile,
        "variants": [variant(row) for row in rows],
        "explanations": [explanation(run, row, screened, winner, firsts) for row in rows],
        "winner": winner.id if winner else None,
        "verdict": _verdict(shown, met=winner is not None),
        "search": None if ended is None else _search(ended),
        "first_versions": [dict(first) for first in firsts],
        "contributions": [dict(step) for step in contributions],
        "selection": selection(rows, screened, shown),
        "slices": slice_drops(rows, shown, run.spec.sla.confidence),
        "sweep": [dict(point) for point in sweep],
        "serving": None if serving is None else dict(serving),
        "registered": None if registered is None else dict(registered),
        "report": str(run.output / "report.html"),
        "seconds": round(time.monotonic() - run.began, 1),
    }


def _search(ended: Ended) -> dict[str, Any]:
    """Why the search ended, what more budget would try next, what takes longer than one variant may, and what
    could not have become the fastest."""
    return {
        "ended": ended.words,
        "next": [_label(recipe) for recipe in ended.following],
        "too_long": [{"recipe": _label(recipe), "minutes": needed} for recipe, needed in ended.too_long],
        "hopeless": [{"recipe": _label(recipe), "at_most": bound} for recipe, bound in ended.hopeless],
    }


def _label(recipe: Recipe) -> str:
    return Row(complete(recipe)).label


def target(run: Run, rows: Sequence[Row]) -> dict[str, Any] | None:
    """The device that the winner is for, where it is another than this machine, and what that means."""
    profile = run.spec.target.profile
    if profile is None:
        return None
    fitting = [row.label for row in rows if row.status == "ok" and row.fit and row.fit.decision == "fits"]
    words = (
        f"Timed and judged on this machine ({run.environment.processor}): the verdict is this environment's. "
        f"How a variant fits {profile.name} is estimated from its graph, and its latency there is not "
        "measured; `pareflow check` on the device judges it there."
    )
    return {"profile": profile.model_dump(mode="json"), "fitting": fitting, "words": words}


def variant(row: Row) -> dict[str, Any]:
    """One row of the table; what is unknown is None."""
    return {
        "id": row.id,
        "recipe": row.label,
        "steps": row.recipe.to_json(),
        "role": row.role,
        "status": row.status,
        "reason": row.reason,
        "threads": row.threads,
        "finalist": row.verdict is not None,
        "quality": _quality(row.quality),
        **_measured(row.measurement),
        "size_mib": row.size_mib,
        "load": _load(row.served),
        "highest_load_per_s": row.highest_load_per_s,
        "speedup": _interval(row.speedup),
        "speedup_over_eager": _interval(row.speedup_over_eager),
        "fit": row.fit.to_json() if row.fit else None,
        "verdict": row.verdict.to_json() if row.verdict else None,
    }


def _quality(quality: Quality | None) -> dict[str, Any] | None:
    if quality is None:
        return None
    return {
        "metric": quality.metric,
        "value": quality.value,
        "split": quality.split,
        "higher_is_better": quality.higher_is_better,
    }


def _measured(measurement: Measurement | None) -> dict[str, Any]:
    if measurement is None:
        unknown = (
            "latency_ms",
            "throughput",
            "peak_memory_mib",
            "load_s",
            "first_request_ms",
            "cpu_ms",
            "utilisation",
            "energy_j",
            "device_memory_mib",
            "device_reserved_mib",
            "noise",
            "ran",
            "samples",
        )
        return dict.fromkeys(unknown)
    p50 = pooled_quantile_interval(measurement.loads_ms, 0.5)
    return {
        "latency_ms": {
            "p50": p50.estimate,
            "p99": measurement.quantile_ms(0.99),
            "low": p50.low,
            "high": p50.high,
        },
        "throughput": measurement.throughput_per_s,
        "peak_memory_mib": measurement.peak_memory_mib,
        "load_s": measurement.load_s,
        "first_request_ms": measurement.first_request_ms,
        "cpu_ms": measurement.cpu_ms,
        "utilisation": measurement.utilisation,
        "energy_j": measurement.energy_j,
        "device_memory_mib": measurement.device_memory_mib,
        "device_reserved_mib": measurement.device_reserved_mib,
        "noise": measurement.noise,
        "ran": asdict(measurement.ran),
        "samples": len(measurement.samples_ms),
    }


def _load(served: Measurement | None) -> dict[str, Any] | None:
    if served is None:
        return None
    p50, p99 = served.quantile_ms(0.5), served.quantile_ms(0.99)
    return {"name": served.load, "latency_ms": {"p50": p50, "p99": p99}, "samples": len(served.samples_ms)}


def _interval(interval: Interval | None) -> dict[str, Any] | None:
    if interval is None:
        return None
    return interval.bounds()


def _closest(rows: Sequence[Row]) -> Row | None:
    """The finalist that missed the fewest clauses, the fastest of equals."""
    judged = [row for row in rows if row.verdict is not None]

    def missed(row: Row) -> tuple[int, float]:
        assert row.verdict is not None and row.measurement is not None  # finalists have both
        wrong = sum(check.decision != "promote" for check in row.verdict.checks)
        return wrong, row.measurement.quantile_ms(0.5)

    return min(judged, key=missed, default=None)


def _missed(row: Row) -> str:
    """What keeps a judged row from winning: clauses, and the device that it does not fit."""
    assert row.verdict is not None  # it was judged
    return "; ".join(filter(None, (row.verdict.missed, row.fit.missed if row.fit else "")))


def _verdict(row: Row | None, *, met: bool) -> dict[str, Any] | None:
    if row is None or row.verdict is None:
        return None
    verdict = row.verdict.to_json()
    if met:
        return {**verdict, "reason": "every clause of the SLA is met"}
    if row.verdict.decision == "promote":  # by its clauses: only the device keeps it from winning
        decision = "reject" if row.fit is not None and row.fit.decision == "does not fit" else "inconclusive"
        reason = f"nothing that met the SLA fits the device; closest is {row.label}: {_missed(row)}"
        return {**verdict, "decision": decision, "reason": reason}
    return {**verdict, "reason": f"nothing met the SLA; closest is {row.label}: {_missed(row)}"}
