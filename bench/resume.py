"""A run killed at random points: the same winner as a run that was not, and how much was done twice.

`kill -9` hits the command, again and again, at moments drawn by a seed; the same command goes on each time.
The run is of digits, within ten minutes.
Work is seconds of steps: those of a run that is left alone, and those that a kill took from steps in flight,
since the step began or since its last checkpoint, from which it goes on.
"""

import json
import os
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
    """What a store makes, looked at ten times a second: it is not told of a step quicker than that."""

    def __init__(self, data_dir: Path) -> None:
        self._store = data_dir / "store"
        self._begun = dict[str, float]()
        self.finished_s = 0.0
        """Seconds of the steps that have ended, side by side or not."""

    def look(self) -> None:
        now, making = time.time(), self._store / "making"
        there = {path.name for path in making.glob("*.*")} if making.exists() else set()
        self.finished_s += sum(now - begun for name, begun in self._begun.items() if name not in there)
        self._begun = {name: self._begun.get(name, now) for name in there}

    def in_flight_s(self) -> float:
        """Seconds that a kill takes now: of each step those since it began, or since its last checkpoint."""
        now = time.time()
        return sum(now - max(begun, self._checkpoint(name)) for name, begun in self._begun.items())

    def _checkpoint(self, name: str) -> float:
        kept = self._store / "unfinished" / name.partition(".")[0]
        return max((path.stat().st_mtime for path in kept.glob("*") if ".making" not in path.name), default=0)


def measure(quick: bool) -> Sequence[Claim]:
    """The whole run first; then one that is killed; `quick` kills it twice."""
    kills = 2 if quick else KILLS
    minutes = 2.5 if quick else MINUTES
    with tempfile.TemporaryDirectory() as scratch:
        pipeline = _pipeline(Path(scratch), minutes)
        whole, broken = (Command(pipeline, Path(scratch) / name) for name in ("whole", "broken"))
        began = time.monotonic()
        expected, work = _finished(whole)
        seconds = time.monotonic() - began
        chance, lost = random.Random(0), 0.0
        for _ in range(kills):
            lost += _killed(broken, STARTUP_S + chance.uniform(0, 2 * seconds / kills))
        found, _ = _finished(broken)
        again, _ = _finished(broken)
    same = float(found["winner"] == again["winner"])
    note = f"{_recipe(found)}; a run of its own chose {_recipe(expected)}"
    return [
        Claim(
            "killed and resumed: the winner of the same run in one go",
            1,
            same,
            "of 1",
            kills,
            "at least",
            note=note,
        ),
        _work("work", lost, work, f"{lost:.0f} s of steps in flight lost by {kills} kills", kills),
        _work("work of a run that is killed once", lost / kills, work, "the mean of these kills", kills),
    ]


def _work(what: str, lost: float, work: float, note: str, kills: int) -> Claim:
    """How much was done, of the work of a run whose steps take so many seconds, where so many were lost."""
    told = f"{note}; those of a run take {work:.0f} s"
    done = 1 + lost / work
    return Claim(f"killed and resumed: {what}", WORK, done, "× the work", kills, "at most", note=told)


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


def _killed(command: Command, after_s: float) -> float:
    """Seconds of steps to be done again where the command is killed so late; 0 where it had ended before."""
    process = subprocess.Popen(command.words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    steps, deadline = Steps(command.data_dir), time.monotonic() + after_s
    while process.poll() is None and time.monotonic() < deadline:
        steps.look()
        time.sleep(LOOK_S)
    if process.poll() is not None:
        return 0.0
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return steps.in_flight_s()


def _recipe(document: dict[str, Any]) -> str:
    return next((row["recipe"] for row in document["variants"] if row["id"] == document["winner"]), "none")


if __name__ == "__main__":
    main("resume", measure)
