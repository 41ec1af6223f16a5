"""How good a variant's predictions are: the workload's metric, through `evaluate`, on one split."""

import ast
import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pareflow.compiler.backend import Session
from pareflow.errors import MetricError, WorkloadError
from pareflow.measurement import Quality
from pareflow.network import check_outputs
from pareflow.variant import digest
from pareflow.workload import LoadedWorkload, SplitName

REPLICATES = 1000
_BATCH = 64


def evaluate_quality(
    session: Session, workload: LoadedWorkload, split: SplitName, variant: str, metric_name: str
) -> Quality:
    """The metric over a whole split. Raises: BadOutputError, MetricError, WorkloadError."""
    predictions = predict(session, workload, split, _BATCH)
    metric = Metric(find_metric(metric_name, workload.definition.folder))
    targets = workload.split(split).targets
    scores = _scores(predictions, targets) if metric.share_correct else None
    # `evaluate` takes seconds to import: a share of correct answers goes through it on the verdict split only
    by_hand = scores if split != "verdict" else None
    return Quality(
        variant=variant,
        metric=metric.name,
        split=split,
        split_digest=digest(split, workload.data_digest),
        value=metric.value(predictions, targets) if by_hand is None else float(np.mean(by_hand)),
        scores=scores,
        replicates=metric.replicates(predictions, targets) if scores is None else (),
    )


def _scores(predictions: np.ndarray, targets: np.ndarray) -> tuple[int, ...]:
    """1 where a prediction equals its target. Raises: WorkloadError where their shapes differ."""
    if predictions.shape != targets.shape:
        raise WorkloadError(
            "`postprocess` must give predictions of the targets' shape",
            f"it gave shape {predictions.shape} for targets of shape {targets.shape}",
            "Mend the workload",
        )
    return tuple((predictions == targets).astype(int).tolist())


def predict(session: Session, workload: LoadedWorkload, split: SplitName, batch_size: int) -> np.ndarray:
    """One prediction per sample of the split."""
    predictions = []
    for feeds in workload.feeds(split, batch_size):
        samples = len(next(iter(feeds.values())))
        outputs = session.run(feeds)
        check_outputs(outputs, samples)
        predictions.append(workload.definition.postprocess(outputs))
    joined = np.concatenate(predictions)
    if len(joined) != len(workload.split(split)):
        raise WorkloadError(
            "`postprocess` must give one prediction per sample",
            f"it gave {len(joined)} for {len(workload.split(split))} samples",
            "Mend the workload",
        )
    return joined


class Metric:
    """An `evaluate` module that lies on this machine; loaded when it is first computed."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.share_correct = _declares_share_correct(path)
        """Whether it is the share of predictions that equal their reference: then samples can be paired."""
        self._path = path

    @functools.cached_property
    def _module(self) -> Any:
        return _evaluate().load(str(self._path), keep_in_memory=True)

    def value(self, predictions: np.ndarray, targets: np.ndarray) -> float:
        """The metric of these predictions, by `evaluate`. Raises: MetricError where it is undefined."""
        try:
            found = self._module.compute(predictions=predictions.tolist(), references=targets.tolist())
            value = float(found[self.name])
        except Exception as error:
            raise MetricError(
                f"the metric `{self.name}` must be defined on the predictions",
                f"it raised {type(error).__name__}: {error}",
                "Check what `postprocess` gives, and the metric's module",
            ) from error
        if not np.isfinite(value):
            raise MetricError(
                f"the metric `{self.name}` must be finite", f"it is {value}", "Check the targets"
            )
        if self.share_correct and abs(value - float(np.mean(predictions == targets))) > 1e-9:
            raise MetricError(
                "a metric with SHARE_CORRECT must be the share of correct predictions",
                f"it gave {value}",
                "Remove SHARE_CORRECT from its module",
            )
        return value

    def replicates(self, predictions: np.ndarray, targets: np.ndarray) -> tuple[float, ...]:
        """The metric on bootstrap resamples, the same ones for every variant of a split.

        Source: Efron, 1979, Annals of Statistics 7:1.
        """
        generator = np.random.default_rng(0)
        draws = (generator.integers(len(targets), size=len(targets)) for _ in range(REPLICATES))
        compute = self._module._compute
        return tuple(float(compute(predictions[d].tolist(), targets[d].tolist())[self.name]) for d in draws)


def _declares_share_correct(path: Path) -> bool:
    """Whether the module says `SHARE_CORRECT = True`; read, not imported, since that takes seconds."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node) == "SHARE_CORRECT = True":
            return True
    return False


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
    ours = Path(__file__).parents[1] / "metrics"
    known = sorted(path.stem for path in ours.glob("*.py") if path.stem != "__init__")
    if name in known:
        return ours / f"{name}.py"
    if name.endswith(".py") and (folder / name).is_file():
        return folder / name
    raise MetricError(
        "the metric must be one of pareflow/metrics, or an `evaluate` module beside the workload",
        f"there is no `{name}`",
        f"Known are {', '.join(known)}",
    )
