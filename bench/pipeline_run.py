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


def chosen(config: Path, *, remeasure: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """The document of a run, timed anew unless told not to, and its winner.

    Raises: PareflowError if none met the SLA.
    """
    command = ["optimize", str(config), "--data-dir", str(DATA_DIR), "--json"]
    if remeasure:
        command.append("--remeasure")
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *command], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        raise PareflowError(
            "the run must meet its SLA", f"it exited with {done.returncode}", "See its report"
        )
    document: dict[str, Any] = json.loads(done.stdout)
    return document, next(row for row in document["variants"] if row["id"] == document["winner"])


def as_row(variant: Mapping[str, Any]) -> Row:
    """A variant of the run's document, as stages take it."""
    recipe = Recipe.from_json(variant["steps"])
    return Row(recipe, variant["role"], id=variant["id"], size_mib=variant["size_mib"])
