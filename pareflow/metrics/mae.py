"""The mean absolute error of a regression."""

import datasets
import evaluate
import numpy as np

HIGHER_IS_BETTER = False


class Mae(evaluate.Metric):  # type: ignore[misc]
    """`{"mae": error, in the unit of the targets}`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions and references: numbers",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {"mae": float(np.mean(np.abs(np.asarray(predictions) - np.asarray(references))))}
