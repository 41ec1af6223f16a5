"""Whether a version's verdict holds where it is to be served (law 8): asked before its first request, and
again where it was judged since; it is timed the first time only.

A verdict of this environment is taken at its word. Where there is none, what can be told without data is
judged again here: its golden outputs, which opening it repeats, and the times that its verdict promised. A
version that breaks them is refused; one with nothing against it is served, and said to be judged elsewhere.
"""

import functools
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pareflow.errors import EnvironmentUnfitError
from pareflow.measurement import CONFIDENCE
from pareflow.measuring.environment import environment
from pareflow.serving.executable import Opened
from pareflow.serving.hosting import Standing
from pareflow.serving.model import PackagedModel

Unjudged = Literal["check", "refuse"]
"""What is done with a version that has no verdict of this environment."""
QUANTILES: Mapping[str, float] = {"latency.p50_ms": 0.50, "latency.p99_ms": 0.99}
TIMED, SECONDS = 400, 5.0
"""Requests that are timed at most, and for how long."""


def standing(opened: Opened, judged: str | None, unjudged: Unjudged, *, answers: bool = False) -> Standing:
    """How a version that was opened stands here; `judged` is what a registry knows of it in this environment.

    It takes a few seconds where it must be timed. One that `answers` requests is not: its session takes one
    at a time, and beside them its times would not be its own.

    Raises: EnvironmentUnfitError where it must not be served.
    """
    release, processing = opened.release, opened.processing
    document = {} if processing is None else processing.document  # no gate judges a language model
    ours = document.get("environment", {}).get("fingerprint") == here()
    verdict = document.get("verdict")
    decision = judged or (verdict["decision"] if verdict and ours else None)
    named = f"version {release.version} of {release.name}"
    if decision == "promote":
        return "here"
    if decision == "reject":
        raise _refused(named, "the gate rejected it in this environment")
    if unjudged == "refuse":
        raise _refused(named, "it has no verdict of this environment")
    untimely = answers or opened.apart  # through a pipe its times are not those that it would be served in
    if verdict and processing is not None and not untimely:
        for words in _broken(processing, verdict["checks"]):
            raise _refused(named, f"it was judged elsewhere, and here {words}")
    return "elsewhere" if verdict else "unknown"


@functools.cache
def here() -> str:
    """The fingerprint of this environment."""
    return environment().fingerprint


def _broken(model: PackagedModel, checks: list[Mapping[str, Any]]) -> Iterator[str]:
    """Promised times that are beyond doubt not kept here, in words.

    One sample is asked: where the promise is for more of them, one that takes too long breaks it, too.
    """
    from pareflow.gate import decided  # they import scipy, and a server seldom needs them
    from pareflow.intervals import quantile_interval

    limits = {one["clause"]: one["limit"] for one in checks if one["clause"] in QUANTILES}
    if not limits:
        return
    times = _times_ms(model)
    for clause, limit in limits.items():
        found = quantile_interval(times, QUANTILES[clause], CONFIDENCE)
        if decided(found, limit, upper=True) == "reject":
            yield f"{clause} is {found.estimate:.3g} (limit {limit:g})"


def _times_ms(model: PackagedModel) -> list[float]:
    feeds = model.preprocess(model.golden()["samples"][:1])
    times, until = list[float](), time.perf_counter() + SECONDS
    while len(times) < TIMED and time.perf_counter() < until:
        began = time.perf_counter()
        model.session.run(feeds)
        times.append(1000 * (time.perf_counter() - began))
    return times


def _refused(named: str, found: str) -> EnvironmentUnfitError:
    return EnvironmentUnfitError(
        f"{named} must keep its promises where it is served",
        found,
        "Run `pareflow check models:/NAME/VERSION` here to judge it, or serve another one",
    )
