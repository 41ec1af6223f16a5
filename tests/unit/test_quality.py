"""Metrics by hand, found or refused; predictions one per sample."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from pareflow.errors import BadOutputError, MetricError, WorkloadError
from pareflow.intervals import bca_interval
from pareflow.measurement import Ran
from pareflow.measuring import quality
from pareflow.measuring.quality import Metric, _scores, evaluate_quality, find_metric, predict
from pareflow.serving.model import PackagedModel
from pareflow.workload import Arrays, LoadedWorkload, Split, Workload, load

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


LOGITS = np.log([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]])
"""Class probabilities of a half and two quarters."""

BY_HAND = {
    "rmse": ([1.0, 2.0, 5.0], [1.0, 2.0, 2.0], np.sqrt(3.0)),
    "mae": ([1.0, 2.0, 5.0], [1.0, 2.0, 2.0], 1.0),
    "spearman": ([1.0, 2.0, 4.0, 3.0], [10.0, 20.0, 30.0, 40.0], 1 - 6 * 2 / (4 * 15)),
    "ndcg_at_10": ([[0.9, 0.1]], [[0.0, 1.0]], 1 / np.log2(3)),
    "perplexity": ([2 * np.log(8), 2 * np.log(2)], [2.0, 2.0], 4.0),
    "agreement": ([0, 1, 1, 2], [0, 1, 2, 2], 0.75),
    "output_divergence": (LOGITS[::-1, None], LOGITS[:, None], 0.25 * np.log(2)),
    "output_cosine": ([[1.0, 0.0], [1.0, 1.0]], [[2.0, 0.0], [1.0, 0.0]], (1 + np.sqrt(0.5)) / 2),
}


@pytest.mark.parametrize(
    ("name", "scale"), [("accuracy", (0.0, 1.0)), ("spearman", (-1.0, 1.0)), ("rmse", None)]
)
def test_scale_is_that_of_a_share_or_what_the_metric_says(
    name: str, scale: tuple[float, float] | None
) -> None:
    assert Metric(METRICS / f"{name}.py").scale == scale


@pytest.mark.parametrize("name", BY_HAND)
def test_metric_of_numbers_and_vectors_is_what_the_hand_computes(name: str) -> None:
    predictions, references, value = BY_HAND[name]
    found = Metric(METRICS / f"{name}.py").value(np.asarray(predictions), np.asarray(references))
    assert found == pytest.approx(value)


@pytest.mark.parametrize(("name", "value"), [("rmse", np.sqrt(2.5)), ("mae", 1.5)])
def test_errors_of_several_values_per_sample_are_over_all_of_them(name: str, value: float) -> None:
    metric, targets = Metric(METRICS / f"{name}.py"), np.zeros((4, 2))
    assert metric.value(targets + np.array([1, 2]), targets) == pytest.approx(value)
    assert metric.value(targets[:, :1] + 1, targets[:, :1]) == 1
    assert metric.replicates(targets + 1, targets) == (1,) * quality.REPLICATES


@pytest.mark.parametrize("name", ["rmse", "mae", "spearman"])
def test_predictions_and_targets_of_two_shapes_are_told_by_them(name: str) -> None:
    metric, column = Metric(METRICS / f"{name}.py"), np.arange(4.0)[:, None]
    with pytest.raises(MetricError, match=r"on shapes \(4, 1\) beside \(4,\) it raised"):
        metric.value(column, column[:, 0])


@pytest.mark.parametrize("name", ["rmse", "mae"])
def test_rows_of_two_lengths_are_no_errors_of_each_other(name: str) -> None:
    """A row of one would be taken for each of the others."""
    with pytest.raises(WorkloadError, match=r"have shape \(4, 1\), and the targets \(4, 3\)"):
        Metric(METRICS / f"{name}.py").value(np.zeros((4, 1)), np.zeros((4, 3)))


MASKED = -np.inf
"""The logit of a class that cannot be."""


@pytest.mark.parametrize(
    ("ours", "theirs", "value"),
    [
        pytest.param([[0, MASKED, 0]], [[0, MASKED, 0]], 0, id="in both"),
        pytest.param([[0, 1], [MASKED] * 2], [[0, 1], [MASKED] * 2], 0, id="a whole position in both"),
        pytest.param([[0, 0]], [[0, MASKED]], np.log(2), id="in the original alone"),
        pytest.param(
            [[0, MASKED]], [[0, 0]], -np.log(2) - np.log(np.finfo(np.float32).tiny) / 2, id="in ours alone"
        ),
    ],
)
def test_divergence_of_masked_classes_is_bounded(
    ours: list[list[float]], theirs: list[list[float]], value: float
) -> None:
    predictions, references = np.asarray([ours], float), np.asarray([theirs], float)
    found = Metric(METRICS / "output_divergence.py").value(predictions, references)
    assert found == pytest.approx(value)


def test_divergence_is_of_the_classes_at_each_position() -> None:
    """What is added to all logits of a position changes nothing: two positions are not one of six classes."""
    shifted = np.stack([LOGITS, LOGITS + 5], axis=1)
    predictions = np.zeros(2)
    ours, theirs = (quality.Answers(predictions, one).part("logits") for one in (shifted[::-1], shifted))
    assert Metric(METRICS / "output_divergence.py").value(ours, theirs) == pytest.approx(0.25 * np.log(2))
    for rows in (np.zeros(2), np.zeros((2, 3)), np.zeros((2, 3, 4))):
        assert quality.Answers(predictions, rows).part("logits").ndim == 3


@pytest.mark.parametrize(
    ("name", "said"), [("output_divergence", "needs two classes"), ("output_cosine", "needs two values")]
)
@pytest.mark.parametrize("shape", [(3,), (3, 1)], ids=str)
def test_fidelity_of_one_value_per_sample_is_refused(name: str, said: str, shape: tuple[int, ...]) -> None:
    """Of one class every network is sure, and one positive number points where any other does."""
    metric = Metric(METRICS / f"{name}.py")
    answers = [quality.Answers(np.zeros(3), np.full(shape, value)) for value in (1.0, 9.0)]
    given = [one.part(str(metric.against)) for one in answers]
    with pytest.raises(WorkloadError, match=f"{said}.*Take a metric of the targets"):
        metric.value(*given)


def test_every_metric_that_pareflow_brings_is_computed_by_hand_here() -> None:
    brought = {path.stem for path in METRICS.glob("*.py")} - {"__init__"}
    assert brought == {*BY_HAND, "accuracy", "f1_macro"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("accuracy", (True, True, None)),
        ("rmse", (False, False, None)),
        ("agreement", (True, True, "predictions")),
        ("output_divergence", (False, False, "logits")),
    ],
)
def test_metric_says_of_itself_what_it_is(name: str, said: tuple[bool, bool, str | None]) -> None:
    metric = Metric(METRICS / f"{name}.py")
    assert (metric.share_correct, metric.higher_is_better, metric.against) == said


@pytest.mark.parametrize(
    ("name", "compares"),
    [("accuracy", False), ("agreement", False), ("output_cosine", True), ("output_divergence", True)],
)
def test_outputs_are_compared_by_metrics_of_outputs_alone(name: str, compares: bool, tmp_path: Path) -> None:
    assert Metric.named(name, tmp_path).compares_outputs == compares


@pytest.mark.parametrize("name", ["accuracy", "f1_macro", "agreement"])
def test_classes_may_have_names(name: str) -> None:
    """Also one that could be read as a number."""
    names, metric = np.asarray(["cat", "7", "07"], dtype=object), Metric(METRICS / f"{name}.py")
    assert metric.value(names[PREDICTIONS], names[TARGETS]) == metric.value(PREDICTIONS, TARGETS)


def test_jackknife_leaves_out_each_sample_once() -> None:
    """Errors 0, 0 and 3: without one of them the mean is 1.5, 1.5 and 0."""
    found = Metric(METRICS / "mae.py").jackknife(np.asarray([1.0, 2.0, 5.0]), np.asarray([1.0, 2.0, 2.0]))
    assert found == (1.5, 1.5, 0.0)


def test_jackknife_of_many_leaves_out_groups() -> None:
    rows = np.arange(1000.0)
    assert len(Metric(METRICS / "mae.py").jackknife(rows, rows)) == quality.JACKKNIFE_GROUPS


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


def test_dense_predictions_become_lists_once_and_not_for_every_resample(
    few_replicates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a segmentation they are millions of numbers."""
    metric, targets, met = Metric(METRICS / "mae.py"), np.zeros((5, 2)), dict[int, list[float]]()

    def noted(predictions: list[list[float]], references: list[list[float]]) -> dict[str, float]:
        met.update({id(row): row for row in [*predictions, *references]})
        return {"mae": 0.0}

    monkeypatch.setattr(metric._module, "_compute", noted)
    metric.replicates(targets + 1, targets)
    assert len(met) <= 2 * len(targets)


def test_quality_holds_a_score_per_sample(load_tiny: Callable[[str], LoadedWorkload]) -> None:
    workload = load_tiny("images")
    found = evaluate_quality(Answers(), workload, "search", "v", "accuracy")
    right = workload.split("search").labels() == 2
    assert found.scores == tuple(right.astype(int))
    assert found.value == right.mean()
    assert (found.variant, found.metric, found.split) == ("v", "accuracy", "search")


@pytest.mark.parametrize(("batch_size", "asked"), [(1, {1}), (30, {30, 10}), (64, {64, 36})])
def test_quality_is_asked_in_batches_of_one_size(
    load_tiny: Callable[[str], LoadedWorkload], batch_size: int, asked: set[int]
) -> None:
    seen, session = set(), Answers()

    def run(feeds: Arrays) -> Arrays:
        seen.add(len(feeds["images"]))
        return session.run(feeds)

    predict(run, load_tiny("images"), "search", batch_size)
    assert seen == asked


def test_quality_is_told_apart_by_class(load_tiny: Callable[[str], LoadedWorkload]) -> None:
    """It always answers 2: right on every sample of that class, and on none of the others."""
    found = evaluate_quality(Answers(), load_tiny("images"), "search", "v", "accuracy")
    assert {name: part.value for name, part in found.slices.items()} == {
        "class 0": 0, "class 1": 0, "class 2": 1, "class 3": 0,
    }  # fmt: skip
    assert sum(part.samples for part in found.slices.values()) == found.samples


@pytest.mark.parametrize("metric", ["accuracy", "agreement", "f1_macro"])
def test_commonest_target_is_known_where_answers_are_right_or_wrong(
    load_tiny: Callable[[str], LoadedWorkload], metric: str
) -> None:
    workload = load_tiny("images")
    counts = np.bincount(workload.split("search").labels())
    share = counts.max() / 100 if metric == "accuracy" else None
    assert quality.commonest(Metric(METRICS / f"{metric}.py"), workload) == share


def test_slices_are_the_workloads_where_it_gives_them(
    load_tiny: Callable[[str], LoadedWorkload], monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = load_tiny("images")
    first = np.arange(100) < 10
    monkeypatch.setattr(
        type(workload.definition), "slices", lambda _, data: {"first": first, "none": first & ~first}
    )
    found = evaluate_quality(Answers(), workload, "search", "v", "accuracy")
    assert {name: part.samples for name, part in found.slices.items()} == {"first": 10}
    assert found.slices["first"].scores == (found.scores or ())[:10]


def test_slices_of_another_length_are_told(
    load_tiny: Callable[[str], LoadedWorkload], monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = load_tiny("images")
    monkeypatch.setattr(type(workload.definition), "slices", lambda _, data: {"odd": np.ones(3, bool)})
    with pytest.raises(WorkloadError, match=r"`odd` has bool of shape \(3,\) for 100 samples"):
        evaluate_quality(Answers(), workload, "search", "v", "accuracy")


def test_fidelity_compares_with_the_original_and_needs_no_targets(
    load_tiny: Callable[[str], LoadedWorkload],
) -> None:
    """The original answers 2 to all but every fourth image."""
    loaded = load_tiny("images")
    unlabelled = Split(loaded.split("search").samples)
    workload = dataclasses.replace(loaded, splits=dataclasses.replace(loaded.splits, search=unlabelled))
    predictions = np.where(np.arange(100) % 4 == 0, 1, 2)
    original = quality.Answers(predictions, np.eye(4)[predictions])
    found = evaluate_quality(Answers(), workload, "search", "v", "agreement", original)
    assert (found.value, found.samples, found.slices) == (0.75, 100, {})
    cosine = evaluate_quality(Answers(3.0), workload, "search", "v", "output_cosine", original)
    assert cosine.value == pytest.approx(0.75)
    with pytest.raises(WorkloadError, match="`accuracy` needs targets, but the `search` split has none"):
        evaluate_quality(Answers(), workload, "search", "v", "accuracy")


@pytest.fixture
def named(load_tiny: Callable[[str], LoadedWorkload], monkeypatch: pytest.MonkeyPatch) -> LoadedWorkload:
    """The images, their classes told by names."""
    workload, names = load_tiny("images"), np.asarray(list("abcd"))
    verdict = workload.splits.verdict
    splits = dataclasses.replace(workload.splits, verdict=Split(verdict.samples, names[verdict.labels()]))
    definition = workload.definition.model_copy()
    monkeypatch.setattr(
        type(definition), "postprocess", lambda _, outputs: names[outputs["output"].argmax(1)]
    )
    return dataclasses.replace(workload, definition=definition, splits=splits)


def test_metric_that_takes_no_names_is_told_before_the_verdict(named: LoadedWorkload, tmp_path: Path) -> None:
    """On the search split alone it would not be: there, right answers are counted without it."""
    strict = "SHARE_CORRECT = True\n" + MODULE.replace("BODY", '{"strict": 1.0}')
    (tmp_path / "strict.py").write_text(strict)
    named.definition._folder = tmp_path
    quality.check_metric(Answers().run, named, "accuracy")
    with pytest.raises(MetricError, match="`strict` must be defined on the predictions"):
        quality.check_metric(Answers().run, named, "strict.py")


def beside(run: Callable[[Arrays], Arrays]) -> Callable[[Arrays], Arrays]:
    """The network, if its answers moved with their batch."""
    return lambda feeds: {"output": run(feeds)["output"] + len(feeds["images"]) / 100}


def padded(run: Callable[[Arrays], Arrays]) -> Callable[[Arrays], Arrays]:
    """The network, if its answers were as long as the longest beside them."""
    return lambda feeds: {"output": np.pad(run(feeds)["output"], ((0, 0), (0, len(feeds["images"]))))}


@pytest.mark.parametrize(("network", "mixes"), [(lambda run: run, False), (beside, True), (padded, False)])
def test_answers_that_depend_on_those_beside_them_are_seen(
    load_tiny: Callable[[str], LoadedWorkload],
    network: Callable[[Callable[[Arrays], Arrays]], Callable[[Arrays], Arrays]],
    mixes: bool,
) -> None:
    assert quality.mixes_samples(network(Answers().run), load_tiny("images"), 1e-3) == mixes


def test_outputs_are_kept_where_they_are_asked_for(load_tiny: Callable[[str], LoadedWorkload]) -> None:
    """Of a segmentation they take gigabytes, and most metrics see predictions alone."""
    kept = [predict(Answers().run, load_tiny("images"), "search", outputs=asked) for asked in (True, False)]
    assert [len(answers.outputs) for answers in kept] == [100, 0]


def test_sequences_whose_length_differs_between_batches_are_lists(
    load_tiny: Callable[[str], LoadedWorkload], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a class per token is, padded to the longest of each batch."""
    workload = load_tiny("images")
    tags = lambda _, outputs: np.ones((len(outputs["output"]), len(outputs["output"]) // 10))  # noqa: E731
    monkeypatch.setattr(type(workload.definition), "postprocess", tags)
    found = predict(Answers().run, workload, "search")
    assert (found.predictions[0], found.predictions[99]) == ([1.0] * 6, [1.0] * 3)
    assert found.predictions[[0, 99]].tolist() == [[1.0] * 6, [1.0] * 3]


def test_detections_of_which_a_sample_has_none_or_several_are_lists(
    detector: Path, own_workloads: Path, few_replicates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are evaluated, packaged, and repeated by the package."""
    workload = load({"file": {"path": "images.py"}}, own_workloads)
    scores = np.eye(4)[np.arange(64) % 4]
    found = predict(lambda feeds: {"output": scores[: len(feeds["images"])]}, workload, "search")
    assert [len(row) for row in found.predictions[:4]] == [0, 1, 2, 0]
    assert found.predictions[1] == [[0, 1, 0, 0]]
    boxes = MODULE.replace('{"predictions": value', '{"predictions": [[datasets.Value("float64")]]')
    counted = '{"boxes": float(np.mean([len(p) == r for p, r in zip(predictions, references)]))}'
    (own_workloads / "boxes.py").write_text("import numpy as np\n" + boxes.replace("BODY", counted))
    expected = [
        len(row) == target
        for row, target in zip(found.predictions, workload.split("search").labels(), strict=True)
    ]
    judged = quality.quality_of(found, workload, "search", "v", "boxes.py")
    assert (judged.value, len(judged.replicates)) == (np.mean(expected), few_replicates)

    model = PackagedModel(detector)
    golden = model.golden()
    assert len({len(row) for row in golden["predictions"]}) > 1
    model.check_golden()
    golden["predictions"][0].append([0.0] * 4)
    monkeypatch.setattr(model, "golden", lambda: golden)
    with pytest.raises(BadOutputError, match="must repeat its golden predictions, but for sample 0"):
        model.check_golden()


def test_targets_may_differ_in_shape_too() -> None:
    split = Split(np.zeros((3, 2)), [[], np.ones((2, 4)), np.zeros((1, 4))])  # type: ignore[arg-type]
    assert split.labels().tolist() == [[], [[1.0] * 4] * 2, [[0.0] * 4]]


def test_quality_on_the_verdict_split_is_evaluates_own(load_tiny: Callable[[str], LoadedWorkload]) -> None:
    workload = load_tiny("images").for_validation()
    found = evaluate_quality(Answers(), workload, "verdict", "v", "accuracy")
    assert found.value == pytest.approx((workload.split("verdict").labels() == 2).mean())


def test_quality_of_another_metric_holds_replicates(
    load_tiny: Callable[[str], LoadedWorkload], few_replicates: int
) -> None:
    found = evaluate_quality(Answers(), load_tiny("images"), "search", "v", "f1_macro")
    assert found.scores is None
    assert len(found.replicates) == few_replicates


def test_nan_on_any_sample_is_a_bad_output(load_tiny: Callable[[str], LoadedWorkload]) -> None:
    with pytest.raises(BadOutputError, match="`output` has 256 NaN or infinite values"):
        predict(Answers(float("nan")).run, load_tiny("images"), "search")


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
        Metric.named(f"{name}.py", tmp_path).value(PREDICTIONS, TARGETS)


def test_features_that_change_what_the_metric_is_given_are_told(tmp_path: Path) -> None:
    """As whole numbers, all probabilities are 0: the metric would be of these, its bounds of the others."""
    (tmp_path / "mean.py").write_text(MODULE.replace("BODY", '{"mean": sum(predictions) / len(predictions)}'))
    metric, targets = Metric(tmp_path / "mean.py"), np.asarray([0, 1])
    said = r"`features` of the metric `mean` must hold .*it is 0\.0, and of themselves 0\.93.*float64"
    with pytest.raises(MetricError, match=said):
        metric.value(np.asarray([0.93, 0.93]), targets)
    assert metric.value(np.asarray([1.0, 2.0]), targets) == 1.5


def test_metric_that_a_resample_leaves_undefined_has_no_bounds(tmp_path: Path) -> None:
    """As an AUC is where a resample holds no positive: the metric itself is defined."""
    (tmp_path / "rare.py").write_text(MODULE.replace("BODY", '{"rare": 1 / sum(references)}'))
    metric, targets = Metric(tmp_path / "rare.py"), np.asarray([0, 0, 0, 1])
    assert metric.value(targets, targets) == 1.0
    found = metric.replicates(targets, targets)
    assert 0.2 < np.isnan(found).mean() < 0.45  # 0.75 to the fourth
    interval = bca_interval(1.0, found, metric.jackknife(targets, targets), 4)
    assert (interval.low, interval.high) == (None, None)


def test_slice_on_which_a_metric_is_undefined_is_unknown(
    load_tiny: Callable[[str], LoadedWorkload], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As an AUC is of a part without a positive."""
    (tmp_path / "rare.py").write_text(MODULE.replace("BODY", '{"rare": 1 / sum(references)}'))
    monkeypatch.setattr(quality, "find_metric", lambda name, folder: tmp_path / name)
    workload = load_tiny("images")
    zero = workload.split("search").labels() == 0
    monkeypatch.setattr(type(workload.definition), "slices", lambda _, data: {"zero": zero, "other": ~zero})
    found = evaluate_quality(Answers(), workload, "search", "v", "rare.py")
    assert found.slices["other"].value == found.value
    assert np.isnan(found.slices["zero"].value)
    assert found.slices["zero"].samples == zero.sum()


@pytest.mark.parametrize(
    ("head", "body", "said"),
    [
        pytest.param("RANGE = (0, 1)\n", "2.0 - any(references)", "must lie in its RANGE", id="out of range"),
        pytest.param("", "1.0 if any(references) else len(1)", "TypeError", id="an error of its own"),
    ],
)
def test_fault_of_a_metric_on_a_slice_alone_is_told(
    head: str,
    body: str,
    said: str,
    load_tiny: Callable[[str], LoadedWorkload],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "faulty.py").write_text(head + MODULE.replace("BODY", f'{{"faulty": {body}}}'))
    monkeypatch.setattr(quality, "find_metric", lambda name, folder: tmp_path / name)
    workload = load_tiny("images")
    zero = workload.split("search").labels() == 0
    monkeypatch.setattr(type(workload.definition), "slices", lambda _, data: {"zero": zero})
    with pytest.raises(MetricError, match=said):
        evaluate_quality(Answers(), workload, "search", "v", "faulty.py")


def test_metric_that_only_claims_to_be_the_share_correct_is_told(tmp_path: Path) -> None:
    source = "SHARE_CORRECT = True\n" + MODULE.replace("BODY", '{"boast": 1.0}')
    (tmp_path / "boast.py").write_text(source)
    with pytest.raises(MetricError, match="SHARE_CORRECT"):
        Metric(tmp_path / "boast.py").value(PREDICTIONS, TARGETS)


def test_metric_is_ours_or_a_module_beside_the_workload(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("")
    assert find_metric("accuracy", tmp_path) == METRICS / "accuracy.py"
    assert find_metric("own.py", tmp_path) == tmp_path / "own.py"


@pytest.mark.parametrize("said", ["1", "(1, 0)", "('low', 'high')"])
def test_range_that_is_none_is_told(tmp_path: Path, said: str) -> None:
    (tmp_path / "odd.py").write_text(f"RANGE = {said}\n")
    with pytest.raises(MetricError, match=r"such as \(0, 1\), but odd\.py says"):
        Metric(tmp_path / "odd.py")


@pytest.mark.parametrize("kind", ["", ": Any"], ids=["plain", "annotated"])
def test_what_a_metric_says_of_itself_is_read(tmp_path: Path, kind: str) -> None:
    said = {"SHARE_CORRECT": True, "HIGHER_IS_BETTER": False, "RANGE": (-1, 1), "AGAINST": "outputs"}
    (tmp_path / "own.py").write_text("".join(f"{name}{kind} = {value!r}\n" for name, value in said.items()))
    metric = Metric(tmp_path / "own.py")
    assert (metric.share_correct, metric.higher_is_better) == (True, False)
    assert (metric.value_range, metric.against) == ((-1.0, 1.0), "outputs")


@pytest.mark.parametrize("said", ["RANGE = (0, math.pi)", "HIGHER_IS_BETTER: bool = not True"])
def test_what_a_metric_computes_of_itself_is_refused(tmp_path: Path, said: str) -> None:
    """Left out, an error would count as the higher the better."""
    (tmp_path / "odd.py").write_text(f"import math\nLIMIT = math.pi\n{said}\n")
    with pytest.raises(MetricError, match="must be a plain value") as caught:
        Metric(tmp_path / "odd.py")
    assert f"odd.py says `{said}`" in str(caught.value)


@pytest.mark.parametrize("text", ["def compute(:", "RANGE = (0, 1\n", "x = '\0'"])
def test_metric_that_is_no_python_is_told_as_the_users(tmp_path: Path, text: str) -> None:
    (tmp_path / "odd.py").write_text(text)
    with pytest.raises(MetricError, match=r"a metric must be a Python module, but odd\.py is none: "):
        Metric(tmp_path / "odd.py")


def test_value_outside_the_range_that_a_metric_claims_is_told(tmp_path: Path) -> None:
    (tmp_path / "boast.py").write_text("RANGE = (-1, 1)\n" + MODULE.replace("BODY", '{"boast": 2.0}'))
    with pytest.raises(MetricError, match=r"must lie in its RANGE, \(-1.0, 1.0\), but it is 2.0"):
        Metric(tmp_path / "boast.py").value(PREDICTIONS, TARGETS)


@pytest.mark.parametrize(
    ("name", "limits"),
    [("f1_macro", (0, 1)), ("spearman", (-1, 1)), ("mae", None), ("output_cosine", (-1, 1))],
)
def test_metric_says_how_far_it_goes(name: str, limits: tuple[float, float] | None) -> None:
    assert Metric(METRICS / f"{name}.py").value_range == limits


def test_share_correct_of_several_predictions_per_sample_is_refused_at_once() -> None:
    """As of a class per token: its scores would not be independent, nor one per sample."""
    tokens = np.zeros((4, 3), dtype=np.int64)
    with pytest.raises(WorkloadError, match=r"one prediction per sample, but .* gave shape \(4, 3\)"):
        _scores(tokens, tokens)


@pytest.mark.parametrize("name", ["acuracy", "own", "__init__", "absent.py"])
def test_metric_that_does_not_exist_is_told_with_those_that_do(tmp_path: Path, name: str) -> None:
    (tmp_path / "own.py").write_text("")
    with pytest.raises(
        MetricError, match=rf"there is no `{name}`\. Known are accuracy, agreement, f1_macro"
    ) as caught:
        find_metric(name, tmp_path)
    assert caught.value.exit_code == 2
