"""The F1 score of each class, averaged over the classes."""

import datasets
import evaluate
from sklearn.metrics import f1_score

RANGE = (0, 1)


class F1Macro(evaluate.Metric):  # type: ignore[misc]
    """`{"f1_macro": mean}`, 0 to 1."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions and references: class ids, or their names",
            features=[
                datasets.Features({"predictions": datasets.Value(kind), "references": datasets.Value(kind)})
                for kind in ("string", "int64")
            ],
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"f1_macro": float(f1_score(references, predictions, average="macro", zero_division=0))}
