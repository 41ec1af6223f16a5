"""The perplexity of a language model: the exponential of its mean surprise per token."""

import datasets
import evaluate
import numpy as np

HIGHER_IS_BETTER = False


class Perplexity(evaluate.Metric):  # type: ignore[misc]
    """`{"perplexity": perplexity, at least 1}`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="per sample, the sum of -log p of its tokens in nats, and how many",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {"perplexity": float(np.exp(np.sum(predictions) / np.sum(references)))}
