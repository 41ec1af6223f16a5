"""The share of samples on which a variant predicts what the original does: for data without labels."""

import datasets
import evaluate
import numpy as np

SHARE_CORRECT = True
AGAINST = "predictions"


class Agreement(evaluate.Metric):  # type: ignore[misc]
    """`{"agreement": share, 0 to 1}`."""

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
        return {"agreement": float(np.mean(np.asarray(predictions) == np.asarray(references)))}
