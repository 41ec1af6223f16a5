"""A run killed at random points: the same winner as a run that was not, and how much was done twice.

`kill -9` hits the command, again and again, at moments drawn by a seed; the same command goes on each time.
The run is of digits, within ten minutes. Times are measured anew in each folder, so that two runs
may choose variants that are as good as each other; what the killed one chose is asked for again, too.
Work is seconds of steps: those of a run that is left alone, and those that a kill took from steps in flight,
since the step began or since its last checkpoint, from which it goes on.
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from claims import Claim, main

CONFIG = Path(__file__).parents[1] / "configs" / "digits" / "pipeline.yaml"
MINUTES = 10
KILLS = 20
STARTUP_S = 12.0
"""A kill comes at the earliest so long after the command was started: before, it only reads."""
LOOK_S = 0.1
WORK = 1.1
"""Times the work of a run that is not killed."""


class Steps:
    """What a store makes from now on, looked at ten times a second: a step quicker than that is not seen.

    What is there already was left by a process that was killed: nobody works on it.
    """

    def __init__(self, data_dir: Path) -> None:
        self._store = data_dir / "store"
        self._left = self._there()
        self._begun = dict[str, float]()
        self.finished_s = 0.0
        """Seconds of the steps that have ended, side by side or not."""

    def look(self) -> None:
        now, there = time.time(), self._there() - self._left
        self.finished_s += sum(now - begun for name, begun in self._begun.items() if name not in there)
        self._begun = {name: self._begun.get(name, now) for name in there}

    def _there(self) -> set[str]:
        making = self._store / "making"
        return {path.name for path in making.glob("*.*")} if making.exists() else set()

    def in_flight_s(self) -> float:
        """Seconds that a kill takes now: of each step those since it began, or since its last checkpoint."""
        now = time.time()
        return sum(now - max(begun, self._checkpoint(name)) for name, begun in self._begun.items())

    def _checkpoint(self, name: str) -> float:
        kept = self._store / "unfinished" / name.partition(".")[0]
        return max((path.stat().st_mtime for path in kept.glob("*") if ".making" not in path.name), default=0)


def measure(quick: bool) -> Sequence[Claim]:
    """The whole run first; then one that is killed until so many kills hit, or it is over; `quick`: two."""
    kills = 2 if quick else KILLS
    minutes = 2.5 if quick else MINUTES
    with tempfile.TemporaryDirectory() as scratch:
        pipeline = _pipeline(Path(scratch), minutes)
        whole, broken = (Command(pipeline, Path(scratch) / name) for name in ("whole", "broken"))
        began = time.monotonic()
        expected, work = _finished(whole)
        seconds = time.monotonic() - began
        chance, losses = random.Random(0), list[float]()
        while len(losses) < kills:
            lost_s = _killed(broken, STARTUP_S + chance.uniform(0, 2 * seconds / kills))
            if lost_s is None:
                break
            losses.append(lost_s)
            print(f"kill {len(losses)}: {lost_s:.1f} s", file=sys.stderr, flush=True)
        found, _ = _finished(broken)
        again, _ = _finished(broken)
    hit, lost = len(losses), sum(losses)
    told = f"{hit} of {kills} kills hit"
    mean = lost / hit if hit else 0.0
    return [
        _same("the winner of a run of its own that was not killed", found, expected, hit, told),
        _same("asked again, the same winner", again, found, hit, told),
        _work("work", lost, work, f"{lost:.0f} s of steps in flight lost; {told}", hit),
        _work("work of a run that is killed once", mean, work, f"the mean of these; {told}", hit),
    ]


def _same(what: str, one: dict[str, Any], other: dict[str, Any], hit: int, note: str) -> Claim:
    """Whether two documents have one winner, by its id; not measured where no kill hit."""
    name, equal = f"killed and resumed: {what}", float(one["winner"] == other["winner"])
    note = f"{_recipe(one)}, and {_recipe(other)}; {note}"
    return Claim(name, 1, equal if hit else None, "of 1", hit, "at least", note=note)


def _work(what: str, lost: float, work: float, note: str, hit: int) -> Claim:
    """How much was done, of the work of a run whose steps take so many seconds, where so many were lost."""
    told = f"{note}; those of a run take {work:.0f} s"
    done = 1 + lost / work if hit else None
    return Claim(f"killed and resumed: {what}", WORK, done, "× the work", hit, "at most", note=told)


def _pipeline(folder: Path, minutes: float) -> Path:
    """The digits' pipeline with another budget."""
    described = yaml.safe_load(CONFIG.read_text())
    described |= {"workload": str(CONFIG.with_name("workload.py")), "budget": {"minutes": minutes}}
    path = folder / CONFIG.name
    path.write_text(yaml.safe_dump(described))
    return path


@dataclass(frozen=True)
class Command:
    """The same command on one data folder."""

    pipeline: Path
    data_dir: Path

    @property
    def words(self) -> list[str]:
        options = ["--data-dir", str(self.data_dir), "--no-orchestrator", "--json"]
        return [sys.executable, "-m", "flows.cli", "optimize", str(self.pipeline), *options]


def _finished(command: Command) -> tuple[dict[str, Any], float]:
    """The document of a run that is left alone, and the seconds of its steps."""
    steps = Steps(command.data_dir)
    with tempfile.TemporaryFile("w+") as answer:
        process = subprocess.Popen(command.words, stdout=answer, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            steps.look()
            time.sleep(LOOK_S)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
        answer.seek(0)
        return json.load(answer), steps.finished_s


def _killed(command: Command, after_s: float) -> float | None:
    """Seconds of steps to be done again where the command is killed so late; None where it ended before."""
    steps, deadline = Steps(command.data_dir), time.monotonic() + after_s
    process = subprocess.Popen(command.words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and time.monotonic() < deadline:
        steps.look()
        time.sleep(LOOK_S)
    process.kill()
    return steps.in_flight_s() if process.wait() == -signal.SIGKILL else None


def _recipe(document: dict[str, Any]) -> str:
    return next((row["recipe"] for row in document["variants"] if row["id"] == document["winner"]), "none")


if __name__ == "__main__":
    main("resume", measure)
