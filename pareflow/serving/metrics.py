"""What Prometheus is told of a server: requests, times, what waits, and what each policy counts."""

from collections.abc import Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily

from pareflow.runtime.endpoint import Figures
from pareflow.serving.traffic import Traffic

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_TRIED = ("model", "version", "what")
BUCKETS_S = tuple(x * 10.0**e for e in (-4, -3, -2, -1, 0, 1) for x in (1, 2, 5))


class Metrics:
    """The figures of one server, from its start."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._answered = Counter(
            "pareflow_requests", "answered requests", ["model", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "pareflow_request_seconds",
            "from the whole request to the whole answer",
            ["model", "route"],
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
        self._judged = Gauge(
            "pareflow_model_judged_here",
            "1 where the version that answers was promoted in this environment",
            ["model", "version"],
            registry=self._registry,
        )
        self._standing = Gauge(
            "pareflow_model_standing",
            "1 for how the version that answers was judged: here, inconclusive, elsewhere, unknown, rejected",
            ["model", "version", "judged"],
            registry=self._registry,
        )
        self._share = Gauge(
            "pareflow_challenger_share",
            "share of the requests that the challenger answers (canary), or that both do (shadow)",
            ["model", "version", "kind"],
            registry=self._registry,
        )
        self._tried = Counter(
            "pareflow_challenger",
            "what became of requests to the challenger",
            _TRIED,
            registry=self._registry,
        )
        self._by_version = Histogram(
            "pareflow_version_seconds",
            "from a request to its answer by a version, while another one is tried beside it",
            ["model", "version"],
            buckets=BUCKETS_S,
            registry=self._registry,
        )
        self._versions: dict[str, tuple[str, str]] = {}
        self._challengers: dict[str, str] = {}
        self.figures: dict[str, Mapping[str, Figures]] = {}
        """What the policies of each model count, by the model and the policy."""
        self._registry.register(_Policies(self))
        ProcessCollector(registry=self._registry)  # processor seconds and memory

    def answered(self, model: str, route: str, status: int, seconds: float | None) -> None:
        """Count one request; `model` is one that is served, or empty where it names none.

        `seconds` are those since it was whole; None where it never was, and is not timed.
        """
        self._answered.labels(model, route, str(status)).inc()
        if seconds is not None:
            self._seconds.labels(model, route).observe(seconds)

    def serves(self, name: str, version: str, figures: Mapping[str, Figures], standing: str) -> None:
        """From now on this version answers; `figures` are its policies', `standing` how it was judged."""
        if name in self._versions:
            before, stood = self._versions[name]
            self._serving.remove(name, before)
            self._judged.remove(name, before)
            self._standing.remove(name, before, stood)
        self._versions[name] = version, standing
        self._serving.labels(name, version).set(1)
        self._judged.labels(name, version).set(standing == "here")
        self._standing.labels(name, version, standing).set(1)
        self.figures[name] = figures

    def tries(self, name: str, traffic: Traffic | None) -> None:
        """From now on the challenger has this traffic, or none."""
        before = self._challengers.pop(name, None)
        if before is not None:
            for kind in ("canary", "shadow"):
                self._share.remove(name, before, kind)
        if traffic is not None:
            self._challengers[name] = traffic.version
            self._share.labels(name, traffic.version, "canary").set(traffic.canary)
            self._share.labels(name, traffic.version, "shadow").set(traffic.shadow)

    def tried(self, name: str, version: str, what: str) -> None:
        """Count one of `record.COUNTS`."""
        self._tried.labels(name, version, what).inc()

    def answered_by(self, name: str, version: str, seconds: float) -> None:
        """Note how long an answer took that somebody waited for."""
        self._by_version.labels(name, version).observe(seconds)

    def registry(self, reachable: bool) -> None:
        self._reachable.set(float(reachable))

    def counts(self, name: str, what: str, figures: Figures) -> None:
        """From now on tell these counts too, as `pareflow_NAME`, labelled by figure."""
        self._registry.register(_Counts(f"pareflow_{name}", what, figures))

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)


class _Policies:
    """What the policies of the present versions count, read when asked."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(
            "pareflow_policy",
            "what a policy counts, since its version began",
            labels=["model", "policy", "figure"],
        )
        for model, policies in self._metrics.figures.items():
            for policy, figures in policies.items():
                for name, value in figures().items():
                    family.add_metric([model, policy, name], value)
        yield family


class _Counts:
    """Counts that something else keeps, read when asked."""

    def __init__(self, name: str, what: str, figures: Figures) -> None:
        self._name, self._what, self._figures = name, what, figures

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._what, labels=["figure"])
        for name, value in self._figures().items():
            family.add_metric([name], value)
        yield family
