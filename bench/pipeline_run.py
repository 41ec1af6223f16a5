"""Run `pareflow optimize` as a user does, and read its document."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from pareflow.errors import PareflowError

DATA_DIR = Path(__file__).parents[1] / ".pareflow"


def chosen(config: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The document of a run, timed anew, and its winner. Raises: PareflowError if none met the SLA."""
    command = ["optimize", str(config), "--data-dir", str(DATA_DIR), "--json", "--remeasure"]
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *command], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        raise PareflowError(
            "the run must meet its SLA", f"it exited with {done.returncode}", "See its report"
        )
    document: dict[str, Any] = json.loads(done.stdout)
    return document, next(row for row in document["variants"] if row["id"] == document["winner"])
