"""What the Prefect server was told of a finished run."""

import json
import sqlite3
from contextlib import closing

from tests.orchestration.conftest import Finished


def test_the_server_has_recorded_that_a_version_was_registered(finished: Finished) -> None:
    """Read from the database of the server, which has ended with its last user or soon will."""
    registered = finished.document["registered"]
    with closing(sqlite3.connect(finished.data_dir / "prefect" / "prefect.db")) as database:
        query = "SELECT resource, payload FROM events WHERE event = 'pareflow.model.registered'"
        ((resource, payload),) = database.execute(query).fetchall()
    assert json.loads(resource)["pareflow.model.role"] == "optimized"
    told = json.loads(payload)
    assert (told["name"], told["version"]) == (registered["name"], registered["version"])
    assert told["config"] == str(finished.config)
