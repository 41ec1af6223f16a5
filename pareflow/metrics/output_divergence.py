"""The mean Kullback-Leibler divergence of a variant's class probabilities from the original's, in nats.

Classes lie on the outputs' last axis; where there are several positions before it, the mean is over all of
them. What the original masks (-inf) counts nothing, and a probability below float32's least, as where the
variant alone masks, counts as that one: 1.2e-38.
"""

import datasets
import evaluate
import numpy as np
from scipy.special import log_softmax

from pareflow.errors import WorkloadError

HIGHER_IS_BETTER = False
AGAINST = "logits"


class OutputDivergence(evaluate.Metric):  # type: ignore[misc]
    """`{"output_divergence": divergence, at least 0}`."""

    def _info(self) -> evaluate.MetricInfo:
        logits = datasets.Sequence(datasets.Sequence(datasets.Value("float64")))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="the networks' logits, a row of classes per position of a sample",
            features=datasets.Features({"predictions": logits, "references": logits}),
        )

    def _compute(
        self, predictions: list[list[list[float]]], references: list[list[list[float]]]
    ) -> dict[str, float]:
        ours, theirs = np.asarray(predictions), np.asarray(references)
        if theirs.shape[-1] < 2:
            raise WorkloadError(
                "a divergence needs two classes at least, on the last axis of the output that is judged",
                "there is one value",
                "Take a metric of the targets, such as `rmse`, or one of your own with AGAINST",
            )
        with np.errstate(invalid="ignore"):  # -inf - -inf
            ours = np.fmax(log_softmax(ours, -1), np.log(np.finfo(np.float32).tiny))
            given = log_softmax(theirs, -1)
            terms = np.where(np.isneginf(theirs), 0, np.exp(given) * (given - ours))
        return {"output_divergence": float(terms.sum(axis=-1).mean())}
