"""Deliveries of MLflow's webhooks: whose they are, when they were sent, and which of them came before.

Source: MLflow 3.17, `mlflow/webhooks/delivery.py`: `v1,` and the base64 of HMAC-SHA256 over
`{delivery id}.{timestamp}.{body}`. MLflow's own retries repeat all three.
"""

import base64
import hashlib
import hmac
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pareflow.errors import InputError

SIGNATURE, TIMESTAMP, DELIVERY = "x-mlflow-signature", "x-mlflow-timestamp", "x-mlflow-delivery-id"
WINDOW_S = 300
"""How old a delivery may be, or how far ahead its sender's clock. MLflow gives up retrying sooner."""
KEPT_S = 7 * 24 * 3600
"""How long a delivery is remembered: longer than any window in which it could be sent again."""


class ForgedError(InputError):
    """It is not signed with the secret, or not now."""


class RepeatedError(InputError):
    """A delivery of this id came before, with other content."""


@dataclass(frozen=True)
class Delivery:
    """A delivery that was signed with the secret, within the window."""

    id: str
    content: str
    document: Mapping[str, Any]

    @property
    def version(self) -> tuple[str, str] | None:
        """The name and the number of the version that it is about; None where it is about none.

        It is a hint where to look, and no more: deliveries overtake each other.
        """
        data = self.document["data"]
        name, number = data.get("name"), data.get("version")
        return (str(name), str(number)) if name and number else None


def sign(secret: str, delivery: str, timestamp: str, body: bytes) -> str:
    """The signature that MLflow would give."""
    signed = hmac.new(secret.encode(), f"{delivery}.{timestamp}.".encode() + body, hashlib.sha256)
    return "v1," + base64.b64encode(signed.digest()).decode()


def received(secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now: float) -> Delivery:
    """The delivery in a request, if it was signed with one of the secrets, less than `WINDOW_S` ago.

    Names of `headers` are in small letters. Raises: ForgedError; InputError if it is signed, and unreadable.
    """
    signature, timestamp, delivery = (headers.get(name, "") for name in (SIGNATURE, TIMESTAMP, DELIVERY))
    expected = [sign(secret, delivery, timestamp, body) for secret in secrets]
    matches = [hmac.compare_digest(signature.encode(), one.encode()) for one in expected]
    if not (delivery and timestamp and any(matches)):
        raise _forged("its signature is not that of the secret")
    if not timestamp.isascii() or not timestamp.isdigit() or abs(now - int(timestamp)) > WINDOW_S:
        raise _forged(f"it was sent at {timestamp}, and it is {now:.0f} now")
    return Delivery(delivery, hashlib.sha256(body).hexdigest(), _document(body))


def _forged(found: str) -> ForgedError:
    return ForgedError(
        f"a delivery must be signed with the webhook's secret, at most {WINDOW_S} s ago",
        found,
        "Give MLflow and `pareflow listen` the same secret, and set both clocks",
    )


def _document(body: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict) and isinstance(document.get("data"), dict):
        return document
    raise InputError(
        "a delivery must be a JSON object with `data`", "this one is not", "Send what MLflow's webhooks send"
    )


class Memory:
    """The deliveries that were handled, in a SQLite file: they are known after a restart, too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._database() as database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS deliveries"
                " (id TEXT PRIMARY KEY, content TEXT NOT NULL, outcome TEXT NOT NULL, at REAL NOT NULL)"
            )

    def outcome(self, delivery: Delivery) -> dict[str, Any] | None:
        """What came of it, where it was handled before. Raises: RepeatedError."""
        with self._database() as database:
            query = "SELECT content, outcome FROM deliveries WHERE id = ?"
            row = database.execute(query, (delivery.id,)).fetchone()
        if row is None:
            return None
        if row[0] != delivery.content:
            raise RepeatedError(
                "a delivery's id must be its own",
                f"{delivery.id} came before, with another body",
                "Send a new id",
            )
        outcome: dict[str, Any] = json.loads(row[1])
        return outcome

    def remember(self, delivery: Delivery, outcome: Mapping[str, Any], now: float) -> None:
        """Note that it was handled, and forget those that are too old to come again."""
        with self._database() as database:
            values = (delivery.id, delivery.content, json.dumps(outcome), now)
            database.execute("INSERT OR IGNORE INTO deliveries VALUES (?, ?, ?, ?)", values)
            database.execute("DELETE FROM deliveries WHERE at < ?", (now - KEPT_S,))

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own, committed at the end: threads and processes may share the file."""
        with closing(sqlite3.connect(self._path, timeout=10)) as database, database:
            yield database
