"""Who works on a run: its owners beat, who stops is declared dead, and the dead record nothing more.

All of it is tags of the run's record in MLflow, which every machine sees. A run may have several owners: two
commands at once share it. An owner that was only paused, or cut off, finds out before it next writes.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from uuid import uuid4

from pareflow.errors import TrackingError

OWNED = "pareflow.owned"
"""Runs that have owners, or had one that died unnoticed."""
OWNER = "pareflow.owner."
DEAD = "pareflow.dead."
FLOW_RUN = "pareflow.flow_run."
"""The flow runs of Prefect's that worked on it, and when each took it up last."""
WINDOW_S = 150.0
"""So long without a heartbeat who works on a run is taken for dead, where nothing else is asked for."""
_COMMAND = "command"


def beat_s() -> int:
    """Seconds between two heartbeats: Prefect's, which `flows.environment` sets to 30."""
    return int(os.environ.get("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30"))


class FencedError(TrackingError):
    """Who would record something was declared dead before."""


@dataclass(frozen=True, slots=True)
class Owner:
    """One process at work on a run, by a name that is never given twice: a fencing token."""

    name: str

    @classmethod
    def new(cls, flow_run: str | None) -> Self:
        """Of a flow run of Prefect's, or of a command."""
        return cls(f"{flow_run or _COMMAND}.{uuid4().hex[:12]}")

    @property
    def flow_run(self) -> str | None:
        flow_run = self.name.partition(".")[0]
        return None if flow_run == _COMMAND else flow_run

    def check(self, tags: Mapping[str, str]) -> None:
        """Raises: FencedError where the run's tags say that this owner is dead."""
        if DEAD + self.name in tags:
            raise FencedError(
                "who records a run must be alive, and known to be",
                f"{self.name} gave no sign of life for so long that it was declared dead",
                "Run the same command again; what is finished is kept",
            )


@dataclass(frozen=True, slots=True)
class Owned:
    """A run's record, and the last beat of each of its owners."""

    run_id: str
    name: str
    beats: Mapping[Owner, str]


def beats(tags: Mapping[str, str]) -> dict[Owner, str]:
    """The owners in a run's tags."""
    return {Owner(tag.removeprefix(OWNER)): beat for tag, beat in tags.items() if tag.startswith(OWNER)}
