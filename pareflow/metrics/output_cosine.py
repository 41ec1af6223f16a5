"""The mean cosine between a variant's outputs and the original's: for embeddings."""

import datasets
import evaluate
import numpy as np

from pareflow.errors import WorkloadError

AGAINST = "outputs"
RANGE = (-1, 1)


class OutputCosine(evaluate.Metric):  # type: ignore[misc]
    """`{"output_cosine": cosine, -1 to 1}`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="the networks' outputs, a vector per sample",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("float64")),
                }
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[list[float]]) -> dict[str, float]:
        ours, theirs = np.asarray(predictions), np.asarray(references)
        if ours.shape[1] < 2:
            raise WorkloadError(
                "a cosine needs two values per sample at least in the output that is judged",
                "there is one",
                "Take a metric of the targets, such as `rmse`, or one of your own with AGAINST",
            )
        lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        return {"output_cosine": float(np.mean((ours * theirs).sum(axis=1) / np.maximum(lengths, 1e-12)))}
