"""How good a variant's predictions are: the workload's metric, through `evaluate`, on one split."""

import importlib.util
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
    return Quality(
        variant=variant,
        metric=metric.name,
        split=split,
        split_digest=digest(split, workload.data_digest),
        value=metric.value(predictions, targets),
        scores=tuple((predictions == targets).astype(int).tolist()) if metric.per_sample else None,
        replicates=() if metric.per_sample else metric.replicates(predictions, targets),
    )


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
    """An `evaluate` module that lies on this machine."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        spec = importlib.util.spec_from_file_location(f"pareflow_metric_{path.stem}", path)
        assert spec is not None and spec.loader is not None  # a .py file always has a loader
        _evaluate()
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.per_sample = bool(getattr(module, "PER_SAMPLE", False))
        self._module: Any = _evaluate().load(str(path), keep_in_memory=True)

    def value(self, predictions: np.ndarray, targets: np.ndarray) -> float:
        """The metric of these predictions. Raises: MetricError where it is undefined or not a number."""
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
        return value

    def replicates(self, predictions: np.ndarray, targets: np.ndarray) -> tuple[float, ...]:
        """The metric on bootstrap resamples, the same ones for every variant of a split.

        Source: Efron, 1979, Annals of Statistics 7:1.
        """
        generator = np.random.default_rng(0)
        draws = (generator.integers(len(targets), size=len(targets)) for _ in range(REPLICATES))
        compute = self._module._compute
        return tuple(float(compute(predictions[d].tolist(), targets[d].tolist())[self.name]) for d in draws)


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
    for path in (ours / f"{name}.py", folder / name):
        if path.is_file() and path.suffix == ".py":
            return path
    known = sorted(path.stem for path in ours.glob("*.py") if path.stem != "__init__")
    raise MetricError(
        "the metric must be one of pareflow/metrics, or an `evaluate` module beside the workload",
        f"there is no `{name}`",
        f"Known are {', '.join(known)}",
    )
