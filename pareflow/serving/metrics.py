"""What Prometheus is told of a server: requests, times, what waits, and what each policy counts."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS_S = tuple(x * 10.0**e for e in (-4, -3, -2, -1, 0) for x in (1, 2, 5))


class Metrics:
    """The figures of one server, from its start."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._answered = Counter(
            "pareflow_requests", "answered requests", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "pareflow_request_seconds",
            "from the whole request to the whole answer",
            ["route"],
            buckets=BUCKETS_S,
            registry=self._registry,
        )
        self._serving = Gauge(
            "pareflow_model_info",
            "1 for the version that answers",
            ["model", "version"],
            registry=self._registry,
        )
        self._reachable = Gauge(
            "pareflow_registry_reachable",
            "whether the registry answered when last asked",
            registry=self._registry,
        )
        self.figures: Mapping[str, Any] = {}
        self._registry.register(_Policies(self))
        ProcessCollector(registry=self._registry)  # processor seconds and memory

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._answered.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def serves(self, name: str, version: str, figures: Mapping[str, Any]) -> None:
        """From now on this version answers; `figures` are its policies'."""
        self._serving.clear()
        self._serving.labels(name, version).set(1)
        self.figures = figures

    def registry(self, reachable: bool) -> None:
        self._reachable.set(float(reachable))

    def counts(self, name: str, what: str, figures: Callable[[], Mapping[str, float]]) -> None:
        """From now on tell these counts too, as `pareflow_NAME`, labelled by figure."""
        self._registry.register(_Counts(f"pareflow_{name}", what, figures))

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)


class _Policies:
    """What the policies of the present version count, read when asked."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(
            "pareflow_policy", "what a policy counts, since its version began", labels=["policy", "figure"]
        )
        for policy, figures in self._metrics.figures.items():
            for name, value in figures().items():
                family.add_metric([policy, name], value)
        yield family


class _Counts:
    """Counts that something else keeps, read when asked."""

    def __init__(self, name: str, what: str, figures: Callable[[], Mapping[str, float]]) -> None:
        self._name, self._what, self._figures = name, what, figures

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._what, labels=["figure"])
        for name, value in self._figures().items():
            family.add_metric([name], value)
        yield family
