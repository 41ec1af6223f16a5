"""The mean Kullback-Leibler divergence of a variant's class probabilities from the original's, in nats."""

import datasets
import evaluate
import numpy as np
from scipy.special import log_softmax

HIGHER_IS_BETTER = False
AGAINST = "outputs"


class OutputDivergence(evaluate.Metric):  # type: ignore[misc]
    """`{"output_divergence": divergence, at least 0}`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="the networks' outputs, as logits",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("float64")),
                }
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[list[float]]) -> dict[str, float]:
        ours, theirs = log_softmax(np.asarray(predictions), 1), log_softmax(np.asarray(references), 1)
        divergence = (np.exp(theirs) * (theirs - ours)).sum(axis=1)
        return {"output_divergence": float(divergence.mean())}
