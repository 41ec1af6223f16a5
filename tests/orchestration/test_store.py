"""One store: two runs on it at once, a collection beside them, and what works after one."""

import json
import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from flows.cli.options import NOTHING_MET
from flows.progress import Silent, shown
from pareflow.collection import Collected, collect
from pareflow.errors import InputError, TransientError
from pareflow.store import Store
from tasks import registries
from tasks.tracking import Tracker
from tests.orchestration.conftest import CHECKOUT, Finished

BASIC: list[Any] = [{"onnxruntime": {"graph_level": "basic"}}]


def said(*words: object) -> Result:
    return CliRunner().invoke(app, [*map(str, words)])


@dataclass(frozen=True)
class Shared:
    """A data folder that two runs of a pipeline worked on at once, and what was seen beside them."""

    config: Path
    data_dir: Path
    codes: list[int]
    documents: list[dict[str, Any]]
    versions: dict[str, set[Any]]
    collected: list[Collected]

    @property
    def store(self) -> Store:
        return Store(self.data_dir / "store")


@pytest.fixture(scope="module")
def shared(
    command: Callable[..., list[str]],
    pipeline_file: Callable[..., Path],
    entries: Callable[[Path], dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Shared:
    """Two processes of one command; meanwhile all is collected that can be, again and again."""
    budget = {"minutes": 60, "variant_minutes": 10, "quiet_minutes": 30, "store_gib": 0}
    config, folder = pipeline_file("shared", budget=budget), tmp_path_factory.mktemp("shared")
    words = command("optimize", config, "--data-dir", folder / "data", "--no-orchestrator", "--json")
    seen: dict[str, set[Any]] = defaultdict(set)
    collected: list[Collected] = []
    over = threading.Event()

    def beside() -> None:
        while not over.wait(0.05):
            ending = list((folder / "data" / "runs").glob("*/run.json"))  # while the run still holds
            if (folder / "data" / "store" / "running").exists() and not ending:
                collected.append(collect(Store(folder / "data" / "store"), 0))
            try:
                for key, version in entries(folder / "data").items():
                    seen[key].add(version)
            except FileNotFoundError:
                continue  # one was just being moved

    watcher = threading.Thread(target=beside)
    watcher.start()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": CHECKOUT}
    processes = [subprocess.Popen(words, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    outputs = [process.communicate(timeout=900) for process in processes]
    over.set()
    watcher.join()
    codes = [process.returncode for process in processes]
    assert codes == [0, 0], outputs
    documents = [json.loads(out) for out, _ in outputs]
    return Shared(config, folder / "data", codes, documents, seen, collected)


@pytest.mark.slow
def test_two_runs_on_one_store_make_everything_once_and_agree(shared: Shared) -> None:
    first, second = shared.documents
    assert first["winner"] == second["winner"]
    assert first["registered"]["version"] == second["registered"]["version"] == "1"
    variants = {row["id"] for row in first["variants"]}
    assert variants == {row["id"] for row in second["variants"]} <= shared.versions.keys()
    assert len(shared.versions) > 10
    assert {key: seen for key, seen in shared.versions.items() if len(seen) > 1} == {}


@pytest.mark.slow
def test_a_collection_beside_a_run_removes_nothing_that_it_used(shared: Shared) -> None:
    """Nor does that of the run's own limit, which is 0 GiB: the same command finds all again."""
    assert len(shared.collected) > 10
    assert sum(done.removed for done in shared.collected) == 0
    assert shared.versions.keys() == {path.name for path in (shared.store.root / "entries").iterdir()}


@pytest.fixture(scope="module")
def two_versions(shared: Shared, pipeline_file: Callable[..., Path]) -> Path:
    """The pipeline of a second version, which is the challenger."""
    config = pipeline_file("second", candidates=[BASIC])
    done = said("optimize", config, "--data-dir", shared.data_dir, "--no-orchestrator", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["registered"]["alias"] == "challenger"
    return config


@pytest.fixture
def emptied(shared: Shared, two_versions: Path) -> Iterator[Path]:
    """The data folder of two versions after everything is collected that can be.

    The originals that they compare with are neither removed nor trained again.
    """
    done = said("collect", "--max-gib", 0, "--data-dir", shared.data_dir, "--json")
    document = json.loads(done.stdout)
    assert done.exit_code == 4
    assert document["needed_too_much"]
    entries = shared.store.root / "entries"
    kept = {path.name: path.stat().st_ino for path in entries.iterdir()}
    assert len(kept) == 2 + 2 + 1  # variants, packages, the original
    assert not list(entries.glob("*/feeds.npz"))
    yield shared.data_dir
    assert kept.items() <= {path.name: path.stat().st_ino for path in entries.iterdir()}.items()


@pytest.mark.slow
def test_the_report_names_what_is_needed_and_by_what(emptied: Path) -> None:
    document = json.loads(said("store", "--data-dir", emptied, "--json").stdout)
    assert document["entries"] == 5
    assert {row["by"] for row in document["needed"]} == {"models:/images/1", "models:/images/2"}
    assert sum(row["entries"] for row in document["needed"]) == 5
    assert {row["kind"]: row["entries"] for row in document["kinds"]} == {
        "networks and executables": 3,
        "packages": 2,
    }
    assert (document["running"], document["leftovers"]) == ([], 0)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["models:/images@champion", "models:/images@challenger", "pipeline"])
def test_export_works_after_a_collection(what: str, emptied: Path, shared: Shared, tmp_path: Path) -> None:
    target = shared.config if what == "pipeline" else what
    done = said("export", target, "--to", tmp_path / "bundle.zip", "--data-dir", emptied)
    assert done.exit_code == 0, (done.output, done.exception)


@pytest.mark.slow
def test_check_works_after_a_collection(emptied: Path) -> None:
    done = said("check", "models:/images@champion", "--data-dir", emptied, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    assert json.loads(done.stdout)["holds"]


@pytest.mark.slow
def test_promote_works_after_a_collection(emptied: Path, two_versions: Path) -> None:
    done = said("promote", two_versions, "--data-dir", emptied, "--json")
    assert done.exit_code == NOTHING_MET, (done.output, done.exception)
    assert "version 1 stays champion" in json.loads(done.stdout)["reason"]


@pytest.mark.slow
def test_rollback_works_after_a_collection(emptied: Path) -> None:
    Tracker.open(emptied).set_alias("images", "previous", "2")
    for version in ("2", "1"):
        done = said("rollback", "images", "--data-dir", emptied, "--json")
        assert done.exit_code == 0, (done.output, done.exception)
        assert json.loads(done.stdout)["version"] == version


@pytest.mark.slow
def test_the_same_run_works_after_a_collection(emptied: Path, shared: Shared) -> None:
    done = said("optimize", shared.config, "--data-dir", emptied, "--no-orchestrator", "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    document = json.loads(done.stdout)
    assert (document["winner"], document["run_id"]) == (
        shared.documents[0]["winner"],
        shared.documents[0]["run_id"],
    )
    assert document["registered"]["version"] == "1"


def test_store_tells_what_it_holds(finished: Finished) -> None:
    document = json.loads(said("store", "--data-dir", finished.data_dir, "--json").stdout)
    assert document["entries"] == sum(row["entries"] for row in document["kinds"]) > 10
    kinds = {row["kind"]: row["entries"] for row in document["kinds"]}
    assert kinds["packages"] == 1
    ((needed,),) = (document["needed"],)
    assert (needed["by"], needed["entries"]) == ("models:/images/1", 3)
    shown = said("store", "--data-dir", finished.data_dir).stdout
    assert "needed by models:/images/1" in shown


def test_a_store_that_is_small_enough_is_left_as_it_is(finished: Finished) -> None:
    done = said("collect", "--max-gib", 1000, "--data-dir", finished.data_dir)
    assert done.exit_code == 0
    assert "removed 0 entries" in done.stdout


@pytest.mark.parametrize("words", [["store"], ["collect", "--max-gib", "1"]], ids=" ".join)
def test_where_there_is_no_store_none_is_made(words: list[str], tmp_path: Path) -> None:
    error = said(*words, "--data-dir", tmp_path / "data").exception
    assert isinstance(error, InputError)
    assert "there must be a store" in str(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", ["nan", "inf", "-1", "much"])
def test_a_limit_that_is_none_removes_nothing(limit: str, tmp_path: Path) -> None:
    Store(tmp_path / "store").ensure("key", lambda into: (into / "file").touch())
    done = said("collect", "--max-gib", limit, "--data-dir", tmp_path)
    assert isinstance(done.exception, InputError) or done.exit_code == 2
    assert Store(tmp_path / "store").find("key") is not None


def test_without_a_registry_none_is_made(tmp_path: Path) -> None:
    Store(tmp_path / "store").ensure("key", lambda into: (into / "file").touch())
    assert said("collect", "--max-gib", 0, "--data-dir", tmp_path).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_registry_that_once_was_used_must_answer_before_anything_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the environment names none now."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    Store(tmp_path / "store").ensure("key", lambda into: (into / "file").touch())
    registries.remember(tmp_path, "http://127.0.0.1:9")
    error = said("collect", "--max-gib", 0, "--data-dir", tmp_path).exception
    assert isinstance(error, TransientError)
    assert "registries.txt" in error.remedy
    assert Store(tmp_path / "store").find("key") is not None


def test_registries_are_the_embedded_one_the_named_one_and_those_used_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    own = registries.embedded(tmp_path)
    assert registries.known(tmp_path) == []
    for uri in (own, "http://before", "http://before"):
        registries.remember(tmp_path, uri)
    assert registries.known(tmp_path) == ["http://before"]
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://named")
    assert registries.known(tmp_path) == [own, "http://named", "http://before"]


PASSWORDS = (
    "http://user:word@host:5000",
    "https://user:w@rd@host",
    "postgresql+psycopg://user:w@host/mlflow",
)


@pytest.mark.parametrize("uri", PASSWORDS)
def test_a_registry_is_remembered_without_its_password_and_asked_with_it(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, in the form of the environment, which has the password."""
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for _ in range(2):
        registries.remember(tmp_path, uri)
    (line,) = (tmp_path / registries.FILE).read_text().splitlines()
    assert line == registries.without_secrets(uri)
    assert "user" not in line
    assert line.partition("://")[2].startswith("host")
    assert registries.known(tmp_path) == [uri]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert registries.known(tmp_path) == [line]


def test_a_password_that_an_older_version_wrote_down_is_taken_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the next version is registered, wherever that is."""
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:new@host")
    (tmp_path / registries.FILE).write_text("http://user:old@host\nhttp://before\nhttp://host\n")
    assert registries.known(tmp_path) == ["http://user:new@host", "http://before"]
    registries.remember(tmp_path, registries.embedded(tmp_path))
    assert (tmp_path / registries.FILE).read_text() == "http://host\nhttp://before\n"


def test_a_registry_that_cannot_be_asked_is_no_trouble_of_a_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told, and nothing is removed."""
    from flows.pipeline import bound_store

    class Notes(Silent):
        texts: ClassVar[list[str]] = []

        def note(self, text: str) -> None:
            self.texts.append(text)

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    Store(tmp_path / "store").ensure("key", lambda into: (into / "file").touch())
    registries.remember(tmp_path, "http://127.0.0.1:9")
    token = shown.set(Notes())
    bound_store(tmp_path, 0)
    shown.reset(token)
    assert "the store was not collected: MLflow at http://127.0.0.1:9 must be reachable" in Notes.texts[0]
    assert Store(tmp_path / "store").find("key") is not None
