"""Where the time of one request goes: load, preprocess, inference, postprocess, serialise."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pareflow.compiler.backend import Session
from pareflow.workload import LoadedWorkload, Samples

REQUESTS = 100
WARM_UP = 10


def breakdown(session: Session, workload: LoadedWorkload, batch_size: int) -> list[dict[str, Any]]:
    """Per stage: p50 and p99 in ms, and its share of the summed medians.

    `load` decodes the request's JSON into raw samples, `serialise` encodes the predictions as JSON: what a
    server does around the model.
    """
    split = workload.split("search")
    definition = workload.definition
    times: dict[str, list[float]] = {}
    for request in range(WARM_UP + REQUESTS):
        batch = split.take((np.arange(batch_size) + request * batch_size) % len(split)).samples
        body = json.dumps(_plain(batch))
        clock = _Clock(times if request >= WARM_UP else {})
        samples = clock.time("load", _decoded, body, split.samples)
        feeds = clock.time("preprocess", definition.preprocess, samples)
        outputs = clock.time("inference", session.run, feeds)
        predictions = clock.time("postprocess", definition.postprocess, outputs)
        clock.time("serialise", _encoded, predictions)
    return _summary(times)


def bottleneck(stages: Sequence[Mapping[str, Any]], operators: Sequence[Mapping[str, Any]]) -> str:
    """The slowest stage in words, and the operator that dominates inference; with Amdahl's bound."""
    worst = max(stages, key=lambda stage: float(stage["share"]))
    share = float(worst["share"])
    text = f"{worst['name']} takes {share:.0%} of a request"
    if share < 1:
        text += f"; making it free would make the request {1 / (1 - share):.1f} times faster at most"
    if operators:
        text += f". Within inference, {operators[0]['name']} takes {operators[0]['share']:.0%}"
    return text + "."


class _Clock:
    """Appends the ms of each named call."""

    def __init__(self, times: dict[str, list[float]]) -> None:
        self._times = times

    def time(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        began = time.perf_counter_ns()
        result = call(*arguments)
        self._times.setdefault(name, []).append((time.perf_counter_ns() - began) / 1e6)
        return result


def _summary(times: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    total = sum(float(np.median(values)) for values in times.values())
    return [
        {
            "name": name,
            "p50_ms": float(np.median(values)),
            "p99_ms": float(np.quantile(values, 0.99)),
            "share": float(np.median(values)) / total,
        }
        for name, values in times.items()
    ]


def _plain(samples: Samples) -> Any:
    return samples.tolist() if isinstance(samples, np.ndarray) else list(samples)


def _decoded(body: str, like: Samples) -> Samples:
    """The raw samples of a request, in the form that the workload's own samples have."""
    samples: Samples = json.loads(body)
    return np.asarray(samples, dtype=like.dtype) if isinstance(like, np.ndarray) else samples


def _encoded(predictions: np.ndarray) -> str:
    return json.dumps(predictions.tolist())
