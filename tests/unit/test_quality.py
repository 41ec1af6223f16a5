"""Metrics by hand, found or refused; predictions one per sample."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from pareflow.errors import BadOutputError, MetricError, WorkloadError
from pareflow.measurement import Ran
from pareflow.measuring import quality
from pareflow.measuring.quality import Metric, evaluate_quality, find_metric, predict
from pareflow.workload import Arrays, LoadedWorkload, Workload

METRICS = Path(__file__).parents[2] / "pareflow" / "metrics"
TARGETS = np.asarray([0, 0, 0, 1, 1, 2])
PREDICTIONS = np.asarray([0, 0, 1, 1, 1, 0])


class Answers:
    """A session that calls every image the same."""

    def __init__(self, logits: float = 1.0) -> None:
        self._logits = logits

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        return {"output": np.eye(4)[[2] * len(feeds["images"])] * self._logits}

    def ran(self) -> Ran:
        return Ran("none", "0", "float32", "CPU", 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("accuracy", 4 / 6, id="accuracy: 4 of 6"),
        pytest.param("f1_macro", (2 / 3 + 4 / 5 + 0) / 3, id="macro F1 of 2/3, 4/5 and 0"),
    ],
)
def test_metric_is_what_the_hand_computes(name: str, value: float) -> None:
    assert Metric(METRICS / f"{name}.py").value(PREDICTIONS, TARGETS) == pytest.approx(value)


@pytest.fixture
def few_replicates(monkeypatch: pytest.MonkeyPatch) -> int:
    """Each takes scikit-learn milliseconds."""
    monkeypatch.setattr(quality, "REPLICATES", 100)
    return 100


def test_replicates_are_seeded_and_scatter_around_the_value(few_replicates: int) -> None:
    metric = Metric(METRICS / "f1_macro.py")
    first, second = (metric.replicates(np.tile(PREDICTIONS, 20), np.tile(TARGETS, 20)) for _ in range(2))
    assert first == second
    assert len(first) == few_replicates
    assert np.median(first) == pytest.approx(0.489, abs=0.03)
    assert len(set(first)) > 10


def test_quality_holds_a_score_per_sample(load_tiny: Callable[[str], LoadedWorkload]) -> None:
    workload = load_tiny("images")
    found = evaluate_quality(Answers(), workload, "search", "v", "accuracy")
    right = workload.split("search").targets == 2
    assert found.scores == tuple(right.astype(int))
    assert found.value == right.mean()
    assert (found.variant, found.metric, found.split) == ("v", "accuracy", "search")


def test_quality_on_the_verdict_split_is_evaluates_own(load_tiny: Callable[[str], LoadedWorkload]) -> None:
    workload = load_tiny("images").for_validation()
    found = evaluate_quality(Answers(), workload, "verdict", "v", "accuracy")
    assert found.value == pytest.approx((workload.split("verdict").targets == 2).mean())


def test_quality_of_another_metric_holds_replicates(
    load_tiny: Callable[[str], LoadedWorkload], few_replicates: int
) -> None:
    found = evaluate_quality(Answers(), load_tiny("images"), "search", "v", "f1_macro")
    assert found.scores is None
    assert len(found.replicates) == few_replicates


def test_nan_on_any_sample_is_a_bad_output(load_tiny: Callable[[str], LoadedWorkload]) -> None:
    with pytest.raises(BadOutputError, match="`output` has 256 NaN or infinite values"):
        predict(Answers(float("nan")), load_tiny("images"), "search", 64)


@pytest.mark.parametrize(
    ("shape", "said"),
    [(lambda p: p[:-1], "it gave 98 for 100 samples"), (lambda p: p[:, None], r"shape \(100, 1\)")],
    ids=["too few", "one column"],
)
def test_predictions_are_one_per_sample(
    load_tiny: Callable[[str], LoadedWorkload],
    monkeypatch: pytest.MonkeyPatch,
    shape: Callable[[np.ndarray], np.ndarray],
    said: str,
) -> None:
    workload = load_tiny("images")
    kind: type[Workload] = type(workload.definition)
    monkeypatch.setattr(kind, "postprocess", lambda _, outputs: shape(outputs["output"].argmax(1)))
    with pytest.raises(WorkloadError, match=said):
        evaluate_quality(Answers(), workload, "search", "v", "accuracy")


MODULE = """
import datasets
import evaluate

class Own(evaluate.Metric):
    def _info(self):
        value = datasets.Value("int64")
        features = datasets.Features({"predictions": value, "references": value})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)
    def _compute(self, predictions, references):
        return BODY
"""


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("errors", '{"errors": 1 / 0}', "raised ZeroDivisionError"),
        ("undefined", '{"undefined": float("nan")}', "must be finite, but it is nan"),
        ("misnamed", '{"other": 1.0}', "KeyError: 'misnamed'"),
    ],
)
def test_metric_that_is_undefined_is_told(tmp_path: Path, name: str, body: str, said: str) -> None:
    (tmp_path / f"{name}.py").write_text(MODULE.replace("BODY", body))
    with pytest.raises(MetricError, match=said):
        Metric(find_metric(f"{name}.py", tmp_path)).value(PREDICTIONS, TARGETS)


def test_metric_that_only_claims_to_be_the_share_correct_is_told(tmp_path: Path) -> None:
    source = "SHARE_CORRECT = True\n" + MODULE.replace("BODY", '{"boast": 1.0}')
    (tmp_path / "boast.py").write_text(source)
    with pytest.raises(MetricError, match="SHARE_CORRECT"):
        Metric(tmp_path / "boast.py").value(PREDICTIONS, TARGETS)


def test_metric_is_ours_or_a_module_beside_the_workload(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("")
    assert find_metric("accuracy", tmp_path) == METRICS / "accuracy.py"
    assert find_metric("own.py", tmp_path) == tmp_path / "own.py"


@pytest.mark.parametrize("name", ["acuracy", "own", "__init__", "absent.py"])
def test_metric_that_does_not_exist_is_told_with_those_that_do(tmp_path: Path, name: str) -> None:
    (tmp_path / "own.py").write_text("")
    with pytest.raises(MetricError, match=rf"there is no `{name}`\. Known are accuracy, f1_macro") as caught:
        find_metric(name, tmp_path)
    assert caught.value.exit_code == 2
