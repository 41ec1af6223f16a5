"""Labels that come late: the served version's for its rules, those of earlier ones for rows of theirs."""

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from pareflow.errors import InputError
from pareflow.monitoring import labels
from pareflow.monitoring.labels import Joined, New, Place
from pareflow.troubles import Troubles
from tasks.monitoring import Record


class LateLabels:
    """The labels in a file, followed while a version is served; `record` is that version's."""

    def __init__(self, path: Path | None, record: Record, told: Callable[[str], None]) -> None:
        self._path, self._record, self._told = path, record, told
        self._earlier: dict[str, list[Joined]] = {}
        self._records: dict[str, Record] = {}
        self._troubles = Troubles()

    def since(self, place: Place, folder: Path, step: int) -> tuple[Joined | None, Place]:
        """The new ones of the served version, whose answers lie in `folder`, and how far was read; also those
        whose answers have come since they were read.

        What is wrong with the file is told and recorded, once for as long as it lasts; the rest counts.
        """
        if self._path is None:
            return None, place
        try:
            new = labels.read(self._path, place) if self._path.exists() else New([], [], place)
            found = labels.join(folder, new.labels, place.counted)
        except (InputError, sqlite3.Error) as error:
            self._tell(f"labels are not joined: {error}", step)
            return None, place
        self._tell(f"{len(new.bad)} rows of {self._path} are left out: {new.bad[0]}" if new.bad else "", step)
        counted = any(len(joined.served) for joined in found.values())
        ours = found.pop(folder.name)
        for version, joined in found.items():
            if len(joined.served):
                self._earlier.setdefault(version, []).append(joined)
        there = replace(new.place, counted=place.counted + counted)
        return (ours if new.labels or len(ours.served) else None), there

    def record(self, step: int) -> None:
        """A row in the record of each earlier version that labels have come for."""
        for version, parts in self._earlier.items():
            own = Record(self._record.tracker, self._record.name, version)
            served, original = (
                np.concatenate([getattr(part, side) for part in parts]) for side in ("served", "original")
            )
            right = {"late.served_right": float(served.mean()), "late.original_right": float(original.mean())}
            self._records.setdefault(version, own).add({"late.labels": len(served), **right}, step)
        self._earlier.clear()

    def _tell(self, trouble: str, step: int) -> None:
        if not trouble:
            self._troubles.over("labels")
        elif self._troubles.is_new("labels", trouble):
            self._told(trouble)
            self._record.note({"labels": trouble}, f"labels/{step:08d}.json")
