"""The share of samples whose prediction equals the reference."""

import datasets
import evaluate
import numpy as np

SHARE_CORRECT = True
"""It is the share of predictions that equal their reference, so that two models can be paired by sample."""


class Accuracy(evaluate.Metric):  # type: ignore[misc]
    """`{"accuracy": share}`, 0 to 1."""

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
        return {"accuracy": float(np.mean(np.asarray(predictions) == np.asarray(references)))}
