"""How sure a classifier is of each of its answers, from its logits."""

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from pareflow.errors import UnsuitableError

Measure = Literal["max_softmax", "margin"]
"""The probability of the likeliest class, or how far it lies above that of the second."""


def confidence(outputs: Mapping[str, np.ndarray], output: str, measure: Measure) -> np.ndarray:
    """From 0 to 1 per row, shape (batch,); NaN where a logit is no number.

    `output` names the logits, shape (batch, classes); empty, they are the only output.
    Source: Hendrycks and Gimpel, 2017, arXiv:1610.02136 (the likeliest class); Scheffer et al., 2001,
    Advances in Intelligent Data Analysis, 309 (margin).
    Raises: UnsuitableError.
    """
    logits = named(outputs, output)
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise UnsuitableError(
            "logits must have the shape (batch, classes)",
            f"these have {logits.shape}",
            "Name the output that holds them in `output`",
        )
    return _MEASURES[measure](_softmax(logits))


def named(outputs: Mapping[str, np.ndarray], output: str) -> np.ndarray:
    """The output of this name, or the only one. Raises: UnsuitableError."""
    if output in outputs:
        return outputs[output]
    if output or len(outputs) != 1:
        raise UnsuitableError(
            "`output` must name one of the outputs",
            f"it is '{output}', and there are {', '.join(sorted(outputs)) or 'none'}",
            "Mend `output`",
        )
    return next(iter(outputs.values()))


def _softmax(logits: np.ndarray) -> np.ndarray:
    """In double precision. A row with an infinite logit becomes NaN: it is no answer to be sure of."""
    with np.errstate(invalid="ignore"):
        powers = np.exp(logits - logits.max(axis=1, keepdims=True).astype(np.float64))
    shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _margin(shares: np.ndarray) -> np.ndarray:
    top = np.partition(shares, -2, axis=1)
    gap: np.ndarray = top[:, -1] - top[:, -2]
    return gap


_MEASURES: Mapping[Measure, Callable[[np.ndarray], np.ndarray]] = {
    "max_softmax": lambda shares: np.asarray(shares.max(axis=1)),
    "margin": _margin,
}
