"""What is old and goes by nobody's hand: kept requests, and what was seen of versions that serve no more."""

import shutil
import time
from pathlib import Path

from pareflow.monitoring.state import State
from pareflow.serving.request_log import DAY_S, expire, noted_days
from tasks import registry
from tasks.tracking import Tracker


def outdated(tracker: Tracker, data_dir: Path) -> int:
    """How many files of kept requests and folders of monitored versions were removed for their age now.

    A version that an alias points at, or that is watched, keeps its folder. Raises: TransientError,
    TrackingError, StoreError, OSError.
    """
    aliased = {(model, version) for model, _, version in registry.aliased(tracker)}
    removed = expire(data_dir / "requests")
    for folder in (data_dir / "monitoring").glob("*/*/"):
        name, version = folder.parent.name, folder.name
        watched = State.read(data_dir / "monitoring" / f"{name}.json").version
        if (name, version) not in aliased and version != watched and _age_days(folder) > noted_days(folder):
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed


def _age_days(folder: Path) -> float:
    """Since a file of it was last written. Who only looks changes the time of the folder itself."""
    last = max((path.stat().st_mtime for path in folder.iterdir()), default=time.time())
    return (time.time() - last) / DAY_S
