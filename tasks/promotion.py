"""The promotion protocol: challenger, then champion, judged against the present champion, under locks.

Under a lock: re-read the champion, verify the challenger's artifact as the registry gives it back, judge
against that champion. Under a second one, which is held for a moment, so that a rollback never waits for a
judgement: where that champion is champion still, point `previous` at it, then `champion` at the challenger,
and read both back; where it is not, judge again. Without locks the worse of two models may win
(`tests/orchestration/test_promotion_races.py`).

A version without a verdict of this environment by this SLA and objective is judged here first (law 8). One
that was rolled back from, or that its own run refused, no run promotes: a person does. Every move leaves a
record (`tasks.audit`).
"""

import json
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from pareflow.errors import InputError, TrackingError, VariantError
from pareflow.gate import Decision, Verdict
from pareflow.serving.model import verified
from pareflow.serving.standing import backend_in
from pareflow.stages import promotion, registration
from pareflow.stages.rejudging import rejudge
from pareflow.stages.run import Row, Run
from tasks import audit
from tasks.locking import StillHeld
from tasks.tracking import (
    BREACH,
    LEFT,
    TRAFFIC,
    Tracker,
    check_content,
    check_ours,
    verdict_of,
    where_judged,
)


@dataclass(frozen=True)
class Promotion:
    """Where a version stands after the protocol, and why; until when a person may approve it, if one must."""

    version: str
    alias: str
    reason: str
    awaiting: str | None = None


class Judgement(NamedTuple):
    """What the gate says of a version beside one champion: in words that name it, and by clause."""

    decision: Decision
    reason: str
    clauses: str = ""

    @property
    def verdict(self) -> str:
        """The decision, and what it rests on."""
        return f"{self.decision}: {self.clauses}" if self.clauses else self.decision


@dataclass(frozen=True)
class Bout:
    """A challenger, the machine that it is judged on, and what judges it against a champion, or none."""

    name: str
    version: str
    environment: str
    judge: Callable[[str | None], Judgement]
    by: str | None = None
    why: str = ""

    def move(self, action: audit.Action, reason: str, **places: str | None) -> audit.Move:
        """Its record, with the reason that a person gave before the gate's."""
        told = f"{self.why} ({reason})" if self.why else reason
        by, environment = self.by or audit.who(), self.environment
        return audit.Move(self.name, action, self.version, by, told, environment=environment, **places)


def challenge(tracker: Tracker, run: Run, version: str, refused: str | None = None) -> None:
    """Verify a version as the registry gives it back, and point `challenger` at it.

    `refused` is why the run does not promote it, which no run in this environment then does by itself.
    Raises: InputError, VariantError where what comes back is not what was packaged.
    """
    name = run.spec.name
    with tempfile.TemporaryDirectory() as folder:
        _verified(tracker, run, version, Path(folder))
    with tracker.moving(name):
        tracker.tag_version(name, version, refused_tag(run.environment.fingerprint), refused)
        before = number(tracker, name, "challenger")
        if before != version:
            reason = f"pipeline run {run.id} registered it"
            places = {"before": before, "after": version, "environment": run.environment.fingerprint}
            move = audit.Move(name, "challenged", version, audit.who(), reason, **places)
            label = run.spec.promotion if refused is None else "refused"
            with audit.recorded(tracker, move, promotion=label):
                tracker.set_alias(name, "challenger", version)


def promote(
    tracker: Tracker,
    run: Run,
    version: str,
    winner: Row | None,
    *,
    by: str | None = None,
    reason: str = "",
    over: bool = False,
) -> Promotion:
    """Make the challenger champion if it is not worse than the present one.

    `winner` is the version as a row of this run, where it is one. `by` and `reason` are for the record.
    `over` passes over a champion that cannot be compared with: it runs here no more, or came back damaged.
    """
    with tracker.moving(run.spec.name) as still_held:
        return settle(tracker, bout(tracker, run, version, winner, by, reason, over=over), still_held)


def bout(
    tracker: Tracker,
    run: Run,
    version: str,
    winner: Row | None,
    by: str | None = None,
    why: str = "",
    *,
    over: bool = False,
) -> Bout:
    """The version against whoever is champion by then, judged by this run's SLA, on its data, here."""
    judge = partial(_judged, tracker, run, version, winner, over=over)
    return Bout(run.spec.name, version, run.environment.fingerprint, judge, by, why)


def settle(tracker: Tracker, bout: Bout, still_held: StillHeld) -> Promotion:
    """Judge against the present champion, and move the aliases where it is beaten. Call it under the lock.

    Raises: TransientError where the lock was lost while it was judged; then nothing is moved.
    """
    name, version = bout.name, bout.version
    while (champion := number(tracker, name, "champion")) != version:
        if bout.by is None and (why := held_back(tracker, name, version, bout.environment)):
            return Promotion(version, "challenger", f"{why}; `pareflow promote {name}` is a person's word")
        found = judged(tracker, bout, champion)
        reason, places = found.reason, {"before": champion, "verdict": found.verdict}
        if found.decision != "promote":
            audit.note(tracker, bout.move("rejected", reason, **places, after=champion))
            return Promotion(version, "challenger", reason)
        move = bout.move("promoted", reason, **places, after=version)
        with tracker.switching(name):
            if number(tracker, name, "champion") != champion:  # it was rolled back meanwhile
                continue
            still_held()
            with audit.recorded(tracker, move):
                if champion is not None:
                    tracker.set_alias(name, "previous", champion)
                tracker.set_alias(name, "champion", version)
                tracker.tag_version(name, version, LEFT, None)
        return Promotion(version, "champion", reason)
    return Promotion(version, "champion", "it is the champion already")


def judged(tracker: Tracker, bout: Bout, champion: str | None) -> Judgement:
    """The gate's word on a bout, kept with the version: who asks again later need not run it again."""
    found = bout.judge(champion)
    told = {"champion": champion, "decision": found.decision, "reason": found.reason[:3000]}
    tracker.tag_version(bout.name, bout.version, against_tag(bout.environment), json.dumps(told))
    return found


def promote_challenger(
    tracker: Tracker, run: Run, *, by: str | None = None, reason: str = "", over: bool = False
) -> dict[str, Any]:
    """Promote the version that `challenger` points at: a person asks. Raises: InputError if there is none."""
    version = challenger_of(tracker, run.spec.name)
    moved = promote(tracker, run, version, None, by=by or audit.who(), reason=reason, over=over)
    return {"name": run.spec.name, **asdict(moved)}


def roll_back(
    tracker: Tracker,
    name: str,
    *,
    leaving: str | None = None,
    by: str | None = None,
    reason: str = "",
    force: bool = False,
) -> dict[str, Any]:
    """Point `champion` at `previous`, and the other way round; no challenger keeps any traffic.

    With `leaving` only where that version is champion. A rollback that was cut off is ended: asked again it
    does not go back. Where it leads then the record says.
    Raises: InputError if there is no previous one, or it broke a rule of monitoring, unless that is forced.
    """
    with tracker.switching(name) as still_held:
        champion, previous = number(tracker, name, "champion"), number(tracker, name, "previous")
        same = champion is not None and champion == previous
        if champion is not None:
            leads = audit.way_back(tracker, name, champion, previous)
            if leaving in (None, leads[0]):
                champion, previous = leads
            elif same:
                previous = None
        if leaving is not None:
            _check_leaving(tracker, name, leaving, champion, previous)
        if champion is None or previous is None:
            raise InputError(
                f"the model {name} must have a champion and a previous one",
                "both are the same version" if same else "the registry lacks one of them",
                "See `pareflow list versions`",
            )
        if not force:
            _check_unbroken(tracker, name, previous)
        told = f"rolled back from version {champion}"
        why, who = reason or told, by or audit.who()
        still_held()
        move = audit.Move(name, "rolled_back", previous, who, why, before=champion, after=previous)
        with audit.recorded(tracker, move):
            tracker.tag_model(name, TRAFFIC, None)
            tracker.tag_version(name, champion, LEFT, f"{who}: {why}"[:5000])
            tracker.set_alias(name, "champion", previous)
            tracker.set_alias(name, "previous", champion)
            tracker.tag_version(name, previous, LEFT, None)
    return {"name": name, **asdict(Promotion(previous, "champion", told))}


def _check_leaving(
    tracker: Tracker, name: str, leaving: str, champion: str | None, previous: str | None
) -> None:
    """Raises: InputError where a monitor's rollback would not mend what it saw."""
    must = f"a rollback of {name} must lead from version {leaving} to one that broke no rule"
    if champion != leaving:
        raise InputError(must, f"the champion is not version {leaving}", "See `pareflow list audit`")
    if previous is None:
        raise InputError(must, "there is no previous version", "Train another")


def _check_unbroken(tracker: Tracker, name: str, previous: str) -> None:
    """Raises: InputError where a rollback would bring back what a monitor left, which may be back already."""
    broke = tracker.version(name, previous).tags.get(BREACH)
    if broke is not None:
        raise InputError(
            f"a rollback of {name} must lead to a version that broke no rule of monitoring",
            f"version {previous} broke a rule itself: {broke}",
            f"See `pareflow list audit {name}`: the monitor may have gone back already. Train another, or go "
            "there all the same with --force",
        )


def left_behind(tracker: Tracker, name: str, version: str) -> str | None:
    """That and why a version was rolled back from, or broke a rule of that kind; None where it did not."""
    tags = tracker.version(name, version).tags
    why = tags.get(BREACH) or tags.get(LEFT)
    return why and f"version {version} was rolled back from ({why})"


def held_back(tracker: Tracker, name: str, version: str, environment: str) -> str | None:
    """Why no run promotes a version by itself: it was left behind, or refused by the run that registered it
    in the environment with this fingerprint. None where one may."""
    if left := left_behind(tracker, name, version):
        return left
    refused = tracker.version(name, version).tags.get(refused_tag(environment))
    return refused and f"the run that registered version {version} refused it ({refused})"


def challenger_of(tracker: Tracker, name: str) -> str:
    """The challenger's version number. Raises: InputError if there is none."""
    version = number(tracker, name, "challenger")
    if version is None:
        raise InputError(
            f"the model {name} must have a challenger",
            "the registry has none",
            "Run `pareflow optimize` first",
        )
    return version


def number(tracker: Tracker, name: str, alias: str) -> str | None:
    """The version number that an alias points at."""
    found = tracker.alias(name, alias)
    return None if found is None else str(found.version)


def against_tag(environment: str) -> str:
    """The tag of what was said of a version beside a champion, in the environment with this fingerprint."""
    return f"pareflow.against.{environment[:12]}"


def refused_tag(environment: str) -> str:
    """The tag of why the run that registered a version in this environment does not promote it."""
    return f"pareflow.refused.{environment[:12]}"


def _judged(
    tracker: Tracker, run: Run, version: str, winner: Row | None, champion: str | None, *, over: bool
) -> Judgement:
    """The version by itself, where this environment has no verdict on it yet; then beside the champion, which
    is brought meanwhile. `over` passes over one that cannot be compared with."""
    name = run.spec.name
    with (
        tempfile.TemporaryDirectory() as ours,
        tempfile.TemporaryDirectory() as theirs,
        ThreadPoolExecutor(1) as beside,
    ):
        brought = None
        if champion is not None:
            brought = beside.submit(as_registered, tracker, name, champion, Path(theirs))
        package = _verified(tracker, run, version, Path(ours))
        alone = _verdict_here(tracker, run, version, package)
        if alone.decision != "promote":
            return _kept(champion, version, alone.decision, alone.reason)
        if brought is None:
            return alone._replace(reason="there was no champion")
        incomparable = partial(_incomparable, name, version, champion, alone, over)
        try:
            holder = brought.result()
            retrained = verified(package)["workload_digest"] != verified(holder)["workload_digest"]
        except InputError as error:
            return incomparable(error)
        except TrackingError as error:  # its files may be gone, or the server may be set up wrongly
            if over:
                return incomparable(error)
            remedy = f"{error.remedy}. Where version {champion} is lost, {_way_out(name)}"
            raise TrackingError(error.must, error.found, remedy) from error
        row = winner or promotion.packaged_row(run, package)
        try:
            verdict = promotion.against_champion(run, row, holder, retrained=retrained)
        except VariantError as error:
            if error.variant == row.id:
                return _kept(champion, version, "inconclusive", str(error))
            return incomparable(error)
    if verdict.decision != "promote":
        return _kept(champion, version, verdict.decision, verdict.missed, _clauses(verdict))
    return Judgement("promote", f"it beat version {champion}", _clauses(verdict))


def _incomparable(
    name: str, version: str, champion: str | None, alone: Judgement, over: bool, error: Exception
) -> Judgement:
    """What is said where the champion itself cannot be compared with, and where a person passes over it."""
    if over:
        return alone._replace(reason=f"version {champion} was passed over, since: {error}")
    return _kept(champion, version, "inconclusive", f"{error}; {_way_out(name)}")


def _way_out(name: str) -> str:
    return f"`pareflow promote {name} --over-champion --by WHO --reason …` passes over it"


def _kept(
    champion: str | None, version: str, decision: Decision, missed: str, clauses: str = ""
) -> Judgement:
    stays = f"version {champion} stays champion" if champion else f"version {version} is not made champion"
    return Judgement(decision, f"{stays} ({decision}: {missed})", clauses)


def _clauses(verdict: Verdict) -> str:
    return "; ".join(f"{check.clause}: {check.reason}" for check in verdict.checks)


def _verdict_here(tracker: Tracker, run: Run, version: str, package: Path) -> Judgement:
    """The version's verdict in this environment, by this SLA: the recorded one, else measured now."""
    registered, backend = tracker.version(run.spec.name, version), backend_in(package)
    recorded = cast("Decision | None", verdict_of(run, registered.tags, backend))
    if recorded is None:
        found = rejudge(run, package)
        decision: Decision = found["now"]["decision"] if found["now"] else "reject"
        now = _clauses(Verdict.from_json(found["now"])) if found["now"] else ""
        tracker.record_verdict(run, registered, decision, backend)
        return Judgement(decision, found["reason"], now)
    packaged = verified(package)
    told, asked = Verdict.from_json(packaged["verdict"]), (run.id, where_judged(run, backend))
    same = (packaged["run"], packaged["environment"]["fingerprint"]) == asked
    if same and told.decision == recorded:  # else it is of another SLA, or of another environment
        return Judgement(recorded, told.missed, _clauses(told))
    return Judgement(recorded, "so it was judged here; `pareflow check` says more")


def _verified(tracker: Tracker, run: Run, version: str, into: Path) -> Path:
    """The version's package, opened elsewhere, its golden outputs repeated. Raises: PareflowError."""
    package = as_registered(tracker, run.spec.name, version, into)
    registration.check(package, run)
    return package


def as_registered(tracker: Tracker, name: str, version: str, into: Path) -> Path:
    """The version's package, its digests checked. Raises: InputError where it is not what was packaged, or
    not what pareflow registered."""
    registered = tracker.version(name, version)
    check_ours(registered)
    package = tracker.download(name, version, into)
    check_content(package, registered)
    return package
