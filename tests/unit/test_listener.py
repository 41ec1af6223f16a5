"""The endpoint of the webhooks: what it takes, what it refuses, and what it does once."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pareflow.errors import InputError, PareflowError, TransientError
from tasks.deliveries import DELIVERY, SIGNATURE, TIMESTAMP, Memory, sign
from tasks.listener import MAX_BODY, PATH, Listener
from tasks.triggering import Handled

EVENT = {"entity": "model_version", "action": "created", "data": {"name": "digits", "version": "3"}}


@dataclass
class Registry:
    """Notes which versions it was asked about; `raises` is what it answers instead."""

    asked: list[tuple[str, str]] = field(default_factory=list)
    raises: PareflowError | None = None

    def handle(self, name: str, version: str) -> Handled:
        self.asked.append((name, version))
        if self.raises is not None:
            raise self.raises
        return Handled(name, version, "a rule", "run", True)


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def send(registry: Registry, tmp_path: Path) -> Callable[..., Any]:
    """Send a signed delivery to a listener that was started just now, on the same memory."""

    def sent(
        document: Any = EVENT, name: str = "a", secret: str = "secret", age_s: float = 0, **changes: str
    ) -> Any:
        listener = Listener(["secret"], Memory(tmp_path / "d.db"), registry.handle)
        body, stamp = json.dumps(document).encode(), str(int(time.time() - age_s))
        headers = {SIGNATURE: sign(secret, name, stamp, body), TIMESTAMP: stamp, DELIVERY: name} | changes
        return TestClient(listener.asgi()).post(PATH, content=body, headers=headers)

    return sent


def test_a_delivery_is_handled(send: Callable[..., Any], registry: Registry) -> None:
    answer = send()
    assert answer.status_code == 200
    assert (answer.json()["run_id"], answer.json()["new"]) == ("run", True)
    assert registry.asked == [("digits", "3")]


def test_the_same_delivery_again_is_answered_from_memory(
    send: Callable[..., Any], registry: Registry
) -> None:
    send()
    answer = send()
    assert answer.status_code == 200
    assert (answer.json()["run_id"], answer.json()["new"]) == ("run", False)
    assert len(registry.asked) == 1


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"secret": "guess"}, 401),
        ({"age_s": 3600}, 401),
        ({"age_s": -3600}, 401),
        ({DELIVERY: "other"}, 401),
        ({"document": ["no", "object"]}, 400),
        ({"document": {"data": {"name": "x" * MAX_BODY}}}, 413),
    ],
)
def test_what_is_refused_is_not_handled(
    send: Callable[..., Any], registry: Registry, changes: dict[str, Any], status: int
) -> None:
    answer = send(**changes)
    assert answer.status_code == status
    assert answer.json()["error"]
    assert registry.asked == []


def test_an_id_with_another_body_is_a_conflict(send: Callable[..., Any], registry: Registry) -> None:
    send()
    assert send({**EVENT, "data": {"name": "other", "version": "1"}}).status_code == 409
    assert len(registry.asked) == 1


@pytest.mark.parametrize(("kind", "status"), [(TransientError, 503), (InputError, 500)])
def test_what_could_not_be_handled_is_taken_when_it_comes_again(
    send: Callable[..., Any], registry: Registry, kind: type[PareflowError], status: int
) -> None:
    """MLflow sends again what is answered by 500 or 503, with the same id."""
    registry.raises = kind("it must work", "it does not", "Mend it")
    assert send().status_code == status
    registry.raises = None
    assert send().json()["new"]


@pytest.mark.parametrize("data", [{}, {"name": "digits"}, {"name": "digits", "alias": "a"}])
def test_an_event_of_no_version_starts_nothing(
    send: Callable[..., Any], registry: Registry, data: dict[str, str]
) -> None:
    answer = send({"entity": "registered_model", "data": data})
    assert (answer.status_code, answer.json()["run_id"]) == (200, None)
    assert registry.asked == []


def test_a_body_without_a_length_is_cut_off(registry: Registry, tmp_path: Path) -> None:
    listener = Listener(["secret"], Memory(tmp_path / "d.db"), registry.handle)
    answer = TestClient(listener.asgi()).post(PATH, content=(b"x" * 1024 for _ in range(MAX_BODY)))
    assert answer.status_code == 413


def test_health_needs_no_signature(registry: Registry, tmp_path: Path) -> None:
    client = TestClient(Listener(["secret"], Memory(tmp_path / "d.db"), registry.handle).asgi())
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get(PATH).status_code == 405
