"""A server's `/metrics`, read: what it counted since its start, and what happened between two readings."""

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pareflow.errors import InputError, TransientError

ANSWERING = ("infer", "invocations", "generate", "generate_stream")
"""The routes that compute; the others are asked by probes and people. A stream's time is that to its first
piece, or to its refusal."""
FAILED = ("500", "502", "503", "504")
"""Statuses that say the server did not do its part; what else begins with 4 is the caller's, but for two."""
REFUSED = "429"
"""There was no room: too many ask, whichever version answers."""
GONE = "499"
"""The caller gave up: neither a failure nor an answer, so that only the time counts that it waited."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything of one reading that is monitored. Counts are since the server's start."""

    at_s: float
    """Of a clock that nobody sets: only differences count."""
    model: str
    version: str
    statuses: Mapping[str, float]
    """Answered requests by status."""
    buckets: Mapping[float, float]
    """Requests that took at most so many seconds, by that bound; the last bound is infinite."""
    figures: Mapping[str, float]
    """What each policy counts, as `POLICY.FIGURE`, and what became of requests to be kept."""
    cpu_s: float | None
    memory_mib: float | None
    registry_reachable: bool | None
    canary: float = 0.0
    """Share of the requests that a challenger answers: their times are not this version's."""
    started_s: float | None = None
    """When its process began: by that replicas behind one address are told apart, where they tell it."""
    read_s: float | None = None
    """When it was read, as `started_s` is told: by the clock on the wall."""


@dataclass(frozen=True, slots=True)
class Window:
    """What happened between two readings of one server, which served one version meanwhile."""

    seconds: float
    requests: int
    """Those that were answered, failed, or were refused; whose callers gave up are in `buckets` alone."""
    failed: int
    buckets: Mapping[float, int] = field(default_factory=dict)
    cpu_share: float | None = None
    """Processor seconds per second: above 1 where several cores compute."""
    refused: int = 0

    def slower_than(self, limit_ms: float) -> tuple[int, float]:
        """How many surely took longer than the limit, and the bound in ms by which that is told.

        It is the first bound of the histogram that is not under the limit: where no bound is equal to it,
        those between the two are not counted.
        """
        bounds = sorted(bound for bound in self.buckets if bound * 1000 >= limit_ms * (1 - 1e-9))
        if not bounds:
            return 0, float("inf")
        return self.answered - self.buckets[bounds[0]], 1000 * bounds[0]

    @property
    def answered(self) -> int:
        """Requests that the histogram holds."""
        return max(self.buckets.values(), default=0)

    def quantile_ms(self, quantile: float) -> float | None:
        """As Prometheus' histogram_quantile: within its bucket in proportion; None without requests."""
        if not self.answered:
            return None
        rank, lower, below = quantile * self.answered, 0.0, 0
        for bound in sorted(self.buckets):
            count = self.buckets[bound]
            if count >= rank and count > below:
                upper = lower if bound == float("inf") else bound
                return 1000 * (lower + (upper - lower) * (rank - below) / (count - below))
            lower, below = bound, count
        return None


def read(url: str, name: str, api_key: str | None = None, timeout_s: float = 5) -> Reading:
    """What the server at `url` tells of the model of this name.

    Raises: TransientError where it does not answer whole, InputError where it does not serve it.
    """
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    request = urllib.request.Request(f"{url.rstrip('/')}/metrics", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            text = answer.read().decode()
            if not text.endswith("\n"):  # its last number would be another one
                raise ValueError("its reply is cut")
            return replace(parse(text, name, time.monotonic()), read_s=time.time())
    except urllib.error.HTTPError as error:
        must, remedy = "a monitored server must tell its metrics", "Give one of its keys in PAREFLOW_API_KEYS"
        kind = InputError if error.code in (401, 403, 404) else TransientError
        raise kind(must, f"{url}/metrics answers {error.code}", remedy) from error
    except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
        raise TransientError(
            "a monitored server must answer with its metrics",
            f"{url}/metrics does not ({type(error).__name__}: {error})",
            "Start it with `pareflow serve`",
        ) from error


def parse(text: str, name: str, at_s: float) -> Reading:
    """A reading of this model out of Prometheus' text format; what is the whole server's is among it.

    Raises: InputError where it is no pareflow server's, or one of other models.
    """
    from prometheus_client.parser import text_string_to_metric_families

    statuses: dict[str, float] = {}
    buckets: dict[float, float] = {}
    figures: dict[str, float] = {}
    plain: dict[str, float] = {}
    served: dict[str, str] = {}
    canary = 0.0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels, value = sample.labels, sample.value
            if sample.name == "pareflow_model_info" and value == 1:
                served[labels["model"]] = labels["version"]
            if labels.get("model", name) != name:
                continue  # another model's
            answers = labels.get("route") in ANSWERING
            match sample.name:
                case "pareflow_requests_total" if answers:
                    statuses[labels["status"]] = statuses.get(labels["status"], 0) + value
                case "pareflow_request_seconds_bucket" if answers:
                    bound = float(labels["le"])
                    buckets[bound] = buckets.get(bound, 0) + value
                case "pareflow_policy_total":
                    figures[f"{labels['policy']}.{labels['figure']}"] = value
                case "pareflow_request_log_total":
                    figures[f"request_log.{labels['figure']}"] = value
                case "pareflow_challenger_share" if labels["kind"] == "canary":
                    canary = max(canary, value)
                case _:
                    if not labels:
                        plain[sample.name] = value
    if not served:
        must = "a monitored server must be pareflow's, and serve a model"
        raise InputError(
            must, "its metrics name no `pareflow_model_info`", "Name the URL of `pareflow serve`"
        )
    if name not in served:
        raise InputError(f"the server must serve {name}", f"it serves {', '.join(served)}", "Mend --url")
    memory, reachable = plain.get("process_resident_memory_bytes"), plain.get("pareflow_registry_reachable")
    return Reading(
        at_s,
        name,
        served[name],
        statuses,
        buckets,
        figures,
        plain.get("process_cpu_seconds_total"),
        None if memory is None else memory / 2**20,
        None if reachable is None else bool(reachable),
        canary,
        plain.get("process_start_time_seconds"),
    )


def between(before: Reading, after: Reading) -> Window:
    """What one process did meanwhile. Where a count fell it is another that did not tell so: all it did."""
    fell = any(after.statuses.get(status, 0) < count for status, count in before.statuses.items())
    anew = fell or any(after.buckets.get(bound, 0) < count for bound, count in before.buckets.items())
    base: Mapping[str, float] = {} if anew else before.statuses
    statuses = {status: count - base.get(status, 0) for status, count in after.statuses.items()}
    earlier: Mapping[float, float] = {} if anew else before.buckets
    buckets = {bound: int(count - earlier.get(bound, 0)) for bound, count in after.buckets.items()}
    seconds = max(after.at_s - before.at_s, 1e-9)
    cpu = None
    if before.cpu_s is not None and after.cpu_s is not None and after.cpu_s >= before.cpu_s:
        cpu = (after.cpu_s - before.cpu_s) / seconds
    failed = sum(count for status, count in statuses.items() if status in FAILED)
    requests = sum(count for status, count in statuses.items() if status != GONE)
    refused = statuses.get(REFUSED, 0)
    return Window(seconds, int(requests), int(failed), buckets, cpu, int(refused))
