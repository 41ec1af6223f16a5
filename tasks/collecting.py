"""Collect the store of a data folder, and keep what registered models and running commands need."""

from pathlib import Path
from typing import Any

from pareflow import collection
from pareflow.stages import keeping
from pareflow.store import Store
from tasks import registries


def registered(data_dir: Path) -> dict[str, str]:
    """A version for each variant that one names, from every registry; needs no MLflow where there is none.

    Raises: TransientError, TrackingError where one cannot be asked: what it needs is not known.
    """
    found: dict[str, str] = {}
    for uri in registries.known(data_dir):
        from tasks.tracking import variants_registered

        found |= variants_registered(uri, data_dir)
    return found


def contents(data_dir: Path) -> dict[str, Any]:
    """What lies in the store, and what is needed."""
    return keeping.contents(Store(data_dir / "store"), registered(data_dir))


def collect(data_dir: Path, max_gib: float) -> dict[str, Any]:
    """Remove what is not needed, least recently used first, until the store holds at most so much.

    `needed_too_much` is None, or says that all that is left is needed, and is more.
    """
    store = Store(data_dir / "store")
    keep = keeping.needed(store, registered(data_dir))
    done = collection.collect(store, max_gib * 2**30, keep)
    over = None
    if done.left > max_gib * 2**30:
        over = "registered models and running commands need more than the limit, and keep it"
    return {
        "store": str(store.root),
        "max_gib": max_gib,
        "removed": done.removed,
        "freed_mib": done.freed / 2**20,
        "left_mib": done.left / 2**20,
        "needed_too_much": over,
    }
