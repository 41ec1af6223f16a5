"""The rank correlation of predictions and references: for regressions, and for similarities of embeddings."""

import datasets
import evaluate
from scipy.stats import spearmanr

RANGE = (-1, 1)


class Spearman(evaluate.Metric):  # type: ignore[misc]
    """`{"spearman": correlation, -1 to 1}`."""

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
        return {"spearman": float(spearmanr(predictions, references).statistic)}
