"""How long a build took: the seconds of killed attempts that left something count too."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pareflow.stages.jobs import links
from pareflow.stages.run import Run
from pareflow.store import replace
from pareflow.variant import Recipe, digest

NOTED_S = 1.0
"""How often it is noted how long an attempt takes: so much of it a kill hides at most."""


@contextmanager
def timed(run: Run, recipe: Recipe, variant: str) -> Iterator[float]:
    """Keep what building the recipe takes here: a run that finds the variant ready plans by it too.

    Gives the seconds of former attempts, from which it goes on.
    """
    note, begun = _note(run, variant), _begun(run, recipe)
    first, before = _former(note, begun)
    began, over = time.monotonic(), threading.Event()

    def write() -> None:
        with suppress(OSError):  # what the build needs room for says so itself
            note.parent.mkdir(parents=True, exist_ok=True)
            replace(note, json.dumps({"begun": first, "seconds": before + time.monotonic() - began}))

    def write_while_it_builds() -> None:
        while not over.wait(NOTED_S):
            write()

    noting = threading.Thread(target=write_while_it_builds, daemon=True)
    noting.start()
    try:
        yield before
    finally:
        over.set()
        noting.join()
        write()
    _keep(run, variant, before + time.monotonic() - began)
    note.unlink(missing_ok=True)


def seconds(run: Run, variant: str) -> float | None:
    """What building took; None where it was not kept."""
    entry = run.store.find(digest("build seconds", variant))
    return None if entry is None else float(json.loads((entry / "seconds.json").read_text()))


def recover(run: Run, variant: str) -> None:
    """Keep what building took as far as it was noted, where the run died between the artifact and the end."""
    note = _note(run, variant)
    if note.exists() and seconds(run, variant) is None:
        _keep(run, variant, json.loads(note.read_text())["seconds"])
        note.unlink(missing_ok=True)


def _note(run: Run, variant: str) -> Path:
    return run.attempts / f"{variant}.json"


def _keep(run: Run, variant: str, seconds: float) -> None:
    def write(into: Path) -> None:
        (into / "seconds.json").write_text(json.dumps(round(seconds, 3)))

    run.store.ensure(digest("build seconds", variant), write)


def _begun(run: Run, recipe: Recipe) -> list[str]:
    """The links of a recipe that are made, or that have left what their maker would go on from."""
    ids = [link.id for link in links(recipe, run.facts.digest)[1:]]
    return [link for link in ids if run.store.holds(link) or run.store.scratch(link).exists()]


def _former(note: Path, begun: list[str]) -> tuple[list[str], float]:
    """The links that had been begun before the first attempt that left something, and the seconds since.

    An attempt that left nothing is made anew, and its seconds are not counted.
    """
    if not note.exists():
        return begun, 0.0
    told = json.loads(note.read_text())
    return (begun, 0.0) if told["begun"] == begun else (told["begun"], told["seconds"])
