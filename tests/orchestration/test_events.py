"""What the Prefect server was told of a finished run."""

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from tests.orchestration.conftest import Finished


def test_the_server_has_recorded_that_a_version_was_registered(finished: Finished) -> None:
    """Read from the database of the server, which has ended with its last user or soon will."""
    registered = finished.document["registered"]
    ((resource, payload),) = _recorded(finished.data_dir / "prefect" / "prefect.db")
    assert json.loads(resource)["pareflow.model.role"] == "optimized"
    told = json.loads(payload)
    assert (told["name"], told["version"]) == (registered["name"], registered["version"])
    assert told["config"] == str(finished.config)


def _recorded(path: Path) -> list[tuple[str, str]]:
    """The event's rows: a server writes down within seconds what it was told."""
    query = "SELECT resource, payload FROM events WHERE event = 'pareflow.model.registered'"
    deadline = time.monotonic() + 30
    with closing(sqlite3.connect(path)) as database:
        while not (rows := database.execute(query).fetchall()) and time.monotonic() < deadline:
            time.sleep(0.2)
    return rows
