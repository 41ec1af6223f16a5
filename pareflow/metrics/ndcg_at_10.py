"""Normalised discounted cumulative gain of the first ten documents, averaged over queries."""

import datasets
import evaluate
from sklearn.metrics import ndcg_score

RANGE = (0, 1)


class NdcgAt10(evaluate.Metric):  # type: ignore[misc]
    """`{"ndcg_at_10": mean gain, 0 to 1}`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="per query, a score per document, and the relevance of each",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("float64")),
                }
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[list[float]]) -> dict[str, float]:
        return {"ndcg_at_10": float(ndcg_score(references, predictions, k=10))}
