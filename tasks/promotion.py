"""The promotion protocol: challenger, then champion, under one lock, judged against the present champion.

Under the lock: re-read the champion, verify the challenger's artifact as the registry gives it back, judge
against that champion, point `previous` at it, then `champion` at the challenger, and read both back. Without
the lock the worse of two models won 13 of 20 forced races, with it none (facts/prefect-mlflow).
"""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pareflow.errors import InputError
from pareflow.stages import promotion, registration
from pareflow.stages.run import Row, Run
from tasks.tracking import CONTENT, TRAFFIC, Tracker


@dataclass(frozen=True)
class Promotion:
    """Where a version stands after the protocol, and why."""

    version: str
    alias: str
    reason: str


def challenge(tracker: Tracker, run: Run, version: str) -> None:
    """Verify a version as the registry gives it back, and point `challenger` at it.

    Raises: InputError, VariantError where what comes back is not what was packaged.
    """
    _verify(tracker, run, version)
    tracker.set_alias(run.spec.name, "challenger", version)


def promote(tracker: Tracker, run: Run, version: str, winner: Row) -> Promotion:
    """Make the challenger champion if it is not worse than the present one."""
    name = run.spec.name
    with tracker.locked(f"promotion-{name}"):
        champion = tracker.alias(name, "champion")
        challenger = tracker.version(name, version)
        if champion is not None and champion.version == challenger.version:
            return Promotion(version, "champion", "it is the champion already")
        _verify(tracker, run, version)
        if champion is not None and champion.tags.get(CONTENT) != challenger.tags.get(CONTENT):
            with tempfile.TemporaryDirectory() as folder:
                package = tracker.download(name, str(champion.version), Path(folder))
                verdict = promotion.against_champion(run, winner, package)
            if verdict.decision != "promote":
                reason = f"version {champion.version} stays champion ({verdict.decision}: {verdict.missed})"
                return Promotion(version, "challenger", reason)
        if champion is not None:
            tracker.set_alias(name, "previous", str(champion.version))
        tracker.set_alias(name, "champion", version)
        beaten = f"it beat version {champion.version}" if champion is not None else "there was no champion"
        return Promotion(version, "champion", beaten)


def promote_challenger(tracker: Tracker, run: Run) -> dict[str, Any]:
    """Promote the version that `challenger` points at. Raises: InputError if there is none."""
    challenger = tracker.alias(run.spec.name, "challenger")
    if challenger is None:
        raise InputError(
            f"the model {run.spec.name} must have a challenger",
            "the registry has none",
            "Run `pareflow optimize` first",
        )
    with tempfile.TemporaryDirectory() as folder:
        package = tracker.download(run.spec.name, str(challenger.version), Path(folder))
        row = promotion.packaged_row(run, package)
    moved = promote(tracker, run, str(challenger.version), row)
    return {"name": run.spec.name, **asdict(moved)}


def roll_back(tracker: Tracker, name: str) -> dict[str, Any]:
    """Point `champion` at `previous`, and the other way round; no challenger keeps any traffic.

    Raises: InputError if there is no previous one.
    """
    with tracker.locked(f"promotion-{name}"):
        champion, previous = tracker.alias(name, "champion"), tracker.alias(name, "previous")
        if champion is None or previous is None:
            raise InputError(
                f"the model {name} must have a champion and a previous one",
                "the registry lacks one of them",
                "See `pareflow list versions`",
            )
        tracker.set_alias(name, "champion", str(previous.version))
        tracker.set_alias(name, "previous", str(champion.version))
        tracker.tag_model(name, TRAFFIC, None)
    reason = f"rolled back from version {champion.version}"
    return {"name": name, **asdict(Promotion(str(previous.version), "champion", reason))}


def _verify(tracker: Tracker, run: Run, version: str) -> None:
    """Download the version, check its digests, open it elsewhere, repeat its golden outputs."""
    with tempfile.TemporaryDirectory() as folder:
        registration.check(tracker.download(run.spec.name, version, Path(folder)), run)
