"""The profile stage on the tiny images: one document, one trace, and no runtime that can end it."""

import dataclasses
import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.pipeline import optimized
from pareflow import catalog
from pareflow.errors import (
    BusyMachineError,
    CrashedError,
    MissingExtraError,
    OutOfMemoryError,
    StepFailedError,
    TimedOutError,
    VariantError,
)
from pareflow.measuring.breakdown import STAGES
from pareflow.stages import instruments, planning, profiling, searching
from pareflow.stages.run import Run
from tasks.execution import Plain


@pytest.fixture(scope="module")
def trained(_trained_once: Any, rated: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny images after the baseline stage, with a data folder for the tests of this file. It holds the
    rates of this machine."""
    data_dir = shutil.copytree(_trained_once.run.data_dir, tmp_path_factory.mktemp("profiled") / "data")
    shutil.copytree(rated, data_dir, dirs_exist_ok=True)
    return dataclasses.replace(_trained_once, run=dataclasses.replace(_trained_once.run, data_dir=data_dir))


@pytest.fixture(scope="module")
def profile(trained: Any) -> dict[str, Any]:
    found: dict[str, Any] = profiling.profile(trained.run, trained.rows)
    return found


def test_profile_is_one_json_document_and_comes_from_the_store_next_time(
    trained: Any, profile: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [stage["name"] for stage in profile["stages"]] == list(STAGES)
    assert "of a request" in profile["bottleneck"]
    assert profile["advice"]["bottleneck"] in STAGES
    assert profile["tensorboard"] is None
    monkeypatch.setattr(Run, "job", None)  # nothing is measured again
    monkeypatch.setattr(instruments, "run_isolated", None)
    assert profiling.profile(trained.run, trained.rows) == json.loads(json.dumps(profile))


def test_what_became_of_the_graph(profile: dict[str, Any]) -> None:
    """The tiny network has a convolution, its ReLU, a flattening and a product: the ReLU is fused."""
    graph = profile["graph"]
    assert graph["before"] == {"Conv": 1, "Relu": 1, "Flatten": 1, "Gemm": 1}
    assert graph["gone"]["Relu"] == 1
    assert graph["nodes"]["before"] == 4


def test_one_trace_holds_every_runtime(trained: Any, profile: dict[str, Any]) -> None:
    assert list(profile["traces"]) == ["profile"]
    trace = json.loads((trained.run.output / profile["traces"]["profile"]).read_text())
    rows = {event["pid"] for event in trace["traceEvents"] if event.get("dur")}
    assert len(rows) == len(profile["operators"]) == len(profiling.RUNTIMES) - len(profile["unavailable"])


def test_roofline_adds_up(profile: dict[str, Any]) -> None:
    """The tiny network's products by hand: 8×8 images, see tests/workloads/networks.py."""
    found = profile["roofline"]
    assert found["gflops"] == pytest.approx(found["flops"] / found["ms"] / 1e6)
    assert found["matrix_share"] == pytest.approx(found["gflops"] / found["machine"]["matrix_gflops"])
    assert found["copy_share"] == pytest.approx(found["gb_per_s"] / found["machine"]["copy_gb_per_s"])
    assert found["intensity"] == pytest.approx(found["flops"] / found["bytes"])
    assert found["bytes"] == sum(row["bytes"] for row in found["operators"])


def test_roofline_is_of_the_very_input_whose_work_is_counted(
    trained: Any, profile: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other samples may be longer: what they take is of other work."""
    told = {"stages": profile["stages"], "counters": profile["counters"], "example_ms": 2.0}
    monkeypatch.setattr(profiling, "_stages", lambda run, strong: told)
    found = profiling.profile(trained.run, trained.rows)["roofline"]
    assert found["ms"] == 2.0
    assert found["gflops"] == pytest.approx(found["flops"] / 2.0 / 1e6)


def test_ceilings_of_the_machine_are_measured_once(trained: Any, profile: dict[str, Any]) -> None:
    machine = profile["roofline"]["machine"]
    assert machine["threads"] == trained.rows[0].threads
    assert machine["matrix_gflops"] > 0
    assert machine["copy_gb_per_s"] > 0
    assert len(list(trained.run.store.root.glob("entries/*/ceilings.json"))) == 1


def test_counters_are_numbers_or_the_reason_why_not(profile: dict[str, Any]) -> None:
    counters = profile["counters"]
    values = [counters[name] for name in ("instructions", "cycles", "cache_misses", "ipc")]
    assert all(value is None or value > 0 for value in values)
    assert (counters["reason"] is None) == (None not in values)


def test_an_instrument_that_is_asked_beside_the_run_leaves_what_the_run_measured(
    trained: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = iter(["the run's", "beside it"])

    def job(run: Run, name: str, arguments: dict[str, Any], log: str, **_: Any) -> None:
        def write(into: Path) -> None:
            (into / "found.json").write_text(json.dumps({name: next(told)}))

        run.store.ensure(arguments["key"], write)

    monkeypatch.setattr(Run, "job", job)
    monkeypatch.setattr(instruments, "_alone", lambda run, work: work(0))
    run = dataclasses.replace(trained.run, data_dir=tmp_path)
    asked = ("trace", {"threads": 1}, "found.json", "measuring/work.py")
    found = [instruments.measured(one, *asked)["trace"] for one in (run, run.aside(), run)]
    assert found == ["the run's", "beside it", "the run's"]


def test_a_runtime_that_is_missing_has_a_reason(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "openvino")
    found = profiling.profile(trained.run, trained.rows)
    assert found["unavailable"] == {"openvino": "not installed"}
    assert set(found["operators"]) == {"onnxruntime", "torch"}


@pytest.mark.slow
def test_a_profiler_that_dies_costs_its_own_row(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Run.job

    def dying(run: Run, name: str, arguments: Any, log: str, **options: Any) -> Any:
        if arguments.get("runtime") == "torch":
            raise CrashedError("`trace` must end by itself", "it died of SIGSEGV", "")
        return job(run, name, arguments, log, **options)

    monkeypatch.setattr(Run, "job", dying)
    found = profiling.profile(dataclasses.replace(trained.run, remeasure=True), trained.rows)
    assert found["unavailable"]["torch"] == "it died of SIGSEGV"
    assert "torch" not in found["operators"]


def test_a_machine_whose_ceilings_cannot_be_measured_has_no_roofline(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling, "ceilings", killed)
    found = profiling.profile(trained.run, trained.rows)
    assert found["roofline"] is None
    assert found["unavailable"]["roofline"] == "it died of SIGKILL"
    assert found["advice"]["families"]


def test_nothing_is_measured_on_a_busy_machine(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(patience_s: float) -> None:
        raise BusyMachineError("the machine must be quiet", f"it was not for {patience_s:g} s", "")

    monkeypatch.setattr(instruments, "await_quiet", busy)
    monkeypatch.setattr(Run, "job", None)
    with pytest.raises(BusyMachineError, match="not for 1800 s"):
        profiling.profile(dataclasses.replace(trained.run, remeasure=True), trained.rows)


def killed(*_: object) -> None:
    raise CrashedError("`ceilings` must end by itself", "it died of SIGKILL", "")


def test_profile_needs_the_baselines_own_runtime(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(run: Run, name: str, arguments: Any, log: str, **options: Any) -> Any:
        raise StepFailedError("`trace` must finish", "it raised", "")

    monkeypatch.setattr(Run, "job", failing)
    with pytest.raises(StepFailedError):
        profiling.profile(dataclasses.replace(trained.run, remeasure=True), trained.rows)


@pytest.mark.parametrize(
    ("kind", "asked_again"), [(TimedOutError, 0), (OutOfMemoryError, 1)], ids=["time", "memory"]
)
def test_a_baseline_that_dies_of_its_profile_is_searched_without(
    trained: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: type[VariantError],
    asked_again: int,
) -> None:
    """It only advises. A run that goes on asks again for what was no time limit's ending."""
    asked = []

    def failing(run: Run, name: str, arguments: Any, log: str, **options: Any) -> Any:
        asked.append(name)
        raise kind("`profile` must do with less", "it did not", "")

    monkeypatch.setattr(Run, "job", failing)
    data_dir = shutil.copytree(trained.run.data_dir, tmp_path / "data")
    run = dataclasses.replace(trained.run, data_dir=data_dir, remeasure=True)
    found, told = profiling.attempt(run, trained.rows)
    assert (found, told) == (None, "it could not be profiled: `profile` must do with less, but it did not")
    assert profiling.attempt(run, trained.rows) == (found, told)
    assert len(asked) == 1 + asked_again
    search = searching.search_of(run, trained.rows, None)
    assert next(search.waves()).recipes


def test_a_run_without_a_profile_goes_to_its_end_and_its_report_says_why(
    trained: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(profiling, "profile", killed)
    data_dir = shutil.copytree(trained.run.data_dir, tmp_path / "data")
    run = dataclasses.replace(trained.run, data_dir=data_dir)
    document = optimized(run, None, "", Plain())
    assert document["profile"] is None
    assert document["no_profile"].endswith("it died of SIGKILL")
    assert document["winner"] is not None
    assert "Not known: it could not be profiled" in Path(document["report"]).read_text()
    assert planning.plan(run)["candidates"]


def asking_for_event_files(run: Run) -> Run:
    asked = run.spec.profile.model_copy(update={"tensorboard": True})
    return dataclasses.replace(run, spec=run.spec.model_copy(update={"profile": asked}))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_event_file_holds_every_time_of_the_profile(trained: Any) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = asking_for_event_files(trained.run)
    found = profiling.profile(run, trained.rows)
    again = profiling.profile(run, trained.rows)
    folder = run.output / found["tensorboard"]
    assert len(list(folder.iterdir())) == 1
    events = reader.EventAccumulator(str(folder)).Reload()
    told = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert found == again
    for stage in found["stages"]:
        assert told[f"breakdown/{stage['name']}_p50_ms"] == pytest.approx(stage["p50_ms"])
    for row in found["operators"]["torch"]:
        assert told[f"operators/torch/{row['name']}_ms"] == pytest.approx(row["ms"], rel=1e-5)
    assert len(told) == 2 * len(STAGES) + sum(len(rows) for rows in found["operators"].values())


def test_event_files_that_cannot_be_written_are_told_before_anything_is_measured(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "tensorboard")
    monkeypatch.setattr(Run, "job", None)
    with pytest.raises(MissingExtraError, match=r"pareflow\[tensorboard\]"):
        profiling.profile(asking_for_event_files(trained.run), trained.rows)


def without(monkeypatch: pytest.MonkeyPatch, distribution: str) -> None:
    """As if it were not installed."""
    version = importlib.metadata.version

    def missing(name: str) -> str:
        if name == distribution:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    catalog.installed_version.cache_clear()
    monkeypatch.setattr(importlib.metadata, "version", missing)


@pytest.fixture(autouse=True)
def _forgotten() -> Any:
    yield
    catalog.installed_version.cache_clear()
