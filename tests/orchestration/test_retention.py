"""What is old is removed, and nothing that an alias, a monitor or a setting still needs."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from pareflow.monitoring.labels import TABLE, Answers, join
from pareflow.monitoring.state import State
from pareflow.serving.request_log import DAY_S, NOTE, note_days, place
from tasks.retention import outdated
from tasks.tracking import Tracker
from tests.orchestration.contenders import MODEL, enter


def test_what_was_seen_of_versions_goes_when_it_is_old(
    tmp_path: Path, new_tracker: Callable[[Path], Tracker]
) -> None:
    """Not of one that an alias points at (2, 3) or that is watched (4), nor before its rules say (5, 6)."""
    tracker, monitored = new_tracker(tmp_path), tmp_path / "monitoring"
    for score in range(1, 7):
        enter(tracker, score)
    tracker.set_alias(MODEL, "previous", "2")
    tracker.set_alias(MODEL, "champion", "3")
    State("4").write(monitored / f"{MODEL}.json")
    for number in "123456":
        folder = monitored / MODEL / number
        folder.mkdir(parents=True)
        Answers(folder)
        note_days(folder, 1000 if number == "5" else 90)
        for path in (folder / TABLE, folder / NOTE):
            aged(path, days=80 if number == "6" else 100)
    join(monitored / MODEL / "4", [(("nobody", 0), "1")])  # who looks for answers makes nothing younger
    requests = tmp_path / "requests"
    kept = [place(requests, f"{number}00000000000{number}-1-1.npz") for number in range(2)]
    for path, days in zip(kept, (8, 6), strict=True):
        path.parent.mkdir(parents=True)
        path.touch()
        aged(path, days)
    note_days(requests, 7)
    assert outdated(tracker, tmp_path) == 2
    assert sorted(path.name for path in (monitored / MODEL).iterdir()) == list("23456")
    assert [path.exists() for path in kept] == [False, True]


def aged(path: Path, days: float) -> None:
    """As if it had been written so long ago."""
    at_s = time.time() - days * DAY_S
    os.utime(path, (at_s, at_s))
