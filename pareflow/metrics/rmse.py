"""The root of the mean squared error of a regression."""

import datasets
import evaluate
import numpy as np

HIGHER_IS_BETTER = False


class Rmse(evaluate.Metric):  # type: ignore[misc]
    """`{"rmse": error, in the unit of the targets}`."""

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
        errors = np.asarray(predictions) - np.asarray(references)
        return {"rmse": float(np.sqrt(np.mean(errors**2)))}
