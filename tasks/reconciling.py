"""What the safety net finds and mends: who died at work, what was left behind, what was not heard of.

Each function may be called again at any time. A run is taken for dead only when its heartbeat stood still from
one look to another, at least a window apart.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pareflow import collection
from pareflow.store import Store
from tasks import flow_runs
from tasks.looks import Looks
from tasks.tracking import Tracker

RESUMED = ("pipeline", "retraining")
"""Flows whose killed runs go on by themselves; others are started again by their schedules."""
ATTEMPTS = 3
"""So often at most does a worker take up one run."""
SETTLED_S = 60.0
"""A crash is told twice, by whoever finds it and by the worker: a run resumed in between is lost."""
RECENT_S = 24 * 3600.0
"""Runs that crashed longer ago are left alone."""
BEATS = 4
"""So many heartbeats must be missing, of whatever interval."""
SLOW_BEAT_S = 180.0
"""Between the heartbeats of a process without our environment."""


@dataclass(frozen=True)
class Look:
    """One look at everything: when, what the ones before saw, and the shortest silence that means death."""

    looks: Looks
    now: float
    window_s: float


def dead_owners(look: Look, tracker: Tracker) -> tuple[list[dict[str, Any]], set[str]]:
    """Owners of MLflow runs that were declared dead now; and the flow runs whose owners are alive."""
    dead, alive = list[dict[str, Any]](), set[str]()
    for run in tracker.owned():
        for owner, beat in run.beats.items():
            silent = look.looks.unchanged_s("owner", f"{run.run_id}/{owner.name}", beat, look.now)
            if silent >= look.window_s:
                tracker.declare_dead(run.run_id, owner)
                dead.append(
                    {"run": run.name, "mlflow_run": run.run_id, "owner": owner.name, "silent_s": silent}
                )
            elif owner.flow_run is not None:
                alive.add(owner.flow_run)
    look.looks.forget("owner", look.now)
    return dead, alive


def dead_flow_runs(look: Look, alive: Collection[str]) -> list[dict[str, Any]]:
    """Flow runs that were marked as crashed now: they beat no more, and no owner of theirs does in MLflow.

    One that never beat is not judged: its process was not told to.
    """
    dead = []
    for run in flow_runs.in_state("RUNNING", "CANCELLING"):
        beats = flow_runs.heartbeats(run["id"])
        if not beats:
            continue
        silent = look.looks.unchanged_s("flow run", run["id"], beats[0]["id"], look.now)
        if silent >= max(look.window_s, BEATS * _interval_s(beats)) and run["id"] not in alive:
            flow_runs.crash(run["id"], f"pareflow reconcile: no heartbeat for {silent:.0f} s")
            dead.append({"flow_run": run["id"], "name": run["name"], "silent_s": silent})
    look.looks.forget("flow run", look.now)
    return dead


def _interval_s(beats: list[dict[str, Any]]) -> float:
    """Between a process' last two heartbeats, by its own clock."""
    if len(beats) < 2:
        return SLOW_BEAT_S
    last, before = (datetime.fromisoformat(beat["occurred"]) for beat in beats[:2])
    return (last - before).total_seconds()


def resumed(look: Look) -> list[dict[str, Any]]:
    """Runs of deployments that crashed, and that a worker takes up again now: what is finished is kept."""
    resumed = []
    for run in flow_runs.in_state("CRASHED", flows=RESUMED):
        settled = look.looks.unchanged_s("crash", run["id"], run["state"]["id"], look.now) >= SETTLED_S
        crashed = datetime.fromisoformat(run["state"]["timestamp"]).timestamp()
        if run["deployment_id"] is None or run["run_count"] >= ATTEMPTS or look.now - crashed > RECENT_S:
            continue
        if settled:
            flow_runs.resume(run["id"], f"pareflow reconcile: attempt {run['run_count'] + 1} of {ATTEMPTS}")
            resumed.append({"flow_run": run["id"], "name": run["name"], "attempt": run["run_count"] + 1})
    look.looks.forget("crash", look.now)
    return resumed


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
    for model, alias, number in tracker.aliased():
        aliases.setdefault(model, {})[alias] = number
    pending = []
    for model, pointed in sorted(aliases.items()):
        challenger = pointed.get("challenger")
        if challenger is None or challenger == pointed.get("champion"):
            continue
        version = tracker.registered(model, challenger)
        if version is not None:
            hours = (now - version.created_ms / 1000) / 3600
            pending.append({"name": model, "version": challenger, "hours": hours})
    return pending


def leftovers(data_dir: Path) -> int:
    """How many temporary folders of killed makers were removed from the store now."""
    if not (data_dir / "store").exists():
        return 0
    store = Store(data_dir / "store")
    found = len(collection.leftovers(store))
    collection.collect(store, math.inf)
    return found
