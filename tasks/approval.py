"""A person between the gate and the champion: a request that waits on the version, and is decided once.

The flow that asks ends; nothing waits but the request, a tag of the version in the name of the environment
that judged it. Who approves lets the promotion protocol run, against the champion of that moment: an approval
does not stand in for a verdict. Every decision is taken under the promotion lock, so that of two at once the
second one is told of the first; it ends what other environments asked of the same two versions, too. A
request that nobody decides in time expires.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pareflow.errors import InputError
from pareflow.stages.run import Row, Run
from tasks import audit
from tasks.promotion import Bout, Promotion, bout, challenger_of, held_back, judged, number, settle
from tasks.tracking import Tracker

TAG = "pareflow.approval."
HOURS = 72.0
"""How long a request waits where the pipeline says nothing of it."""
State = Literal["pending", "approved", "declined", "expired"]


@dataclass(frozen=True)
class Request:
    """What is asked for: a version that beat `champion` in the environment with this fingerprint."""

    environment: str
    champion: str | None
    reason: str
    verdict: str
    asked: str
    expires: str
    state: State = "pending"
    by: str | None = None
    why: str = ""

    @property
    def tag(self) -> str:
        return TAG + self.environment[:12]

    def late(self) -> bool:
        """Whether its time is over, by this machine's clock."""
        return self.state == "pending" and datetime.now(UTC) >= datetime.fromisoformat(self.expires)

    def stands(self, champion: str | None) -> bool:
        """Whether nobody need be asked again, with this champion."""
        return self.champion == champion and self.state in ("pending", "declined") and not self.late()


def ask(tracker: Tracker, run: Run, version: str, winner: Row) -> Promotion:
    """Ask for the version to be approved, if the gate promotes it against the present champion.

    One request per version and champion: a pending one keeps its time, one that was declined, in
    whatever environment, is not repeated.
    """
    with tracker.moving(run.spec.name):
        return file(tracker, bout(tracker, run, version, winner), run.spec.approval_hours or HOURS)


def file(tracker: Tracker, asked: Bout, hours: float) -> Promotion:
    """The request of this bout, found or made. Call it under the lock."""
    name, version = asked.name, asked.version
    champion = number(tracker, name, "champion")
    if champion == version:
        return Promotion(version, "champion", "it is the champion already")
    every = requests(tracker, name, version)
    declined = [one for one in every.values() if one.state == "declined" and one.stands(champion)]
    own = every.get(asked.environment[:12])
    known = declined[0] if declined else _current(tracker, name, version, own)
    if known is not None and known.stands(champion):
        return told(name, version, known)
    found = judged(tracker, asked, champion)
    left = held_back(tracker, name, version, asked.environment)
    reason = f"{found.reason}, but {left}" if left else found.reason
    places = {"before": champion, "verdict": found.verdict}
    if found.decision != "promote":
        audit.note(tracker, asked.move("rejected", reason, **places, after=champion))
        return Promotion(version, "challenger", reason)
    now = datetime.now(UTC)
    until = (now + timedelta(hours=hours)).isoformat(timespec="seconds")
    request = Request(
        asked.environment, champion, reason, found.verdict, now.isoformat(timespec="seconds"), until
    )
    with audit.recorded(tracker, asked.move("awaiting_approval", reason, **places)):
        _keep(tracker, name, version, request)
    return told(name, version, request)


def approve(tracker: Tracker, run: Run, by: str, why: str) -> dict[str, Any]:
    """Promote the challenger that waits, if the gate still promotes it against the champion of now, here.

    Raises: InputError where nothing waits, its time is over, or somebody has decided.
    """
    version = challenger_of(tracker, run.spec.name)
    return decide(tracker, bout(tracker, run, version, None, by, why))


def decide(tracker: Tracker, approved: Bout) -> dict[str, Any]:
    """The bout that somebody approved, settled. Killed before it is, the request is pending still."""
    name, version = approved.name, approved.version
    with tracker.moving(name) as still_held:
        request = _waiting(tracker, name, version)
        audit.note(tracker, approved.move("approved", request.reason, before=request.champion))
        moved = settle(tracker, approved, still_held)
        _decided(tracker, name, version, replace(request, state="approved", by=approved.by, why=approved.why))
    return {"name": name, **asdict(moved)}


def decline(tracker: Tracker, name: str, by: str, why: str) -> dict[str, Any]:
    """Leave the champion where it is. It takes no measuring. Raises: InputError as `approve` does."""
    version = challenger_of(tracker, name)
    with tracker.moving(name):
        request = _waiting(tracker, name, version)
        move = audit.Move(name, "declined", version, by, why, request.champion, request.champion)
        with audit.recorded(tracker, replace(move, environment=request.environment)):
            _decided(tracker, name, version, replace(request, state="declined", by=by, why=why))
    return {"name": name, **asdict(Promotion(version, "challenger", f"{by} declined it: {why}"))}


def expire(tracker: Tracker, name: str) -> list[str]:
    """The versions whose requests expire now: for whoever cleans up; decisions need no such call.

    Where nothing is late it waits for no lock, which whoever judges holds for minutes.
    """
    if not _late(tracker, name):
        return []
    with tracker.moving(name):
        late = _late(tracker, name)
        for version, request in late:
            _current(tracker, name, version, request)
    return [version for version, _ in late]


def _late(tracker: Tracker, name: str) -> list[tuple[str, Request]]:
    """Versions with requests whose time is over."""
    return [
        (str(version.version), request)
        for version in tracker.versions(name)
        for request in _parsed(version.tags).values()
        if request.late()
    ]


def requests(tracker: Tracker, name: str, version: str) -> dict[str, Request]:
    """The requests for a version, by the first 12 digits of the environment that asked."""
    return _parsed(tracker.version(name, version).tags)


def _parsed(tags: Mapping[str, str]) -> dict[str, Request]:
    """Raises: InputError for those of another form: what a person said is not passed over."""
    found = {key.removeprefix(TAG): value for key, value in tags.items() if key.startswith(TAG)}
    try:
        return {key: Request(**json.loads(value)) for key, value in found.items()}
    except TypeError as error:
        raise InputError(
            "requests for approval must be of a form that this pareflow knows",
            f"one is not ({error})",
            "Install the pareflow that asked",
        ) from error


def _waiting(tracker: Tracker, name: str, version: str) -> Request:
    """The request that can be decided now. Raises: InputError where there is none."""
    known = requests(tracker, name, version).values()
    newest = max(known, key=lambda request: request.asked, default=None)
    request = _current(tracker, name, version, newest)
    challenger = number(tracker, name, "challenger")
    if challenger != version:
        found, remedy = f"version {challenger} is the challenger now", f"See `pareflow list audit {name}`"
    elif request is None:
        found, remedy = "nobody asked", "A run of a pipeline with `promotion: approval` asks"
    elif request.state == "expired":
        found, remedy = f"its time was over at {request.expires}", "Run the pipeline again: it asks again"
    elif request.state != "pending":
        found, remedy = (
            f"{request.by} {request.state} it ({request.why})",
            f"See `pareflow list audit {name}`",
        )
    else:
        return request
    raise InputError(f"version {version} of {name} must await approval", found, remedy)


def _current(tracker: Tracker, name: str, version: str, request: Request | None) -> Request | None:
    """The request as it stands now: what is late is recorded as expired."""
    if request is None or not request.late():
        return request
    expired = replace(request, state="expired")
    reason = f"nobody decided until {request.expires}"
    move = audit.Move(name, "expired", version, audit.who(), reason, request.champion, request.champion)
    with audit.recorded(tracker, replace(move, environment=request.environment)):
        _keep(tracker, name, version, expired)
    return expired


def _decided(tracker: Tracker, name: str, version: str, decision: Request) -> None:
    """Keep a decision as that of every request which asks the same: each environment may have one."""
    for request in requests(tracker, name, version).values():
        if request.state == "pending" and request.champion == decision.champion:
            decided = replace(request, state=decision.state, by=decision.by, why=decision.why)
            _keep(tracker, name, version, decided)


def _keep(tracker: Tracker, name: str, version: str, request: Request) -> None:
    reason, verdict, why = (text[:1500] for text in (request.reason, request.verdict, request.why))
    kept = replace(request, reason=reason, verdict=verdict, why=why)
    tracker.tag_version(name, version, request.tag, json.dumps(asdict(kept)))


def told(name: str, version: str, request: Request) -> Promotion:
    """Where the version stands by a request that is pending or declined."""
    if request.state == "declined":
        return Promotion(version, "challenger", f"{request.by} declined it: {request.why}")
    reason = (
        f"awaiting approval until {request.expires}: {request.reason}; {request.verdict}; "
        f"`pareflow promote {name} --approve --by WHO --reason …`, or --reject"
    )
    return Promotion(version, "challenger", reason, awaiting=request.expires)
