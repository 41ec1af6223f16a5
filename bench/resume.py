"""A run killed at random points: the same winner as a run that was not, and how much was done twice.

`kill -9` hits the command, again and again, at moments drawn by a seed; the same command goes on each time.
Work is seconds of steps: those of the store's entries, and those that a kill took from steps in flight.
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
from pathlib import Path
from typing import Any

from claims import Claim, main

CONFIG = Path(__file__).parents[1] / "configs" / "digits" / "pipeline.yaml"
KILLS = 20
STARTUP_S = 12.0
"""A kill comes at the earliest so long after the command was started: before, it only reads."""
WORK = 1.1
"""Times the work of a run that is not killed."""


def measure(quick: bool) -> Sequence[Claim]:
    """The whole run first; then one that is killed; `quick` kills it twice."""
    kills = 2 if quick else KILLS
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as broken:
        began = time.monotonic()
        expected, _ = _finished(Path(whole))
        seconds = time.monotonic() - began
        chance, lost = random.Random(0), 0.0
        for _ in range(kills):
            lost += _killed(Path(broken), STARTUP_S + chance.uniform(0, 2 * seconds / kills))
        found, _ = _finished(Path(broken))
        again, _ = _finished(Path(broken))
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
        _work("work", lost, seconds, f"{lost:.0f} s of steps in flight lost by {kills} kills", kills),
        _work("work of a run that is killed once", lost / kills, seconds, "the mean of these kills", kills),
    ]


def _work(what: str, lost: float, seconds: float, note: str, kills: int) -> Claim:
    """How much was done, of the work of a run that took so many seconds, where so many were lost."""
    told = f"{note}; a run takes {seconds:.0f} s"
    done = 1 + lost / seconds
    return Claim(f"killed and resumed: {what}", WORK, done, "× the work", kills, "at most", note=told)


def _command(data_dir: Path) -> list[str]:
    options = ["--data-dir", str(data_dir), "--no-orchestrator", "--json"]
    return [sys.executable, "-m", "flows.cli", "optimize", str(CONFIG), *options]


def _finished(data_dir: Path) -> tuple[dict[str, Any], float]:
    """The document of a run that is left alone, and its seconds."""
    began = time.monotonic()
    done = subprocess.run(_command(data_dir), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout), time.monotonic() - began


def _killed(data_dir: Path, after_s: float) -> float:
    """Seconds that steps in flight had taken when the command was killed; 0 where it had ended before."""
    process = subprocess.Popen(_command(data_dir), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    making, seen = data_dir / "store" / "making", dict[str, float]()
    deadline = time.monotonic() + after_s
    while process.poll() is None and time.monotonic() < deadline:
        there = {path.name for path in making.glob("*")} if making.exists() else set()
        seen = {name: seen.get(name, time.monotonic()) for name in there}
        time.sleep(0.1)
    if process.poll() is not None:
        return 0.0
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return sum(time.monotonic() - begun for begun in seen.values())


def _recipe(document: dict[str, Any]) -> str:
    return next((row["recipe"] for row in document["variants"] if row["id"] == document["winner"]), "none")


if __name__ == "__main__":
    main("resume", measure)
