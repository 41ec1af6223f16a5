"""What LoadGen wrote down of a run: each query's latency from its trace, its verdict from its detail log.

Its summary is for people, and is not read.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pareflow.errors import StepFailedError
from pareflow.measuring.load import Said

_SAMPLE = '{"name":"Sample","cat":"default","ph":"b"'
_PERCENTILE = re.compile(r"result_([\d.]+)_percentile_(?:per_query_)?latency_ns")


@dataclass(frozen=True, slots=True)
class Log:
    """The ms from when each query was due to when its last sample was answered, in the order due."""

    latencies_ms: list[float]
    said: Said


def read(folder: Path) -> Log:
    """The log in a folder. Raises: StepFailedError where its two files tell of different runs."""
    said = _said(folder / "mlperf_log_detail.txt")
    latencies, samples = _latencies(folder / "mlperf_log_trace.json")
    if len(latencies) != said.queries:
        raise StepFailedError(
            "LoadGen's trace must hold every query",
            f"it holds {len(latencies)} of {said.queries}",
            "Run the same command again",
        )
    return Log(samples if len(latencies) == 1 else latencies, said)


def _latencies(trace: Path) -> tuple[list[float], list[float]]:
    """The ms of each query and of each sample. Line by line, since the whole is not valid JSON."""
    queries: dict[int, float] = {}
    samples = []
    with trace.open() as lines:
        for line in lines:
            if line.startswith(_SAMPLE):
                sample = json.loads(line.rstrip().rstrip(","))["args"]
                ms = sample["complete_ns"] / 1e6
                samples.append((sample["sample_seq"], ms))
                queries[sample["query_seq"]] = max(ms, queries.get(sample["query_seq"], 0))
    return [queries[key] for key in sorted(queries)], [ms for _, ms in sorted(samples)]


def _said(detail: Path) -> Said:
    with detail.open() as lines:
        records = [json.loads(line.partition(" ")[2]) for line in lines]
    found = {record["key"]: record["value"] for record in records}
    rate = found.get("result_completed_samples_per_sec", found.get("result_samples_per_second"))
    return Said(
        valid=found["result_validity"] == "VALID",
        early_stopping=" ".join(str(found["early_stopping_result"]).split()),
        queries=found["result_query_count"],
        percentiles_ms=_percentiles(found),
        samples_per_s=rate,
        trouble=tuple(str(r["value"]) for r in records if r["metadata"].get("is_error")),
    )


def _percentiles(found: Mapping[str, Any]) -> dict[str, float]:
    """ms by percentile, `99.00` say; of whole queries where a query has several samples."""
    named = {key: match for key in found if (match := _PERCENTILE.fullmatch(key))}
    per_query = [key for key in named if "per_query" in key]
    return {named[key][1]: found[key] / 1e6 for key in per_query or named}
