"""Law 7: a crash, a hang, too much memory or NaN in one variant is one failed row, not the run's end."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pareflow import spec as specs
from pareflow.compiler import environment
from pareflow.errors import NodeError, StoreError, TransientError, VariantError
from pareflow.stages import building, optimization, validation
from pareflow.stages.baseline import train
from pareflow.stages.run import Row, Run
from pareflow.variant import Recipe, Step

pytestmark = pytest.mark.usefixtures("rogues")


@dataclass(frozen=True)
class Bad:
    technique: str
    error: str
    said: str


CASES = [
    Bad("raises", "StepFailedError", "RuntimeError: no kernel for this operator"),
    Bad("raises_own_error", "StepFailedError", "the moon must be full, but it is new"),
    Bad("denied_a_file", "StepFailedError", "PermissionError"),
    Bad("segfaults", "CrashedError", "SIGSEGV"),
    Bad("exits", "CrashedError", "status 7"),
    Bad("hangs", "TimedOutError", "must finish in 2 s"),
    Bad("hoards", "OutOfMemoryError", "must fit into 4096 MiB"),
    Bad("hoards_natively", "OutOfMemoryError", "must fit into 4096 MiB"),
    Bad("gives_nan", "BadOutputError", "NaN"),
    Bad("loses_rows", "BadOutputError", "one row per sample"),
    Bad("peeks_at_the_verdict", "WorkloadError", "the verdict split must stay shut"),
]


NOWHERE = """
from pathlib import Path
from pareflow import spec as specs
from pareflow.compiler import environment
environment.lock_folders = lambda: [Path({folder!r})]
"""
"""Also in child processes the lock files are those of the test."""


def candidate(*techniques: str, backend: Step = Step("torch_eager")) -> Row:  # noqa: B008 (frozen)
    return Row(Recipe(tuple(map(Step, techniques)), backend))


def contents(run: Run) -> set[str]:
    return {path.name for path in (run.store.root / "entries").iterdir()}


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.technique)
def test_bad_candidate_is_one_failed_row_with_its_reason(bad: Bad, trained: Any) -> None:
    seconds = 2 if bad.technique == "hangs" else 120
    run = trained.with_budget(variant_minutes=seconds / 60, memory_mib=4096)
    before = contents(run)
    row = optimization.make(run, candidate(bad.technique))
    assert (row.status, row.id, row.quality) == ("failed", None, None)
    assert row.reason is not None
    assert row.reason.startswith(f"{bad.error}: ")
    assert bad.said in row.reason
    assert optimization.time(run, row, trained.rows) == row
    if bad.technique not in ("gives_nan", "loses_rows"):  # those were built; what they answer is bad
        assert contents(run) == before


@pytest.mark.parametrize(
    ("technique", "reason"),
    [
        ("lacks_a_package", "unobtainium must be installed, but it is not"),
        ("lacks_a_driver", "unobtainium must be loaded, but its driver is not here"),
    ],
)
def test_candidate_that_lacks_something_here_is_unavailable(
    technique: str, reason: str, trained: Any
) -> None:
    row = optimization.make(trained.run, candidate(technique))
    assert (row.status, row.reason) == ("unavailable", reason)


def test_candidate_that_dies_while_timed_is_a_failed_row(trained: Any) -> None:
    built = optimization.make(trained.run, candidate(backend=Step("segfaults_under_load")))
    assert built.status == "ok"
    timed = optimization.time(trained.run, built, trained.rows)
    assert timed.status == "failed"
    assert str(timed.reason).startswith("CrashedError: ")
    assert timed.measurement is None


@pytest.fixture(scope="module")
def untimed(workloads: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose original is trained, and nothing timed."""
    document = specs.read(workloads / "images.yaml").to_json()
    spec = specs.parse({**document, "workload": "rogue_images.py"}, "the tests' pipeline")
    run = Run.open(spec, workloads / "images.yaml", tmp_path_factory.mktemp("untimed"))
    train(run)
    return run


def test_killed_worker_is_one_failed_row_and_the_run_goes_on(untimed: Run) -> None:
    """The runtime's process dies of SIGKILL amid a request; the next candidate is made as ever."""
    row = optimization.make(untimed, candidate(backend=Step("worker_killed", {"requests": 0})))
    assert (row.status, row.quality) == ("failed", None)
    assert row.reason == "KilledError: the worker `echo` must answer, but it died of SIGKILL"
    good = optimization.make(untimed, candidate(backend=Step("worker_killed", {"requests": 10**6})))
    assert (good.status, good.quality is not None) == ("ok", True)


def test_worker_killed_while_it_is_timed_is_a_failed_row(trained: Any) -> None:
    row = optimization.make(trained.run, candidate(backend=Step("worker_killed")))
    assert row.status == "ok"
    timed = optimization.time(trained.run, row, trained.rows)
    assert (timed.status, timed.measurement) == ("failed", None)
    assert "KilledError: the worker `echo` must answer, but it died of SIGKILL" in str(timed.reason)


def test_worker_environment_that_cannot_be_built_is_an_unavailable_row(
    untimed: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Offline, and no wheel at hand: not tried before somebody asks for it, and then told with its reason."""
    (tmp_path / "wheels").mkdir()
    (tmp_path / "sitecustomize.py").write_text(NOWHERE.format(folder=str(tmp_path)))
    (tmp_path / "unbuildable.txt").write_text("no-such-distribution==1.0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PAREFLOW_ENVIRONMENTS", str(tmp_path / "environments"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(environment, "lock_folders", lambda: [tmp_path])
    assert optimization.missing(candidate(backend=Step("unbuildable")).recipe) is None
    logs = {*(untimed.data_dir / "logs").iterdir()}
    row = optimization.make(untimed, candidate(backend=Step("unbuildable")))
    assert row.status == "unavailable"
    assert {*(untimed.data_dir / "logs").iterdir()} == logs  # no variant's time was spent on it
    assert str(row.reason).startswith(
        "the worker environment `unbuildable` must be installable from its lock"
    )
    assert "No matching distribution found for no-such-distribution==1.0" in str(row.reason)


@pytest.mark.parametrize("moment", ["evaluated", "timed"])
def test_finalist_that_dies_is_a_failed_row_and_the_others_are_judged(
    moment: str, judged: Any, trained: Any, tmp_path: Path
) -> None:
    """It behaved while it was screened; it dies on the verdict split, or in the longer measurement."""
    requests = {"evaluated": 3, "timed": 30}[moment]
    doomed = Step("segfaults_under_load", {"requests": requests, "marker": str(tmp_path / "now")})
    row = optimization.make(trained.run, candidate(backend=doomed))
    row = dataclasses.replace(row, measurement=judged.candidate.measurement)
    (tmp_path / "now").touch()
    *others, failed = validation.validate(trained.run, [*trained.rows, row])
    assert (failed.status, failed.verdict) == ("failed", None)
    assert str(failed.reason).startswith("CrashedError: ")
    assert [other.verdict is not None for other in others] == [True, True]
    winner = validation.winner(trained.run, [*others, failed])
    assert winner is not None
    assert winner.id == trained.strong.id


def test_good_candidate_after_bad_ones_is_as_it_would_be_without(trained: Any) -> None:
    for technique in ("raises", "segfaults"):
        assert optimization.make(trained.run, candidate(technique)).status == "failed"
    good = optimization.make(trained.run, candidate(backend=Step("onnxruntime", {"graph_level": "basic"})))
    assert (good.status, good.quality is not None) == ("ok", True)


@pytest.mark.parametrize("error", [StoreError, TransientError, NodeError])
def test_trouble_of_the_run_is_no_row(
    error: type[Exception], trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk says nothing about the variant that met it."""

    def fail(run: Run, row: Row) -> Row:
        raise error("the disk must have room", "it is full", "Free some")

    monkeypatch.setattr(building, "make", fail)
    with pytest.raises(error):
        optimization.make(trained.run, candidate())


def test_baseline_that_dies_in_the_end_ends_the_run(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it there is nothing to compare with."""
    strong = dataclasses.replace(
        trained.strong, recipe=Recipe((), Step("segfaults_under_load", {"requests": 0}))
    )
    with pytest.raises(VariantError):
        validation.validate(trained.run, [strong, trained.rows[1]])
