"""The mean cosine between a variant's outputs and the original's: for embeddings."""

import datasets
import evaluate
import numpy as np

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
        lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        return {"output_cosine": float(np.mean((ours * theirs).sum(axis=1) / np.maximum(lengths, 1e-12)))}
