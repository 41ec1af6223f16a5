"""What lies in the store, by kind, and which of it registered models need."""

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pareflow.collection import Item, holders, items, leftovers, size
from pareflow.stages.jobs import calibration_key, original
from pareflow.stages.monitoring import CALIBRATION, answering_key
from pareflow.store import Store

KINDS: Mapping[str, str] = {
    "model.json": "packages",
    "quality.json": "qualities",
    "measurements.json": "measurements",
    "planned.json": "measurements",
    "served.json": "measurements",
    "highest.json": "measurements",
    "confined.json": "measurements",
    "split.json": "measurements",
    "seconds.json": "measurements",
    "takes.json": "profiles",
    "preflight.json": "preflights",
    "feeds.npz": "inputs to measure with",
    "answers.npz": "answers of originals",
    "answers.json": "answers of originals",
    "tried.json": "answers of originals",
    "facts.json": "profiles",
    "stages.json": "profiles",
    "operators.json": "profiles",
    "graph.json": "profiles",
    "ceilings.json": "profiles",
    "profile.json": "profiles",
}
"""By a file that an entry holds; what holds none of them is a network or an executable."""


def needed(store: Store, registered: Mapping[str, str]) -> dict[str, str]:
    """The keys that registered models need, each with the version that needs it.

    `registered` names a version for each variant. It needs the variant and its packages, which `export`
    opens, and the original of its workload, which `check` and `promote` compare with: it may have trained for
    hours. What a monitor compares its requests with cannot be made again once the data are others. All else
    they make again in seconds, or get from the registry.
    """
    found = dict(registered)
    for path in (store.root / "entries").glob("*/model.json"):
        about = _read(path)
        version = registered.get(str(about.get("variant")))
        if version is not None:
            found[path.parent.name] = version
            workload = str(about.get("workload_digest"))
            compared = (answering_key(workload), calibration_key(workload, CALIBRATION))
            for key in (original(workload).id, *compared):
                found.setdefault(key, version)
    return found


def contents(store: Store, registered: Mapping[str, str]) -> dict[str, Any]:
    """Entries and MiB by kind, what registered models hold, who runs, and what killed commands left."""
    found, keys = items(store), needed(store, registered)
    kinds: dict[str, list[Item]] = {}
    by_version: dict[str, list[Item]] = {}
    for item in found:
        kinds.setdefault(_kind(item), []).append(item)
        if item.key in keys:
            by_version.setdefault(keys[item.key], []).append(item)
    return {
        "store": str(store.root),
        **_summed(found),
        "kinds": [{"kind": kind, **_summed(some)} for kind, some in sorted(kinds.items())],
        "needed": [{"by": by, **_summed(some)} for by, some in sorted(by_version.items())],
        "running": [
            {"what": h.what, "pid": h.pid, "minutes": (time.time_ns() - h.began_ns) / 6e10}
            for h in holders(store)
        ],
        "leftovers": len(leftovers(store)),
    }


def _summed(some: Iterable[Item]) -> dict[str, Any]:
    """How many, and their MiB; a file that is linked from several of them counts once."""
    listed = list(some)
    return {"entries": len(listed), "mib": size(listed) / 2**20}


def _kind(item: Item) -> str:
    if item.path.parent.name == "unfinished":
        return "unfinished builds"
    known = (kind for file, kind in KINDS.items() if (item.path / file).exists())
    return next(known, "networks and executables")


def _read(path: Path) -> Mapping[str, Any]:
    """The JSON object in a file; empty where the entry is damaged or has just gone."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, Mapping) else {}
