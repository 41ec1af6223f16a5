"""Where the time of one request goes: load, preprocess, inference, postprocess, serialise."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pareflow.compiler.backend import Session
from pareflow.measuring.marks import Mark, marker
from pareflow.workload import Arrays, LoadedWorkload, Samples

REQUESTS = 100
WARM_UP = 10

STAGES = {
    "load": "data loading: the request's JSON decoded into raw samples",
    "preprocess": "raw samples made into the network's inputs",
    "inference": "the network, in the runtime of the strong baseline",
    "postprocess": "the network's outputs made into predictions",
    "serialise": "predictions encoded as JSON",
}
"""The stages in their order, and what each does: what a server does around the model, without its network."""


def breakdown(session: Session, workload: LoadedWorkload, batch_size: int) -> list[dict[str, Any]]:
    """Per stage: p50 and p99 in ms, its share of the summed medians, and what it does.

    Each stage is an NVTX range where there is a CUDA device.
    """
    split = workload.split("search")
    definition = workload.definition
    times: dict[str, list[float]] = {name: [] for name in STAGES}
    mark = marker()
    for request in range(WARM_UP + REQUESTS):
        batch = split.take((np.arange(batch_size) + request * batch_size) % len(split)).samples
        body = json.dumps(_plain(batch))
        clock = _Clock(times if request >= WARM_UP else {}, mark)
        samples = clock.time("load", _decoded, body, split.samples)
        feeds = clock.time("preprocess", definition.preprocess, samples)
        outputs = clock.time("inference", session.run, feeds)
        predictions = clock.time("postprocess", definition.predicted, outputs)
        clock.time("serialise", _encoded, predictions)
    return _summary(times)


def inference_ms(session: Session, feeds: Arrays) -> float:
    """The median time of these very inputs, in ms."""
    times = []
    for _ in range(WARM_UP + REQUESTS):
        began = time.perf_counter_ns()
        session.run(feeds)
        times.append((time.perf_counter_ns() - began) / 1e6)
    return float(np.median(times[WARM_UP:]))


class _Clock:
    """Appends the ms of each named call, and marks it."""

    def __init__(self, times: dict[str, list[float]], mark: Mark) -> None:
        self._times, self._mark = times, mark

    def time(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        with self._mark(name):
            began = time.perf_counter_ns()
            result = call(*arguments)
            took = (time.perf_counter_ns() - began) / 1e6
        self._times.setdefault(name, []).append(took)
        return result


def _summary(times: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    total = sum(float(np.median(values)) for values in times.values())
    return [
        {
            "name": name,
            "what": STAGES[name],
            "p50_ms": float(np.median(values)),
            "p99_ms": float(np.quantile(values, 0.99)),
            "share": float(np.median(values)) / total,
        }
        for name, values in times.items()
    ]


def _plain(samples: Samples) -> list[Any]:
    """Raw samples as JSON holds them: of records their values."""
    given: Any = samples
    if isinstance(samples, np.ndarray) and samples.dtype.names is not None:
        return [[sample[name].tolist() for name in samples.dtype.names] for sample in given]
    return [sample if isinstance(sample, str) else np.asarray(sample).tolist() for sample in given]


def _decoded(body: str, like: Samples) -> Any:
    """The raw samples of a request, in the form that the workload's own samples have."""
    samples: list[Any] = json.loads(body)
    in_array, first = isinstance(like, np.ndarray), like[0]
    if isinstance(like, np.ndarray) and like.dtype.names is not None:
        return np.array([tuple(sample) for sample in samples], dtype=like.dtype)
    if isinstance(like, np.ndarray) and not (like.dtype == object and isinstance(first, np.ndarray)):
        return np.asarray(samples, dtype=like.dtype)
    if isinstance(first, str):
        return samples
    found = np.empty(len(samples), dtype=object)  # arrays of several lengths
    for position, sample in enumerate(samples):
        found[position] = np.asarray(sample, dtype=np.asarray(first).dtype)
    return found if in_array else list(found)


def _encoded(predictions: np.ndarray) -> str:
    return json.dumps(predictions.tolist())
