"""Versions that differ by a score, and a gate that compares it: the protocols without the measuring."""

import time
from pathlib import Path

from tasks.promotion import Bout, Judgement
from tasks.tracking import Tracker

MODEL = "contended"
HERE = "e" * 64
"""The fingerprint of an environment."""


def enter(tracker: Tracker, score: float, model: str = MODEL) -> str:
    """Register a version with this score; its number."""
    with tracker.reached() as client:
        if not client.search_registered_models(f"name = '{model}'"):
            client.create_registered_model(model)
        source = Path(tracker.uri.removeprefix("sqlite:///")).parent.as_uri()
        return str(client.create_model_version(model, source, tags={"score": str(score)}).version)


def bout(
    tracker: Tracker,
    version: str,
    *,
    model: str = MODEL,
    seconds: float = 0.0,
    by: str | None = None,
    why: str = "",
    environment: str = HERE,
) -> Bout:
    """The version against a champion of a lower score, which takes `seconds` to find out."""

    def score(number: str) -> float:
        return float(tracker.version(model, number).tags["score"])

    def judge(champion: str | None) -> Judgement:
        time.sleep(seconds)
        if champion is None:
            return Judgement("promote", "there was no champion")
        if score(version) > score(champion):
            return Judgement("promote", f"it beat version {champion}")
        return Judgement("reject", f"version {champion} stays champion")

    return Bout(model, version, environment, judge, by, why)
