"""Run `pareflow optimize` as a user does, and read its document."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pareflow.errors import PareflowError
from pareflow.stages.run import Row
from pareflow.variant import Recipe

DATA_DIR = Path(__file__).parents[1] / ".pareflow"
NOTHING_MET = 3
"""How `optimize` exits where nothing met the SLA, or what did was not registered or not kept by a server."""


def ended(config: Path, *, remeasure: bool) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The document of a run, timed anew where told to, and its winner; None where it did not meet the SLA.

    Raises: PareflowError where the run ended in another way.
    """
    command = ["optimize", str(config), "--data-dir", str(DATA_DIR), "--json"]
    if remeasure:
        command.append("--remeasure")
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *command], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode not in (0, NOTHING_MET):
        raise PareflowError("the run must end well", f"it exited with {done.returncode}", "See its output")
    document: dict[str, Any] = json.loads(done.stdout)
    return document, next((row for row in document["variants"] if row["id"] == document["winner"]), None)


def chosen(config: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The document of a run, timed anew, and its winner. Raises: PareflowError if none met the SLA."""
    document, winner = ended(config, remeasure=True)
    if winner is None:
        raise PareflowError("the run must meet its SLA", f"it exited with {NOTHING_MET}", "See its report")
    return document, winner


def as_row(variant: Mapping[str, Any]) -> Row:
    """A variant of the run's document, as stages take it."""
    recipe = Recipe.from_json(variant["steps"])
    return Row(recipe, variant["role"], id=variant["id"], size_mib=variant["size_mib"])
