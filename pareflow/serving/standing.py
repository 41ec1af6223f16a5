"""Whether a version's verdict holds where it is to be served (law 8): asked before its first request, and
what is recorded again where it was judged since.

A verdict of this environment is taken at its word. Where there is none, or one that is inconclusive, what can
be told without data is judged again here: its golden outputs, which opening it repeats, and the times that
its verdict promised. A version that breaks them is refused; one with nothing against it is served, and said
to be judged elsewhere, or in doubt here. What answers already is never stopped: how it stands is told.
"""

import functools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pareflow.errors import EnvironmentUnfitError
from pareflow.gate import decided
from pareflow.intervals import quantile_interval
from pareflow.measurement import CONFIDENCE, Environment
from pareflow.measuring.environment import environment, of_verdict
from pareflow.serving.executable import Opened, Release
from pareflow.serving.hosting import Standing
from pareflow.serving.model import PackagedModel, told
from pareflow.variant import Step

Unjudged = Literal["check", "refuse"]
"""What is done with a version that has no verdict of this environment."""
QUANTILES: Mapping[str, float] = {"latency.p50_ms": 0.50, "latency.p99_ms": 0.99}
OF_DECISION: Mapping[str, Standing] = {
    "promote": "here",
    "inconclusive": "inconclusive",
    "reject": "rejected",
}
"""How a version stands where the gate decided so."""
_NOT_PROMOTED: Mapping[Standing, str] = {
    "inconclusive": "its verdict of this environment is inconclusive",
    "elsewhere": "it has no verdict of this environment",
    "unknown": "it has no verdict of this environment",
}
TIMED, SECONDS = 400, 5.0
"""Requests that are timed at most, and for how long."""


def recorded(opened: Opened) -> Standing:
    """What the gate said of a version, as the registry knows it; where it is in none, as its package says."""
    document, decision = _document(opened), opened.release.judged
    ours = None if opened.release.registered else verdict_of_here(document)
    if decision is None and ours is not None:
        decision = ours["decision"]
    if decision is not None:
        return OF_DECISION[decision]
    return "unknown" if document.get("verdict") is None else "elsewhere"


def verdict_of_here(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The verdict in a package's `model.json`, where it was given in this environment (law 8)."""
    verdict: Mapping[str, Any] | None = document.get("verdict")
    if verdict is None or document["environment"]["fingerprint"] != here(_backend_of(document)):
        return None
    return verdict


def standing(opened: Opened, unjudged: Unjudged) -> Standing:
    """How a version stands here that was opened, and answers nobody yet: it may be timed, for a few seconds.

    Raises: EnvironmentUnfitError where it must not be served.
    """
    found, verdict = recorded(opened), _document(opened).get("verdict")
    if found == "here":
        return found
    if found == "rejected":
        raise _refused(opened.release, "the gate rejected it in this environment")
    if unjudged == "refuse":
        raise _refused(opened.release, _NOT_PROMOTED[found])
    processing = opened.processing
    if verdict is not None and processing is not None and not opened.apart:  # through a pipe it is slower
        for words in _broken(processing, verdict["checks"]):
            raise _refused(opened.release, f"{_NOT_PROMOTED[found]}, and here {words}")
    return found


def _document(opened: Opened) -> Mapping[str, Any]:
    return {} if opened.processing is None else opened.processing.document  # no gate judges a language model


def backend_in(package: Path) -> str | None:
    """The name of what runs a package's network; None where it holds another kind of model."""
    return _backend_of(told(package))


def _backend_of(document: Mapping[str, Any]) -> str | None:
    return Step.from_json(document["backend"]).name if "backend" in document else None


def here(backend: str | None = None) -> str:
    """The fingerprint of this environment; of verdicts on what a backend runs, where one is named."""
    return _environment().fingerprint if backend is None else of_verdict(_environment(), backend).fingerprint


@functools.cache
def _environment() -> Environment:
    return environment()


def _broken(model: PackagedModel, checks: list[Mapping[str, Any]]) -> Iterator[str]:
    """Promised times that are beyond doubt not kept here, in words.

    One sample is asked: where the promise is for more of them, one that takes too long breaks it, too.
    """
    limits = {one["clause"]: one["limit"] for one in checks if one["clause"] in QUANTILES}
    if not limits:
        return
    times = _times_ms(model)
    for clause, limit in limits.items():
        found = quantile_interval(times, QUANTILES[clause], CONFIDENCE)
        if decided(found, limit, upper=True) == "reject":
            yield f"{clause} is {found.estimate:.3g} (limit {limit:g})"


def _times_ms(model: PackagedModel) -> list[float]:
    feeds = model.preprocess(model.golden_samples[:1])
    times, until = list[float](), time.perf_counter() + SECONDS
    while len(times) < TIMED and time.perf_counter() < until:
        began = time.perf_counter()
        model.session.run(feeds)
        times.append(1000 * (time.perf_counter() - began))
    return times


def _refused(release: Release, found: str) -> EnvironmentUnfitError:
    return EnvironmentUnfitError(
        f"version {release.version} of {release.name} must keep its promises where it is served",
        found,
        "Run `pareflow check models:/NAME/VERSION` here to judge it, or serve another one",
    )
