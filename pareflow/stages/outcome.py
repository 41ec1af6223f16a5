"""The outcome of a run as one document: what `--json` prints, the report shows, and MLflow keeps."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pareflow.measurement import Interval, Measurement, quantile_interval
from pareflow.stages.run import Row, Run


def document(
    run: Run,
    rows: Sequence[Row],
    winner: Row | None,
    profile: Mapping[str, Any] | None,
    registered: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The document of DESIGN.md section 6; row 0 is the strong baseline."""
    shown = winner or _closest(rows)
    return {
        "pipeline": run.spec.name,
        "run_id": run.id,
        "command": f"pareflow optimize {run.config} --data-dir {run.data_dir} --remeasure",
        "objective": run.spec.objective,
        "sla": run.spec.sla.model_dump(mode="json", exclude_none=True),
        "environment": {**run.environment.to_json(), "fingerprint": run.environment.fingerprint},
        "splits": dict(run.facts.sizes),
        "data_digest": run.facts.data_digest,
        "seed": run.facts.seed,
        "baseline": variant(rows[0]),
        "profile": None if profile is None else dict(profile),
        "variants": [variant(row) for row in rows],
        "winner": winner.id if winner else None,
        "verdict": _verdict(shown, met=winner is not None),
        "registered": None if registered is None else dict(registered),
        "report": str(run.output / "report.html"),
        "seconds": round(time.monotonic() - run.began, 1),
    }


def variant(row: Row) -> dict[str, Any]:
    """One row of the table; what is unknown is None."""
    quality = row.quality
    return {
        "id": row.id,
        "recipe": row.label,
        "steps": row.recipe.to_json(),
        "role": row.role,
        "status": row.status,
        "reason": row.reason,
        "threads": row.threads,
        "finalist": row.verdict is not None,
        "quality": quality and {"metric": quality.metric, "value": quality.value, "split": quality.split},
        **_measured(row.measurement),
        "size_mib": row.size_mib,
        "speedup": _interval(row.speedup),
        "speedup_over_eager": _interval(row.speedup_over_eager),
        "verdict": row.verdict.to_json() if row.verdict else None,
    }


def _measured(measurement: Measurement | None) -> dict[str, Any]:
    if measurement is None:
        unknown = (
            "latency_ms",
            "throughput",
            "peak_memory_mib",
            "load_s",
            "first_request_ms",
            "ran",
            "samples",
        )
        return dict.fromkeys(unknown)
    p50 = quantile_interval(measurement.samples_ms, 0.5)
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
        "ran": asdict(measurement.ran),
        "samples": len(measurement.samples_ms),
    }


def _interval(interval: Interval | None) -> dict[str, Any] | None:
    if interval is None:
        return None
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


def _closest(rows: Sequence[Row]) -> Row | None:
    """The finalist that missed the fewest clauses, the fastest of equals."""
    judged = [row for row in rows if row.verdict is not None]

    def missed(row: Row) -> tuple[int, float]:
        assert row.verdict is not None and row.measurement is not None  # finalists have both
        wrong = sum(check.decision != "promote" for check in row.verdict.checks)
        return wrong, row.measurement.quantile_ms(0.5)

    return min(judged, key=missed, default=None)


def _verdict(row: Row | None, *, met: bool) -> dict[str, Any] | None:
    if row is None or row.verdict is None:
        return None
    verdict = row.verdict.to_json()
    missed = [check for check in row.verdict.checks if check.decision != "promote"]
    reason = (
        "every clause of the SLA is met"
        if met
        else f"nothing met the SLA; closest is {row.label}: "
        + "; ".join(f"{check.clause}: {check.reason}" for check in missed)
    )
    return {**verdict, "reason": reason}
