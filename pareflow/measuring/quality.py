"""How good a variant's predictions are: the workload's metric, through `evaluate`, on one split."""

import ast
import functools
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pareflow.comparison import difference
from pareflow.compiler.backend import Session
from pareflow.errors import BadOutputError, MetricError, PareflowError, WorkloadError
from pareflow.measurement import Quality
from pareflow.network import check_outputs
from pareflow.variant import digest
from pareflow.workload import Arrays, LoadedWorkload, SplitName

REPLICATES = 1000
JACKKNIFE_GROUPS = 100
SAYS = {"SHARE_CORRECT", "HIGHER_IS_BETTER", "RANGE", "AGAINST"}
"""What a metric's module may say of itself."""
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")
OURS = Path(__file__).parents[1] / "metrics"
BATCH = 64
"""Samples that are answered together, where an answer does not depend on those beside it."""
ALONE = 16
"""Of these, so many are answered alone too, to see whether it does."""


@dataclass(frozen=True)
class Answers:
    """Predictions, and the output that the workload has judged, one row per sample of a split.

    `outputs` is empty where nobody asked for it, or where rows differ in shape between batches. Predictions
    that do are lists, in an array of objects.
    """

    predictions: np.ndarray
    outputs: np.ndarray

    def part(self, name: str) -> np.ndarray:
        """`predictions`; `outputs`, a row per sample; or `logits`, for each position of it a row of classes.

        Raises: WorkloadError where the outputs cannot be compared.
        """
        if name == "predictions":
            return self.predictions
        count = len(self.outputs)
        if count != len(self.predictions):
            raise WorkloadError(
                "outputs must have one shape to be compared with the original's",
                "it differs from batch to batch",
                "Compare predictions: `metric: agreement`",
            )
        if name == "outputs":
            return self.outputs.reshape(count, -1)
        return self.outputs.reshape(count, -1, self.outputs.shape[-1] if self.outputs.ndim > 1 else 1)


def evaluate_quality(
    session: Session,
    workload: LoadedWorkload,
    split: SplitName,
    variant: str,
    metric_name: str,
    original: Answers | None = None,
    batch_size: int = BATCH,
) -> Quality:
    """The metric over a whole split, and over each slice of it.

    `original` is what the original answered there: what metrics of fidelity compare with, and no other.
    Raises: BadOutputError, MetricError, WorkloadError.
    """
    outputs = Metric.named(metric_name, workload.definition.folder).compares_outputs
    found = predict(session.run, workload, split, batch_size, outputs=outputs)
    return quality_of(found, workload, split, variant, metric_name, original)


def quality_of(
    found: Answers,
    workload: LoadedWorkload,
    split: SplitName,
    variant: str,
    metric_name: str,
    original: Answers | None = None,
) -> Quality:
    """The same of what a variant has answered to the split. Raises: MetricError, WorkloadError."""
    metric = Metric.named(metric_name, workload.definition.folder)
    predictions, references = _compared(metric, found, workload, split, original)
    whole = _quality(metric, predictions, references, exact=split == "verdict")
    slices = {
        name: _of_slice(metric, predictions[rows], references[rows])
        for name, rows in slice_rows(metric, workload, split).items()
    }
    named = partial(
        Quality,
        variant=variant,
        metric=metric.name,
        split=split,
        split_digest=digest(split, workload.data_digest),
        higher_is_better=metric.higher_is_better,
        value_range=metric.value_range,
    )
    return named(**whole, slices={name: named(**part) for name, part in slices.items()})


def check_targets(metric: "Metric", workload: LoadedWorkload) -> None:
    """Look for targets that no prediction can meet, in the splits that are judged. Raises: WorkloadError."""
    if metric.against is not None:
        return
    for name, split in (("search", workload.splits.search), ("verdict", workload.splits.verdict)):
        if split.targets is None:
            continue
        if metric.ours and (missing := _missing(split.targets)):
            raise WorkloadError(
                f"`{metric.name}` needs a target of every sample",
                f"{missing} of {len(split)} in the `{name}` split are NaN",
                "Leave these samples out in `data()`, or in the file that holds them",
            )
        if metric.compares_classes:
            workload.definition.check_labels(split.targets)


def _missing(targets: np.ndarray) -> int:
    """How many samples have NaN as a target, or in it."""
    if targets.dtype.kind != "f":
        return 0
    return int(np.isnan(targets).reshape(len(targets), -1).any(axis=1).sum())


def commonest(metric: "Metric", workload: LoadedWorkload) -> float | None:
    """The share of the search split's most frequent target: who always answers that is right so often.

    None where the metric is no share of answers that are right.
    """
    targets = workload.split("search").targets
    if targets is None or not metric.share_correct or metric.against is not None:
        return None
    ((_, count),) = Counter(map(str, targets.tolist())).most_common(1)
    return count / len(targets)


def check_metric(run: Callable[[Arrays], Arrays], workload: LoadedWorkload, metric_name: str) -> None:
    """See that the original answers the verdict split, and that the metric takes that: a fault which lies
    there alone would end the run after its search. What the metric is there nobody learns (law 5).

    Raises: MetricError, WorkloadError.
    """
    metric, opened = Metric.named(metric_name, workload.definition.folder), workload.for_validation()
    try:
        found = predict(run, opened, "verdict", outputs=metric.compares_outputs)
    except BadOutputError as error:
        raise WorkloadError(
            f"of the original on the `verdict` split, {error.must}",
            error.found,
            "See whether its samples lack values; leave such out in `data()`, or fill them in `preprocess()`",
        ) from error
    predictions, references = _compared(metric, found, opened, "verdict", found)
    try:
        if metric.share_correct:
            _scores(predictions, references)
        metric.value(predictions, references)
    except MetricError as error:
        told = _NUMBER.sub("…", error.found)
        raise MetricError(f"on the `verdict` split, {error.must}", told, error.remedy) from None
    slice_rows(metric, opened, "verdict")


def _compared(
    metric: "Metric", found: Answers, workload: LoadedWorkload, split: SplitName, original: Answers | None
) -> tuple[np.ndarray, np.ndarray]:
    """What a metric takes: predictions, or outputs, and their references. Raises: WorkloadError."""
    if metric.against is not None:
        assert original is not None  # the job that evaluates a fidelity asked the original first
        return found.part(metric.against), original.part(metric.against)
    references = workload.split(split).targets
    if references is None:
        raise WorkloadError(
            f"`{metric.name}` needs targets",
            f"the `{split}` split has none",
            "Give them in `data()`, or compare with the original: `metric: agreement`",
        )
    return found.predictions, references


def _quality(
    metric: "Metric", predictions: np.ndarray, references: np.ndarray, *, exact: bool
) -> dict[str, Any]:
    """What `Quality` holds of these samples.

    `evaluate` takes seconds to import: a share of correct answers goes through it only where `exact`.
    """
    if metric.share_correct:
        scores = _scores(predictions, references)
        value = metric.value(predictions, references) if exact else float(np.mean(scores))
        return {"value": value, "samples": len(scores), "scores": scores}
    return {
        "value": metric.value(predictions, references),
        "samples": len(references),
        "scores": None,
        "replicates": metric.replicates(predictions, references),
        "jackknife": metric.jackknife(predictions, references),
    }


def _of_slice(metric: "Metric", predictions: np.ndarray, references: np.ndarray) -> dict[str, Any]:
    """The same of a part; no number where the metric is undefined there, as an AUC is without a positive."""
    if metric.share_correct or metric.is_defined(predictions, references):
        return _quality(metric, predictions, references, exact=False)
    return {"value": math.nan, "samples": len(references), "scores": None}


def slice_rows(metric: "Metric", workload: LoadedWorkload, split: SplitName) -> dict[str, np.ndarray]:
    """The rows of each slice, shape (k,); empty ones left out. Raises: WorkloadError."""
    data = workload.split(split)
    given = workload.definition.slices(data)
    if given is None:
        given = by_class(data.targets) if metric.share_correct else {}
    found = {}
    for name, rows in given.items():
        mask = np.asarray(rows)
        if mask.dtype != bool or mask.shape != (len(data),):
            raise WorkloadError(
                "`slices()` must give one true or false per sample",
                f"`{name}` has {mask.dtype} of shape {mask.shape} for {len(data)} samples",
                "Mend the workload",
            )
        if mask.any():
            found[name] = np.flatnonzero(mask)
    return found


def by_class(targets: np.ndarray | None) -> dict[str, np.ndarray]:
    """One slice per class, where the targets are class ids."""
    if targets is None or targets.ndim != 1 or targets.dtype.kind not in "iub":
        return {}
    return {f"class {label}": targets == label for label in np.unique(targets).tolist()}


def _scores(predictions: np.ndarray, targets: np.ndarray) -> tuple[int, ...]:
    """1 where a prediction equals its target. Raises: WorkloadError where their shapes differ, or are not
    one value per sample: what is counted are samples, and values of one sample are not independent."""
    if predictions.shape != targets.shape:
        raise WorkloadError(
            "`postprocess` must give predictions of the targets' shape",
            f"it gave shape {predictions.shape} for targets of shape {targets.shape}",
            "Mend the workload",
        )
    if predictions.ndim != 1:
        raise WorkloadError(
            "a share of correct predictions needs one prediction per sample",
            f"`postprocess` gave shape {predictions.shape}",
            "Take a metric of your own, which sees all values of a sample, or make each value a sample",
        )
    return tuple((predictions == targets).astype(int).tolist())


def mixes_samples(run: Callable[[Arrays], Arrays], workload: LoadedWorkload, tolerance: float) -> bool:
    """Whether answers depend on the samples beside them, as where padding to the longest is not masked.

    The first samples of the search split are answered together, and some of them alone.
    """
    split, preprocess = workload.split("search"), workload.definition.preprocess
    count = min(BATCH, len(split))
    together = run(preprocess(split.take(np.arange(count)).samples))
    for position in range(min(ALONE, count)):
        alone = run(preprocess(split.take(np.array([position])).samples))
        for name, answers in together.items():
            ours, theirs = _of_one_shape(answers[position : position + 1], alone[name])
            if not difference(name, ours, theirs, tolerance).within(tolerance):
                return True
    return False


def _of_one_shape(*arrays: np.ndarray) -> list[np.ndarray]:
    """Arrays without what some have less of: what is behind a text differs with the longest beside it."""
    sizes = map(min, *(array.shape for array in arrays))
    kept = tuple(map(slice, sizes))
    return [array[kept] for array in arrays]


def predict(
    run: Callable[[Arrays], Arrays],
    workload: LoadedWorkload,
    split: SplitName,
    batch_size: int = BATCH,
    *,
    outputs: bool = False,
) -> Answers:
    """What is answered to every sample of the split; of `outputs`, where they are asked for, the judged one.

    Raises: BadOutputError, WorkloadError.
    """
    predictions, judged = [], []
    for feeds in workload.feeds(split, batch_size):
        answers = run(feeds)
        check_outputs(answers, samples=len(next(iter(feeds.values()))))
        predictions.append(workload.definition.predicted(answers))
        if outputs:
            judged.append(workload.definition.judged(answers))
    joined = _joined(predictions)
    if len(joined) != len(workload.split(split)):
        raise WorkloadError(
            "`postprocess` must give one prediction per sample",
            f"it gave {len(joined)} for {len(workload.split(split))} samples",
            "Mend the workload",
        )
    return Answers(joined, np.concatenate(judged) if _alike(judged) else np.empty(0))


def _alike(batches: Sequence[np.ndarray]) -> bool:
    """Whether the rows of all have one shape."""
    return len({batch.shape[1:] for batch in batches}) == 1


def _joined(batches: Sequence[np.ndarray]) -> np.ndarray:
    """The rows of all; as lists, where they differ in shape from batch to batch, as sequences may."""
    if _alike(batches):
        return np.concatenate(batches)
    rows = [row for batch in batches for row in batch.tolist()]
    joined = np.empty(len(rows), dtype=object)
    for position, row in enumerate(rows):
        joined[position] = row
    return joined


class Metric:
    """An `evaluate` module that lies on this machine; loaded when it is first computed.

    What it says of itself in capitals is read from its source, since importing it takes seconds:
    `SHARE_CORRECT = True` where it is the share of predictions that equal their reference, so that two
    models can be paired by sample; `HIGHER_IS_BETTER = False` for errors; `RANGE = (0, 1)` where it has a
    least and a most; `AGAINST = "predictions"`, `"outputs"` or `"logits"` where it compares with those of the
    original, and needs no targets.
    """

    def __init__(self, path: Path) -> None:
        said = _constants(path)
        self.name = path.stem
        self.share_correct: bool = said.get("SHARE_CORRECT", False)
        self.higher_is_better: bool = said.get("HIGHER_IS_BETTER", True)
        self.against: str | None = said.get("AGAINST")
        self.value_range: tuple[float, float] | None = _range(path, said.get("RANGE"))
        self._path = path

    @classmethod
    def named(cls, name: str, folder: Path) -> "Metric":
        """The metric of `find_metric`. Raises: MetricError."""
        return cls(find_metric(name, folder))

    @property
    def ours(self) -> bool:
        """Whether it comes with pareflow."""
        return self._path.parent == OURS

    @property
    def compares_classes(self) -> bool:
        """Whether a prediction is right where it equals its target, and nowhere else."""
        return self.against is None and (self.share_correct or self.name == "f1_macro")

    @property
    def compares_outputs(self) -> bool:
        """Whether it compares the network's outputs, which may be large, with the original's."""
        return self.against not in (None, "predictions")

    @property
    def scale(self) -> tuple[float, float] | None:
        """The least and the most that it can be, where that is known: of a share it is."""
        return (0.0, 1.0) if self.share_correct else self.value_range

    @functools.cached_property
    def _module(self) -> Any:
        return _evaluate().load(str(self._path), keep_in_memory=True)

    def value(self, predictions: np.ndarray, targets: np.ndarray) -> float:
        """The metric of these predictions, by `evaluate`.

        Raises: MetricError where it is undefined, or not what its module says of it.
        """
        try:
            value = self._computed(predictions, targets)
            plain = value if self.share_correct else self._plain(predictions.tolist(), targets.tolist())
        except PareflowError:
            raise
        except Exception as error:
            shapes = f"{predictions.shape} beside {targets.shape}"
            raise MetricError(
                f"the metric `{self.name}` must be defined on the predictions",
                f"on shapes {shapes} it raised {type(error).__name__}: {error}",
                "Check what `postprocess` gives, and the metric's module",
            ) from error
        if not np.isfinite(value):
            raise MetricError(
                f"the metric `{self.name}` must be finite", f"it is {value}", "Check the targets"
            )
        if not math.isclose(plain, value, rel_tol=1e-6, abs_tol=1e-9):
            raise MetricError(
                f"the `features` of the metric `{self.name}` must hold predictions and targets as they are",
                f"of what they make of them it is {value}, and of themselves {plain}",
                'Let them be `datasets.Value("float64")` where predictions are numbers and no class ids, and '
                "give predictions and targets of one kind",
            )
        if self.value_range is not None and not self.value_range[0] <= value <= self.value_range[1]:
            raise MetricError(
                f"the metric `{self.name}` must lie in its RANGE, {self.value_range}",
                f"it is {value}",
                "Mend RANGE in its module",
            )
        if self.share_correct and abs(value - float(np.mean(predictions == targets))) > 1e-9:
            raise MetricError(
                "a metric with SHARE_CORRECT must be the share of correct predictions",
                f"it gave {value}",
                "Give predictions and targets of one kind, or remove SHARE_CORRECT from its module",
            )
        return value

    def is_defined(self, predictions: np.ndarray, targets: np.ndarray) -> bool:
        """Whether it is a finite number; else a ValueError or an ArithmeticError may say so."""
        try:
            return math.isfinite(self._computed(predictions, targets))
        except (ValueError, ArithmeticError):
            return False
        except Exception:  # a fault, which `value` tells
            return True

    def _computed(self, predictions: np.ndarray, targets: np.ndarray) -> float:
        found = self._module.compute(predictions=predictions.tolist(), references=targets.tolist())
        return float(found[self.name])

    def _plain(self, predictions: list[Any], targets: list[Any]) -> float:
        """The same of what is given itself, not of what the module's `features` make of it."""
        return float(self._module._compute(predictions, targets)[self.name])

    def replicates(self, predictions: np.ndarray, targets: np.ndarray) -> tuple[float, ...]:
        """The metric on bootstrap resamples, the same ones for every variant of a split.

        Source: Efron, 1979, Annals of Statistics 7:1.
        """
        generator = np.random.default_rng(0)
        draws = (generator.integers(len(targets), size=len(targets)) for _ in range(REPLICATES))
        return self._on(predictions, targets, draws)

    def jackknife(self, predictions: np.ndarray, targets: np.ndarray) -> tuple[float, ...]:
        """The metric with each sample left out, or each of `JACKKNIFE_GROUPS` groups where there are more.

        Source: Efron and Tibshirani, 1993, An Introduction to the Bootstrap, section 14.3.
        """
        rows = np.arange(len(targets))
        groups = np.array_split(rows, min(len(rows), JACKKNIFE_GROUPS))
        kept = (np.delete(rows, group) for group in groups) if len(groups) > 1 else iter([rows])
        return self._on(predictions, targets, kept)

    def _on(
        self, predictions: np.ndarray, targets: np.ndarray, draws: Iterator[np.ndarray]
    ) -> tuple[float, ...]:
        ours, theirs = predictions.tolist(), targets.tolist()

        def of(draw: list[int]) -> float:
            try:
                return self._plain([ours[i] for i in draw], [theirs[i] for i in draw])
            except Exception:  # such as an AUC without a positive: there is no interval then
                return math.nan

        return tuple(of(draw.tolist()) for draw in draws)


def _constants(path: Path) -> dict[str, Any]:
    """What the module says of itself. Raises: MetricError unless it is Python, and that a plain value."""
    try:
        module = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise MetricError(
            "a metric must be a Python module", f"{path.name} is none: {error}", "Mend the metric's module"
        ) from error
    found = {}
    for node in module.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for name in SAYS.intersection(map(ast.unparse, targets)):
            try:
                found[name] = ast.literal_eval(node.value)
            except (ValueError, TypeError) as error:
                raise MetricError(
                    "what a metric says of itself must be a plain value: it is read from its source",
                    f"{path.name} says `{ast.unparse(node)}`",
                    "Write the value itself, such as `RANGE = (0, 1)`",
                ) from error
    return found


def _range(path: Path, said: Any) -> tuple[float, float] | None:
    """What a module gives as RANGE. Raises: MetricError unless it is two rising numbers."""
    match said:
        case None:
            return None
        case (int() | float() as least, int() | float() as most) if least < most:
            return float(least), float(most)
    raise MetricError(
        "a metric's RANGE must be the least and the most it can be, such as (0, 1)",
        f"{path.name} says {said!r}",
        "Mend it, or remove it where there are no such limits",
    )


def _evaluate() -> Any:
    """The library, imported without transformers' pipelines: 10 s of imports that only its evaluators use."""
    hidden = "transformers" not in sys.modules
    if hidden:
        sys.modules["transformers"] = None  # type: ignore[assignment]  # makes `import transformers` raise
    try:
        import evaluate
    finally:
        if hidden:
            del sys.modules["transformers"]
    return evaluate


def find_metric(name: str, folder: Path) -> Path:
    """The file of a metric: in pareflow/metrics, or an `evaluate` module in `folder`. Raises: MetricError."""
    known = sorted(path.stem for path in OURS.glob("*.py") if path.stem != "__init__")
    if name in known:
        return OURS / f"{name}.py"
    if name.endswith(".py") and (folder / name).is_file():
        return folder / name
    raise MetricError(
        "the metric must be one of pareflow/metrics, or an `evaluate` module beside the workload",
        f"there is no `{name}`",
        f"Known are {', '.join(known)}",
    )
