"""What the safety net finds and mends: who died at work, what was left behind, what was not heard of.

Each function may be called again at any time. A process is taken for dead only when its heartbeat stood still
from one look to another, at least a window apart, and again while it was watched: in between, its server may
have been away.
"""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pareflow import collection
from pareflow.store import Store
from tasks import approval, flow_runs, owners, registry
from tasks.events import emit
from tasks.looks import Looks
from tasks.ownership import Owned, Owner
from tasks.tracking import Tracker

RESUMED = ("pipeline", "retraining")
"""Flows whose killed runs go on by themselves; others are started again by their schedules."""
ATTEMPTS = 3
"""So often at most does a worker take up one run."""
SETTLED_S = 60.0
"""A crash is told twice, by whoever finds it and by the worker: a run resumed in between is lost."""
RECENT_S = 24 * 3600.0
"""Runs whose first crash is longer ago are left alone."""
_RESUMED = "pareflow reconcile: attempt"
"""How the states begin that `resumed` gives."""
BEATS = 4
"""So many heartbeats must be missing, of whatever interval."""
PENDING_S = 1800.0
"""So long after a worker took it, a run that has not begun never will. One whose pod waits for room may."""
SLOW_BEAT_S = 180.0
"""Between the heartbeats of a process without our environment."""
SILENT_S = 1800.0
"""So long without a row of its monitor's nobody watches a champion: one is written every `record_s`, 60 s."""


@dataclass(frozen=True)
class Look:
    """One look at everything: when, what the ones before saw, and the shortest silence that means death.

    Suspects are watched for `confirm_s` more.
    """

    looks: Looks
    now: float
    window_s: float
    confirm_s: float


def dead_owners(look: Look, tracker: Tracker) -> tuple[list[dict[str, Any]], set[str]]:
    """Owners of MLflow runs that were declared dead now; and the flow runs whose owners are alive."""
    runs = owners.owned_runs(tracker)
    silent = {(run.run_id, owner): _owner_silent_s(look, run, owner) for run in runs for owner in run.beats}
    look.looks.forget("owner", look.now)
    suspects = {suspect for suspect, seconds in silent.items() if seconds >= look.window_s}
    if suspects:
        time.sleep(look.confirm_s)
    later = {run.run_id: run.beats for run in owners.owned_runs(tracker)} if suspects else {}
    dead = []
    for run in runs:
        for owner, beat in run.beats.items():
            if (run.run_id, owner) in suspects and later.get(run.run_id, {}).get(owner) == beat:
                owners.declare_dead(tracker, run.run_id, owner)
                seconds = silent[run.run_id, owner] + look.confirm_s
                dead.append({"run": run.name, "owner": owner.name, "silent_s": round(seconds)})
    names = {one["owner"] for one in dead}
    alive = {owner.flow_run for _, owner in silent if owner.flow_run and owner.name not in names}
    return dead, alive


def _owner_silent_s(look: Look, run: Owned, owner: Owner) -> float:
    return look.looks.unchanged_s("owner", f"{run.run_id}/{owner.name}", run.beats[owner], look.now)


def dead_flow_runs(look: Look, alive: Collection[str]) -> list[dict[str, Any]]:
    """Flow runs that were marked as crashed now: they beat no more, and no owner of theirs does in MLflow.

    One that never beat is not judged: its process was not told to.
    """
    running = {run["id"]: run for run in flow_runs.in_state("RUNNING", "CANCELLING")}
    found = {name: beats for name in running if (beats := flow_runs.heartbeats(name))}
    silent = {
        name: look.looks.unchanged_s("flow run", name, beats[0]["id"], look.now)
        for name, beats in found.items()
    }
    look.looks.forget("flow run", look.now)
    suspects = [
        name
        for name, seconds in silent.items()
        if name not in alive and seconds >= max(look.window_s, BEATS * _interval_s(found[name]))
    ]
    if suspects:
        time.sleep(look.confirm_s)
    silent_still = [n for n in suspects if flow_runs.heartbeats(n)[0]["id"] == found[n][0]["id"]]
    running_still = {run["id"] for run in flow_runs.in_state("RUNNING", "CANCELLING")} if suspects else set()
    dead = [name for name in silent_still if name in running_still]
    for name in dead:
        flow_runs.crash(name, f"pareflow reconcile: no heartbeat for {silent[name] + look.confirm_s:.0f} s")
    return [{"flow_run": name, "name": running[name]["name"]} for name in dead]


def _interval_s(beats: list[dict[str, Any]]) -> float:
    """Between a process' last two heartbeats, by its own clock."""
    if len(beats) < 2:
        return SLOW_BEAT_S
    last, before = (datetime.fromisoformat(beat["occurred"]) for beat in beats[:2])
    return (last - before).total_seconds()


def never_began(look: Look) -> list[dict[str, Any]]:
    """Runs that were marked as crashed now: a worker took them and died before they began."""
    lost = []
    for run in flow_runs.in_state("PENDING"):
        # The cluster keeps the pod, and may begin it yet.
        waits = run["state"]["name"] == "InfrastructurePending"
        limit_s = RECENT_S if waits else PENDING_S
        if look.looks.unchanged_s("pending", run["id"], run["state"]["id"], look.now) >= limit_s:
            flow_runs.crash(run["id"], "pareflow reconcile: it never began")
            lost.append({"flow_run": run["id"], "name": run["name"]})
    look.looks.forget("pending", look.now)
    return lost


def resumed(look: Look) -> list[dict[str, Any]]:
    """Runs of deployments that crashed, and that a worker takes up again now: what is finished is kept."""
    resumed = []
    for run in flow_runs.in_state("CRASHED", flows=RESUMED):
        settled = look.looks.unchanged_s("crash", run["id"], run["state"]["id"], look.now) >= SETTLED_S
        if not settled or run["deployment_id"] is None or _age_s(run["state"], look) > RECENT_S:
            continue
        states = flow_runs.states(run["id"])
        attempt = _attempts(run, states) + 1
        if attempt <= ATTEMPTS and _since_first_crash_s(states, look) <= RECENT_S:
            flow_runs.resume(run["id"], f"{_RESUMED} {attempt} of {ATTEMPTS}")
            resumed.append({"flow_run": run["id"], "name": run["name"], "attempt": attempt})
    look.looks.forget("crash", look.now)
    return resumed


def _attempts(run: Mapping[str, Any], states: Sequence[Mapping[str, Any]]) -> int:
    """How often a worker took up a run: the server counts those that came to Running, `states` tells ours."""
    again = sum(str(state["message"]).startswith(_RESUMED) for state in states)
    return max(int(run["run_count"]), 1 + again)


def _since_first_crash_s(states: Sequence[Mapping[str, Any]], look: Look) -> float:
    return max((_age_s(state, look) for state in states if state["type"] == "CRASHED"), default=0.0)


def _age_s(state: Mapping[str, Any], look: Look) -> float:
    return look.now - datetime.fromisoformat(state["timestamp"]).timestamp()


def leaked_slots(look: Look) -> list[dict[str, Any]]:
    """Slots of our deployments that no run has held for a window, given back now."""
    freed = []
    for slot in flow_runs.slots():
        seen = f"{slot['taken']} taken, {slot['holders']} holders"
        unchanged = look.looks.unchanged_s("slot", slot["id"], seen, look.now)
        if slot["taken"] > slot["holders"] and unchanged >= look.window_s:
            flow_runs.free_slots(slot["id"], slot["holders"])
            freed.append(slot)
    look.looks.forget("slot", look.now)
    return freed


def pending_challengers(tracker: Tracker, now: float) -> list[dict[str, Any]]:
    """Versions that are challengers and not champions: somebody is to promote or reject them."""
    aliases: dict[str, dict[str, str]] = {}
    for model, alias, number in registry.aliased(tracker):
        aliases.setdefault(model, {})[alias] = number
    pending = []
    for model, pointed in sorted(aliases.items()):
        challenger = pointed.get("challenger")
        if challenger is None or challenger == pointed.get("champion"):
            continue
        version = registry.registered(tracker, model, challenger)
        if version is not None:
            hours = (now - version.created_ms / 1000) / 3600
            pending.append({"name": model, "version": challenger, "hours": hours})
    return pending


def silent_monitors(look: Look, tracker: Tracker) -> list[dict[str, Any]]:
    """Champions of models that were watched, and are not now: no row of theirs has come for long. Prefect is
    told once."""
    silent = []
    for model, alias, version in registry.aliased(tracker):
        looked = tracker.looked(model) if alias == "champion" else {}
        if not looked:
            continue
        seen = f"{version}: {looked.get(version)}"
        seconds = look.looks.unchanged_s("monitor", model, seen, look.now)
        if seconds >= SILENT_S:
            silent.append({"name": model, "version": version, "silent_s": round(seconds)})
            if look.looks.unchanged_s("silence", model, seen, look.now) == 0:
                reason = f"its monitor has written no row for {seconds:.0f} s"
                emit("monitoring.silent", model, version, {"reason": reason})
    for kind in ("monitor", "silence"):
        look.looks.forget(kind, look.now)
    return silent


def expired_approvals(tracker: Tracker) -> list[dict[str, Any]]:
    """The versions whose requests for approval nobody decided in time, recorded as expired now."""
    models = sorted({model for model, alias, _ in registry.aliased(tracker) if alias == "challenger"})
    return [
        {"name": model, "version": version} for model in models for version in approval.expire(tracker, model)
    ]


def leftovers(data_dir: Path) -> int:
    """How many temporary folders of killed makers were removed from the store now."""
    if not (data_dir / "store").exists():
        return 0
    store = Store(data_dir / "store")
    found = len(collection.leftovers(store))
    collection.collect(store, math.inf)
    return found
