"""What the clock has decided in a run, kept: a run that goes on after a kill decides the same."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pareflow.hardware.waits import WAITS


@dataclass
class Meter:
    """Since when, by this machine's clock, what goes on is charged to the budget: all but waiting for what
    other processes hold."""

    since: float = field(default_factory=lambda: time.monotonic())
    waited: float = field(default_factory=lambda: WAITS.seconds)
    """Seconds that had been waited by then."""

    @property
    def minutes(self) -> float:
        return self._seconds / 60

    def restart(self) -> None:
        self.since, self.waited = time.monotonic(), WAITS.seconds

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self.since - (WAITS.seconds - self.waited)

    def __getstate__(self) -> float:
        return self._seconds  # another machine has another clock

    def __setstate__(self, ago: float) -> None:
        self.since, self.waited = time.monotonic() - ago, WAITS.seconds


@dataclass(frozen=True, slots=True)
class Clock:
    """A file with a line per question: how many minutes of the budget were left when it was first asked; with
    one per piece of work that failed; and with one per number that holds for the whole run."""

    file: Path

    def known(self, asked: str) -> float | None:
        """What was left when this was first asked; None where it was not yet."""
        return self._known().get(asked)

    def first(self, asked: str, minutes_left: float) -> float:
        """What was left when this was asked for the first time: `minutes_left`, where it was not yet."""
        known = self._known()
        if asked in known:
            return known[asked]
        self._add({"asked": asked, "minutes_left": minutes_left})
        return minutes_left

    def stopped(self, work: str) -> str | None:
        """In words, what this work failed of; None where it did not."""
        return next((line["words"] for line in self._lines() if line.get("stopped") == work), None)

    def stop(self, work: str, words: str) -> None:
        """Keep what this work failed of."""
        self._add({"stopped": work, "words": words})

    def settled(self, what: str, number: int) -> int:
        """What this number was when it was first settled: as given, where it was not yet."""
        for line in self._lines():
            if line.get("settled") == what:
                return int(line["number"])
        self._add({"settled": what, "number": number})
        return number

    def least(self) -> float | None:
        """The least that was ever left: where the clock goes on; None where nothing was asked."""
        return min(self._known().values(), default=None)

    def forget(self) -> None:
        self.file.unlink(missing_ok=True)

    def _known(self) -> dict[str, float]:
        """By question. Of two answers the first holds."""
        found: dict[str, float] = {}
        for line in self._lines():
            if "asked" in line:
                found.setdefault(line["asked"], line["minutes_left"])
        return found

    def _add(self, line: Mapping[str, Any]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as file:
            file.write(f"\n{json.dumps(line)}\n")  # what a kill cut short before it stays a line of its own

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Every whole line; one that a kill cut short is none, and no JSON."""
        for line in self.file.read_text().splitlines() if self.file.exists() else ():
            with suppress(ValueError):
                yield json.loads(line)
