"""`bench/monitoring.py`: failed requests are told, and labels lose as much as is said."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def monitoring(bench: Callable[[str], Any]) -> Any:
    return bench("monitoring")


def test_requests_that_failed_during_a_rollback_are_told(
    monitoring: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    breached = monitoring.Breached(30.0, 31.0, "breach", requests=700, failed=["TimeoutError: late"])
    monkeypatch.setattr(monitoring, "_breach", lambda: breached)
    *_, failed = monitoring.rollbacks(True)
    assert (failed.measured, failed.samples, failed.met) == (1, 700, False)
    assert failed.note == "TimeoutError: late"


@pytest.mark.parametrize("error", [ConnectionResetError("gone"), ValueError("no JSON")])
def test_an_answer_that_cannot_be_read_is_a_failed_request(
    error: Exception, monitoring: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic = monitoring.Traffic([SimpleNamespace()])

    def asked(_: Any) -> bytes:
        traffic._stop.set()
        raise error

    monkeypatch.setattr(monitoring, "ask", asked)
    traffic.run()
    assert traffic.failed == [f"{type(error).__name__}: {error}"]


def test_labels_lose_less_than_the_rules_allow(checkout: Path, monitoring: Any) -> None:
    week = importlib.import_module("monitoring_week")
    joined = week._labelled(np.random.default_rng(0), 200_000)
    lost, won = (joined.original & ~joined.served).mean(), (joined.served & ~joined.original).mean()
    assert (lost, won) == (pytest.approx(week.LOST, rel=0.1), pytest.approx(week.WON, rel=0.1))
    assert lost - won < week.rules.read(week.CONFIG).quality.max_drop
