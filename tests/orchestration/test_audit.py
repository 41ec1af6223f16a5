"""The audit record: nothing moves without one, and none is lost, whoever writes at the same time."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from pareflow.errors import TrackingError
from tasks import audit
from tasks.promotion import number, roll_back, settle
from tasks.registries import without_secrets
from tasks.tracking import Tracker
from tests.orchestration.contenders import HERE, MODEL, bout, enter


@pytest.fixture
def data_dir(blank_mlflow: Path, tmp_path: Path) -> Path:
    return shutil.copytree(blank_mlflow, tmp_path / "data")


@pytest.fixture
def tracker(data_dir: Path) -> Tracker:
    return Tracker.open(data_dir)


def promoted(tracker: Tracker, score: float, **said: Any) -> str:
    version = enter(tracker, score)
    with tracker.moving(MODEL) as still_held:
        settle(tracker, bout(tracker, version, **said), still_held)
    return version


def test_a_promotion_and_a_rollback_say_who_what_from_where_to_where_and_why(tracker: Tracker) -> None:
    old, new = promoted(tracker, 1), promoted(tracker, 2, by="Ada", why="it is summer")
    roll_back(tracker, MODEL, by="Bob", reason="customers call")
    first, second, third = audit.history(tracker, MODEL)
    assert (first["action"], first["before"], first["after"]) == ("promoted", None, old)
    assert first["by"] == audit.who()
    assert {key: value for key, value in second.items() if key != "at"} == {
        "action": "promoted",
        "version": new,
        "before": old,
        "after": new,
        "by": "Ada",
        "reason": f"it is summer (it beat version {old})",
        "verdict": "promote",
        "environment": HERE,
        "state": "done",
        "flow_run": None,
    }
    assert (third["action"], third["before"], third["after"]) == ("rolled_back", new, old)
    assert (third["by"], third["reason"]) == ("Bob", "customers call")
    assert first["at"] < second["at"] < third["at"]


def test_a_rejection_is_on_record_though_nothing_moved(tracker: Tracker) -> None:
    champion, worse = promoted(tracker, 2), promoted(tracker, 1)
    last = audit.history(tracker, MODEL)[-1]
    assert (last["action"], last["version"], last["verdict"]) == ("rejected", worse, "reject")
    assert last["before"] == last["after"] == number(tracker, MODEL, "champion") == champion


def test_writers_at_the_same_time_lose_no_record(tracker: Tracker) -> None:
    """All make the experiment, too: it is not there yet."""

    def write(writer: int) -> None:
        for turn in range(3):
            audit.note(tracker, audit.Move(MODEL, "declined", "1", f"writer {writer}", f"turn {turn}"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    rows = audit.history(tracker, MODEL)
    expected = {(f"writer {writer}", f"turn {turn}") for writer in range(8) for turn in range(3)}
    assert len(rows) == 24
    assert {(row["by"], row["reason"]) for row in rows} == expected


def test_a_move_that_was_killed_is_unfinished_and_one_that_raised_has_failed(tracker: Tracker) -> None:
    move = audit.Move(MODEL, "promoted", "1", "Ada", "yes")
    killed = audit.recorded(tracker, move)
    killed.__enter__()  # and never left
    with pytest.raises(RuntimeError), audit.recorded(tracker, move):
        raise RuntimeError
    assert [row["state"] for row in audit.history(tracker, MODEL)] == ["unfinished", "failed"]


def test_nothing_moves_where_no_record_can_be_written(tracker: Tracker) -> None:
    """The experiment of the records was deleted: MLflow takes none."""
    champion, better = promoted(tracker, 1), enter(tracker, 2)
    tracker.client.delete_experiment(tracker.experiment(audit.EXPERIMENT))
    with pytest.raises(TrackingError), tracker.moving(MODEL) as still_held:
        settle(tracker, bout(tracker, better), still_held)
    assert number(tracker, MODEL, "champion") == champion


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://ada:secret@mlflow.example:443/path", "https://mlflow.example:443/path"),
        ("postgresql+psycopg://u:p%40ss@db/mlflow", "postgresql+psycopg://db/mlflow"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_addresses_are_written_down_without_user_and_password(uri: str, shown: str) -> None:
    assert without_secrets(uri) == shown


def test_list_audit_shows_the_moves_of_a_model(tracker: Tracker, data_dir: Path) -> None:
    version = promoted(tracker, 1)
    invoke: Callable[..., Any] = CliRunner().invoke
    shown = invoke(app, ["list", "audit", MODEL, "--data-dir", str(data_dir)])
    assert shown.exit_code == 0, shown.output
    assert "promoted" in shown.output
    assert "there was no champion" in shown.output
    assert version in shown.output
    named = invoke(app, ["list", "audit", f"models:/{MODEL}@champion", "--data-dir", str(data_dir)])
    assert named.output == shown.output
    assert invoke(app, ["list", "audit", "another", "--data-dir", str(data_dir)]).output.strip() == "none"
    assert "must name a model" in str(invoke(app, ["list", "audit", "--data-dir", str(data_dir)]).exception)
