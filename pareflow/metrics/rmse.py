"""The root of the mean squared error of a regression: where a sample has several values, over all of them."""

import datasets
import evaluate
import numpy as np

from pareflow.errors import WorkloadError

HIGHER_IS_BETTER = False


class Rmse(evaluate.Metric):  # type: ignore[misc]
    """`{"rmse": error, in the unit of the targets}`."""

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions and references: a number per sample, or a row of them",
            features=[
                datasets.Features({"predictions": kind, "references": kind})
                for kind in (number, datasets.Sequence(number))
            ],
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        ours, theirs = np.asarray(predictions), np.asarray(references)
        if ours.shape != theirs.shape:
            raise WorkloadError(
                "predictions must have the shape of the targets",
                f"they have shape {ours.shape}, and the targets {theirs.shape}",
                "Mend `postprocess` of the workload",
            )
        return {"rmse": float(np.sqrt(np.mean((ours - theirs) ** 2)))}
