"""What `pareflow doctor` says of the servers that the environment names, and of the registry's tags."""

import base64
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import Mock

import pytest
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)
from rich.console import Console

from flows import rollout, servers
from flows.rollout import Steps
from flows.servers import Server, check, named
from pareflow.catalog import installed_version
from pareflow.errors import EnvironmentUnfitError, InputError, TransientError
from tasks import flow_runs
from tasks.cluster import _must_be_reached
from tasks.serving import RegistrySource
from tasks.tracking import FORMAT, FORMAT_TAG, Tracker

HERE = installed_version("mlflow") or ""


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """Start a server that says this version at this distance from our clock; its URL."""
    started = list[ThreadingHTTPServer]()

    def begun(version: str, apart_s: float = 0, code: int = 200) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response_only(code)
                self.send_header("Date", formatdate(time.time() + apart_s, usegmt=True))
                self.end_headers()
                self.wfile.write(version.encode())

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield begun
    for server in started:
        server.shutdown()
        server.server_close()


def at(url: str) -> Server:
    return Server("MLflow", url, "/version", HERE, "MLFLOW_TRACKING_PASSWORD", {})


def test_a_server_of_our_version_and_clock_is_no_problem(answering: Callable[..., str]) -> None:
    found = check(at(answering(HERE)))
    assert found["problems"] == []
    assert found["version"] == HERE
    assert abs(found["clock_s"]) < servers.CLOCKS_APART_S


@pytest.mark.parametrize(
    ("said", "apart_s", "code", "problem"),
    [
        ("2.1.0", 0, 200, f"must be of one version, but the server is 2.1.0 and this is {HERE}"),
        (HERE, 3600, 200, "MLflow's is 3600 s ahead. Let NTP set both"),
        (HERE, -3600, 200, "MLflow's is 3600 s behind"),
        ("", 0, 401, "must let this user in, but it says 401. Set MLFLOW_TRACKING_PASSWORD"),
        ("", 0, 404, "must say its version, but it says 404. Is that address a MLflow server's?"),
    ],
)
def test_each_trouble_is_told_with_what_to_do(
    answering: Callable[..., str], said: str, apart_s: float, code: int, problem: str
) -> None:
    (found,) = check(at(answering(said, apart_s, code)))["problems"]
    assert problem in found


def test_a_server_that_is_away_is_told() -> None:
    (found,) = check(at("http://127.0.0.1:9"))["problems"]
    assert found.startswith("MLflow at http://127.0.0.1:9 must be reachable, but it is not")


def test_an_address_is_shown_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:geheim@mlflow.example/base/")
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    mlflow = next(server for server in named() if server.name == "MLflow")
    assert mlflow.url == "https://mlflow.example/base"
    assert mlflow.headers["Authorization"] == "Basic YW5uOmdlaGVpbQ=="  # base64 of ann:geheim
    assert "geheim" not in repr(mlflow)


def test_an_embedded_mlflow_is_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert [server.name for server in named() if server.name == "MLflow"] == []


def test_tags_of_a_newer_pareflow_are_told_and_refused_and_older_ones_are_not(
    new_tracker: Callable[[Path], Tracker], tmp_path: Path
) -> None:
    assert servers.tag_problems(tmp_path) == []  # there is no registry
    client = new_tracker(tmp_path).client
    client.create_registered_model("m")
    client.create_model_version("m", "somewhere", tags={})  # from before the tag
    client.create_model_version("m", "somewhere", tags={FORMAT_TAG: str(FORMAT)})
    assert servers.tag_problems(tmp_path) == []
    client.create_model_version("m", "somewhere", tags={FORMAT_TAG: str(FORMAT + 1)})
    tracker = Tracker.open(tmp_path)
    assert str(tracker.resolve("models:/m/2").version) == "2"
    told = f"must be of format {FORMAT} or older, but they are of format {FORMAT + 1}"
    with pytest.raises(InputError, match=told):
        tracker.resolve("models:/m/3")
    client.set_registered_model_alias("m", "champion", "3")
    with pytest.raises(InputError, match=told):
        RegistrySource("models:/m@champion", tmp_path).current()
    (problem,) = servers.tag_problems(tmp_path)
    assert "1 versions have newer ones (m/3). Install the pareflow that wrote them" in problem


def test_prefects_server_is_asked_with_the_user_and_password_of_its_setting() -> None:
    wanted = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_API_AUTH_STRING: "ada:secret"}
    with temporary_settings(wanted):
        (found,) = [server for server in servers.named() if server.name == "Prefect"]
    assert found.headers == {"Authorization": f"Basic {base64.b64encode(b'ada:secret').decode()}"}


def test_no_error_tells_the_password_in_prefects_address() -> None:
    address = "http://ada:geheim@127.0.0.1:9/api"
    with temporary_settings({PREFECT_API_URL: address}), pytest.raises(TransientError) as away:
        flow_runs.in_state("RUNNING")
    with pytest.raises(EnvironmentUnfitError) as unreached:
        _must_be_reached(address, "10.0.0.1", ["10.0.0.2"])
    for told in (str(away.value), str(unreached.value)):
        assert "127.0.0.1:9/api" in told
        assert "geheim" not in told


def test_a_flow_that_prefects_server_is_away_for_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As what may pass: a rollout's, as those of `optimize` and `retrain`."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(rollout, "signal", Mock())  # the process of the tests keeps its own way to end
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}),
        pytest.raises(TransientError, match="the Prefect server must stay reachable"),
    ):
        rollout.deploy("m", [], tmp_path, Console(quiet=True), Steps(), config=None, orchestrated=True)


def test_a_lock_database_that_is_away_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert (servers.set_up_problems(tmp_path), servers.promotions_meet_in()) == ([], "data folder")
    monkeypatch.setenv("PAREFLOW_LOCK_DATABASE", "postgresql://ada:geheim@127.0.0.1:9/locks")
    (problem,) = servers.set_up_problems(tmp_path)
    assert "the database that PAREFLOW_LOCK_DATABASE names must be reachable" in problem
    assert "geheim" not in problem
    assert servers.promotions_meet_in() == "database"
