"""A challenger's traffic: given, watched, judged and taken back. A tag of the registry says it to servers.

Traffic is given for a while and renewed: where whoever watches it dies, servers take it back by themselves.
"""

import fcntl
import http.client
import json
import math
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from prefect import task
from prefect.cache_policies import NO_CACHE

from pareflow.errors import InputError, TransientError
from pareflow.gate import Verdict
from pareflow.hardware.device import try_lock
from pareflow.serving.traffic import Traffic
from pareflow.stages.deployment import Seen, Tolerance, judge_live, merged
from tasks.promotion import challenger_of, number
from tasks.tracking import TRAFFIC, Tracker

LEASE_S = 120.0
"""For how long traffic is given at a time."""
FIRST_LOOK = 400
"""Requests to the challenger before it is judged for the first time; then whenever they have doubled."""
ANSWER_S = 10.0
PASSING = (429, 500, 502, 503, 504)
"""Statuses of a server that restarts, or of an ingress that has none behind it: they pass."""
SILENT = 3
"""Looks in a row at a server of a canary that does not answer: the challenger may have ended its process."""
_POLICY: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}


@dataclass(frozen=True, slots=True)
class Rollout:
    """One version on its way beside one champion, and the servers that are asked what they see."""

    name: str
    version: str
    champion: str
    urls: tuple[str, ...]
    key: str | None = None
    """Of the servers, where they have keys."""
    pause_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Step:
    """What came of one traffic: the gate's word, or `gone` where champion or challenger became others."""

    traffic: Traffic
    decision: Literal["promote", "reject", "inconclusive", "gone"]
    reason: str
    seen: Seen | None = None
    verdict: Verdict | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "shadow": self.traffic.shadow,
            "canary": self.traffic.canary,
            "decision": self.decision,
            "reason": self.reason,
            "counts": None if self.seen is None else dict(self.seen.counts),
            "checks": [] if self.verdict is None else self.verdict.to_json()["checks"],
        }


@contextmanager
def alone(tracker: Tracker, name: str) -> Iterator[None]:
    """Be the only one of this data folder that rolls the model out. Raises: InputError."""
    tracker.locks.mkdir(parents=True, exist_ok=True)
    with (tracker.locks / f"deployment-{name}.lock").open("w") as file:
        if not try_lock(file.fileno(), fcntl.LOCK_EX):
            raise InputError(
                f"{name} must be rolled out once at a time", "another command does it", "Wait for that one"
            )
        yield


def give(tracker: Tracker, name: str, traffic: Traffic, seconds: float = LEASE_S) -> None:
    """Give a version this traffic for so long, unless it is renewed."""
    lent = traffic.model_copy(update={"until": time.time() + seconds})
    tracker.tag_model(name, TRAFFIC, lent.model_dump_json())


def withdraw(tracker: Tracker, name: str) -> None:
    """Take all traffic back: the champion answers every request."""
    tracker.tag_model(name, TRAFFIC, None)


def ask(rollout: Rollout, url: str) -> dict[str, Any]:
    """What a server says of the model.

    Raises: TransientError where it does not, or a proxy answers for it; InputError where it says no.
    """
    headers = {} if rollout.key is None else {"Authorization": f"Bearer {rollout.key}"}
    request = urllib.request.Request(f"{url.rstrip('/')}/v2/models/{rollout.name}/trial", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            document = json.loads(answer.read())
    except urllib.error.HTTPError as error:
        if error.code in PASSING:
            raise _silent(url, f"it says {error.code}") from error
        raise InputError(
            f"{url} must tell of {rollout.name}",
            f"it says {error.code}: {_words(error)}",
            "Name a server of this model with --url, its key in PAREFLOW_API_KEYS",
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _silent(url, f"it does not ({type(error).__name__}: {error})") from error
    if not (isinstance(document, dict) and document.keys() >= {"champion", "refused", "trial"}):
        raise _silent(url, "what it says is not of a pareflow server")
    return document


def _silent(url: str, found: str) -> TransientError:
    return TransientError(f"the server at {url} must answer", found, "Start it, or name it with --url")


def _words(error: urllib.error.HTTPError) -> str:
    """What a refusal says, as far as it comes."""
    try:
        return error.read(200).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return error.reason


@task(task_run_name="{rollout.name}: shadow {traffic.shadow}, canary {traffic.canary}", **_POLICY)
def watch(tracker: Tracker, rollout: Rollout, traffic: Traffic, tolerance: Tolerance, seconds: float) -> Step:
    """Give a traffic and judge what servers see of it, until the gate knows, or the time is over.

    Doubt buys time, and in the end does not pass (law 3).
    """
    until, renewed, looks, next_look = time.monotonic() + seconds, -math.inf, 0, FIRST_LOOK
    silent = Counter[str]()
    while True:
        if time.monotonic() - renewed > LEASE_S / 3:
            give(tracker, rollout.name, traffic)
            renewed = time.monotonic()
        if words := _others(tracker, rollout):
            return Step(traffic, "gone", words)
        over = time.monotonic() >= until
        seen, refused = _seen(rollout, traffic, silent)
        if refused is not None:
            return Step(traffic, "reject", refused)
        if traffic.canary and (gone := [url for url in rollout.urls if silent[url] >= SILENT]):
            words = f"{' and '.join(gone)} stopped answering while the challenger answered requests there"
            return Step(traffic, "inconclusive", words, seen)
        if seen.asked >= next_look or (over and seen.asked):
            looks, next_look = looks + 1, 2 * seen.asked
            verdict = judge_live(seen, tolerance, rollout.version, look=looks, timed=traffic.canary > 0)
            if over or verdict.decision != "inconclusive":
                reason = verdict.missed or "every clause is met"
                return Step(traffic, verdict.decision, reason, seen, verdict)
        if over:
            words = f"no server asked the challenger anything within {seconds:g} s"
            return Step(traffic, "inconclusive", words, seen)
        time.sleep(rollout.pause_s)


def _others(tracker: Tracker, rollout: Rollout) -> str:
    """Whether the registry's aliases have moved since the rollout began, in words; empty where not."""
    model = tracker.model(rollout.name)
    aliases = {} if model is None else {alias: str(number) for alias, number in model.aliases.items()}
    for alias, expected in (("champion", rollout.champion), ("challenger", rollout.version)):
        if aliases.get(alias) != expected:
            return f"`{alias}` is version {aliases.get(alias)} now, not {expected}"
    return ""


def _seen(rollout: Rollout, traffic: Traffic, silent: Counter[str]) -> tuple[Seen, str | None]:
    """What the servers that answer saw of this traffic; and why one of them refuses the challenger.

    `silent` counts, per server, looks in a row without an answer.
    """
    records = []
    for url in rollout.urls:
        try:
            document = ask(rollout, url)
        except TransientError:
            silent[url] += 1
            continue  # it restarts; where none comes back nothing is seen, and doubt does not pass
        silent[url] = 0
        refused = document["refused"]
        if refused is not None and refused["version"] == rollout.version:
            return merged([]), f"{url} cannot serve it: {refused['reason']}"
        if _is_of(document["trial"], rollout, traffic):
            records.append(document["trial"])
    return merged(records), None


def _is_of(record: Mapping[str, Any] | None, rollout: Rollout, traffic: Traffic) -> bool:
    """Whether a record is of this rollout under this traffic: of an earlier one it says nothing."""
    if record is None or record["champion"] != rollout.champion:
        return False
    told = Traffic(**{**record["traffic"], "until": None})
    return told == traffic.model_copy(update={"until": None})


@task(task_run_name="{rollout.name}: version {rollout.version} everywhere", **_POLICY)
def follow(rollout: Rollout, seconds: float) -> list[str]:
    """Wait until every server answers with the version; those that do not, by then."""
    until, left = time.monotonic() + seconds, list(rollout.urls)
    while left:
        left = [url for url in left if not _answers(rollout, url)]
        if time.monotonic() >= until:
            break
        if left:
            time.sleep(rollout.pause_s)
    return left


def _answers(rollout: Rollout, url: str) -> bool:
    try:
        return bool(ask(rollout, url)["champion"] == rollout.version)
    except TransientError:
        return False


def servers_answer(rollout: Rollout) -> None:
    """Raises: TransientError, InputError where a server cannot tell of the model, before anything begins."""
    for url in rollout.urls:
        ask(rollout, url)


def begin(tracker: Tracker, name: str, urls: Sequence[str], key: str | None) -> Rollout | None:
    """The challenger's way beside the present champion; None where it is the champion, or there is none.

    Raises: InputError where there is no challenger.
    """
    version, champion = challenger_of(tracker, name), number(tracker, name, "champion")
    if champion is None or champion == version:
        return None
    return Rollout(name, version, champion, tuple(urls), key)
