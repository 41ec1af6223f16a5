"""A user's mistake in the workload: the right error class and exit code, in three parts."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from pareflow import spec as specs
from pareflow.errors import (
    ExportError,
    InputError,
    MetricError,
    MissingExtraError,
    PareflowError,
    SpecError,
    SplitError,
    WorkloadError,
)
from pareflow.stages import jobs
from pareflow.stages.baseline import baseline, train
from pareflow.stages.jobs import original
from pareflow.stages.run import Run
from pareflow.store import Store
from pareflow.workload import define


@dataclass(frozen=True)
class Case:
    fault: str
    error: type[PareflowError]
    must: str
    found: str

    def __str__(self) -> str:
        return self.fault


BEFORE_ANYTHING_RUNS = [
    Case("data raises", WorkloadError, "`data()`", "it raised FileNotFoundError: images.csv"),
    Case("data gives nothing", WorkloadError, "`data()`", "AttributeError: 'NoneType'"),
    Case("package is missing", MissingExtraError, "pillow must be installed", "it is not"),
    Case("split is empty", SplitError, "every split must hold samples", "`calibration` has 0 samples"),
    Case("splits overlap", SplitError, "no sample may be in two splits", "400 samples of `verdict`"),
    Case("samples are bytes", WorkloadError, "which JSON gives back", "they are a list of |S3"),
    Case("preprocess raises", WorkloadError, "`preprocess()`", "it raised ValueError: not an image"),
    Case("preprocess gives a bare array", WorkloadError, "`preprocess()`", "it raised AttributeError"),
    Case("preprocess gives objects", WorkloadError, "arrays of numbers or texts", "`images` holds objects"),
    Case("check raises", WorkloadError, "`check()`", "it raised KeyError: 'pixels'"),
    Case("students raises", WorkloadError, "`students()`", "it raised NameError"),
    Case("verdict target is missing", WorkloadError, "needs a target", "3 of 400 in the `verdict` split"),
]
WHILE_TRAINING = [
    Case("network raises", WorkloadError, "`network()`", "RuntimeError: no such architecture"),
    Case("network does not pickle", WorkloadError, "can be pickled whole", "torch.save raised"),
    Case("train raises", WorkloadError, "`train()`", "ZeroDivisionError: learning rate"),
    Case("train gives nan", WorkloadError, "`train()`", "every output must be finite"),
    Case("train gives nothing", WorkloadError, "`train()`", "AttributeError: 'NoneType'"),
]
DOES_NOT_EXPORT = Case(
    "network does not export", ExportError, "must become an ONNX graph", "torch.onnx.export raised"
)
IN_THE_BASELINE = [
    Case("data is drawn anew", WorkloadError, "be the same in every process", "it has another digest"),
    Case("train segfaults", InputError, "the original must run", "it died of SIGSEGV"),
    Case("postprocess raises", InputError, "the original must run", "KeyError: 'logits'"),
]


def opened(folder: Path, data_dir: Path, **changes: object) -> Run:
    document = {**specs.read(folder / "images.yaml").to_json(), **changes}
    return Run.open(specs.parse(document, "test"), folder / "images.yaml", data_dir)


def faulty(case: Case) -> dict[str, object]:
    return {"file": {"path": "faulty.py", "settings": {"fault": case.fault}}}


def check(error: PareflowError, case: Case) -> None:
    assert type(error) is case.error
    assert case.must in error.must
    assert case.found in error.found
    assert error.remedy
    assert error.exit_code == (4 if case.error is MissingExtraError else 2)


@pytest.mark.parametrize("case", BEFORE_ANYTHING_RUNS, ids=str)
def test_mistake_is_told_before_anything_runs(case: Case, workloads: Path) -> None:
    """The job of `Run.open`, called here: a process of its own for each would take a minute."""
    with pytest.raises(PareflowError) as caught:
        jobs.describe(faulty(case), str(workloads), metric=None)
    check(caught.value, case)


def test_mistake_in_the_sweep_is_told_before_anything_runs(workloads: Path) -> None:
    case = Case("at_length raises", WorkloadError, "`at_length()`", "it raised IndexError: no such axis")
    with pytest.raises(PareflowError) as caught:
        jobs.describe(faulty(case), str(workloads), metric=None, lengths=[8])
    check(caught.value, case)


@pytest.mark.parametrize("case", WHILE_TRAINING, ids=str)
def test_mistake_in_the_network_is_told(case: Case, workloads: Path, tmp_path: Path) -> None:
    with pytest.raises(PareflowError) as caught:
        jobs.train(faulty(case), str(workloads), str(tmp_path / "store"))
    check(caught.value, case)
    assert list((tmp_path / "store" / "entries").iterdir()) == []


def test_sample_that_only_the_verdict_would_meet_is_told_before_any_candidate(
    workloads: Path, tmp_path: Path
) -> None:
    must, found = "of the original on the `verdict` split, every output must be finite", "has 4 NaN"
    case = Case("verdict sample is missing", WorkloadError, must, found)
    place = (faulty(case), str(workloads), str(tmp_path / "store"))
    jobs.train(*place)
    with pytest.raises(PareflowError) as caught:
        jobs.first_answers(*place, key="answers", metric="accuracy", tried="tried")
    check(caught.value, case)


@pytest.mark.parametrize("case", IN_THE_BASELINE, ids=str)
def test_mistake_in_the_original_ends_the_baseline(case: Case, workloads: Path, tmp_path: Path) -> None:
    """In processes of their own, as a run does it."""
    run = opened(workloads, tmp_path, workload=faulty(case))
    with pytest.raises(PareflowError) as caught:
        baseline(run)
    check(caught.value, case)


def test_mistake_travels_from_the_child_process(workloads: Path, tmp_path: Path) -> None:
    with pytest.raises(PareflowError) as caught:
        opened(workloads, tmp_path, workload=faulty(BEFORE_ANYTHING_RUNS[4]))
    check(caught.value, BEFORE_ANYTHING_RUNS[4])


def test_missing_workload_file_is_told(workloads: Path, tmp_path: Path) -> None:
    case = Case("missing file", WorkloadError, "the workload file must exist", "there is no")
    with pytest.raises(PareflowError) as caught:
        opened(workloads, tmp_path, workload="absent.py")
    check(caught.value, case)


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("model.onnx", "workload: {onnx: {model: model.onnx, arrays: DATA.npz}}"),
        ("workload.yaml", "Mend `workload:`"),
    ],
)
def test_workload_file_that_is_no_python_is_told(name: str, way_out: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"08")
    case = Case("no Python", WorkloadError, "a workload file must be Python", f"it is {tmp_path / name}")
    with pytest.raises(PareflowError) as caught:
        jobs.describe({"file": {"path": name}}, str(tmp_path), metric=None)
    check(caught.value, case)
    assert way_out in caught.value.remedy


def test_metric_that_does_not_exist_is_told_before_training(workloads: Path, tmp_path: Path) -> None:
    case = Case("metric", MetricError, "the metric must be one of", "there is no `acuracy`")
    with pytest.raises(PareflowError) as caught:
        opened(workloads, tmp_path, sla={"quality": {"metric": "acuracy", "max_drop": 0.1}})
    check(caught.value, case)
    assert list((Store(tmp_path / "store").root / "entries").iterdir()) == []


def test_percentage_for_a_share_is_told_before_training(workloads: Path, tmp_path: Path) -> None:
    """A drop of 1 would let every loss pass; and the metric is the workload's own."""
    with pytest.raises(SpecError) as caught:
        opened(workloads, tmp_path, sla={"quality": {"max_drop": 1}})
    check(caught.value, Case("percentage", SpecError, "images.yaml must be valid", "1 problem"))
    assert "sla.quality.max_drop: " in str(caught.value)


@pytest.mark.parametrize(
    ("clause", "said"),
    [
        ({"metric": "rmse", "min": 0.5}, "sla.quality.min: .* lower is better for `rmse`.*write `max`"),
        ({"max": 0.5}, "sla.quality.max: .* higher is better for `accuracy`.*write `min`"),
    ],
    ids=["an error", "a share"],
)
def test_limit_that_rewards_the_worst_is_told_before_training(
    clause: dict[str, object], said: str, workloads: Path, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=said):
        opened(workloads, tmp_path, sla={"quality": clause})


def test_slices_that_are_judged_and_not_there_are_told_before_training(
    workloads: Path, tmp_path: Path
) -> None:
    """Every variant would end inconclusive."""
    case = Case("targets are values", SpecError, "images.yaml must be valid", "1 problem")
    sla = {"quality": {"worst_slice_max_drop": 0.1}}
    with pytest.raises(SpecError, match="`accuracy` has none by itself on these targets") as caught:
        opened(workloads, tmp_path, workload=faulty(case), sla=sla)
    check(caught.value, case)


def test_distribution_by_another_name_is_told_before_training(
    workloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its version would be pinned as None."""
    definition = define({"file": {"path": "images.py"}}, workloads)
    monkeypatch.setattr(type(definition), "serving_requires", ("numpy", "sklearn"))
    with pytest.raises(WorkloadError, match="distributions that are installed, but sklearn is not"):
        jobs.describe({"file": {"path": "images.py"}}, str(workloads), metric=None)


def test_data_are_loaded_with_as_many_threads_by_whoever_loads_them(
    workloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their features may be rounded by them. Training takes all that the user grants."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run = opened(
        workloads, tmp_path, workload=faulty(Case("data follows the threads", WorkloadError, "", ""))
    )
    train(run)
    assert run.store.find(original(run.facts.digest).id) is not None


def test_original_that_is_missing_is_told(workloads: Path, tmp_path: Path) -> None:
    """As it is where `data()` gives other data in this process."""
    case = Case("missing", WorkloadError, "be the same in every process", "the store has no original")
    reference: dict[str, object] = {"file": {"path": "images.py"}}
    with pytest.raises(PareflowError) as caught:
        jobs.build(reference, str(workloads), str(tmp_path / "store"), [{"onnxruntime": {}}])
    check(caught.value, case)


def test_unknown_key_is_told_with_what_was_meant(workloads: Path) -> None:
    document = {**specs.read(workloads / "images.yaml").to_json(), "sal": {}}
    case = Case("key", SpecError, "must be valid", "1 problem")
    with pytest.raises(SpecError, match="did you mean 'sla'") as caught:
        specs.parse(document, "pipeline.yaml")
    check(caught.value, case)


def test_what_was_finished_before_the_mistake_is_kept(workloads: Path, tmp_path: Path) -> None:
    """The network trains and then does not export: mended, training is not done again."""
    run = opened(workloads, tmp_path, workload=faulty(DOES_NOT_EXPORT))
    with pytest.raises(ExportError) as caught:
        baseline(run)
    check(caught.value, DOES_NOT_EXPORT)
    entries = run.store.root / "entries"
    kept = {path.name: path.stat().st_ino for path in entries.iterdir()}
    assert len(kept) == 4  # the original, what its first answers tell, and the inputs to measure with
    with pytest.raises(ExportError):
        baseline(run)
    assert {path.name: path.stat().st_ino for path in entries.iterdir()} == kept
