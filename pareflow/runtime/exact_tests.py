"""Whether a loss is small enough: tests whose error holds for any number of samples, not only for many."""

import numpy as np
from scipy import special, stats

NUISANCE_ERROR = 1e-3
"""Of the test of paired shares, spent on where the unknown share of gains lies."""
GRID = 41
"""Points of that interval at which the test is evaluated; its p-value is smooth between them."""
STAKES = 10
"""Constant bets that the test of means is averaged over."""


def shares_p_value(lost: int, won: int, n: int, margin: float) -> float:
    """How likely so small a loss would be if it really were `margin` or more: for outcomes right or wrong.

    Of `n` pairs `lost` were right before and wrong after, and `won` the other way round; the loss is the
    difference of their shares. The probability of every table that speaks as strongly or more against the
    hypothesis, by Tango's score, at the least favourable share of gains inside its Clopper-Pearson interval.
    Source: Hsueh, Liu and Chen, 2001, Biometrics 57:478 (the exact unconditional test); Berger and Boos,
    1994, Journal of the American Statistical Association 89:1012 (the interval for the nuisance).
    """
    low, high = _clopper_pearson(won, n)
    shares = np.linspace(low, min(high, (1 - margin) / 2), GRID)
    rare = 1e-9
    gains = np.arange(stats.binom.ppf(rare, n, shares[0]), stats.binom.ppf(1 - rare, n, shares[-1]) + 1)
    most = _most_lost(float(_score(lost, won, n, margin)), gains, n, margin)
    share = shares[:, None]
    tables = stats.binom.pmf(gains, n, share) * stats.binom.cdf(
        most, n - gains, (share + margin) / (1 - share)
    )
    return min(1.0, float(tables.sum(axis=1).max()) + NUISANCE_ERROR + 2 * rare)


def _clopper_pearson(successes: int, n: int) -> tuple[float, float]:
    """Where a share lies, but for an error of NUISANCE_ERROR."""
    found = stats.binomtest(successes, n).proportion_ci(1 - NUISANCE_ERROR, method="exact")
    return float(found.low), float(found.high)


def _score(lost: np.ndarray | float, won: np.ndarray | float, n: int, margin: float) -> np.ndarray:
    """How many standard errors the loss lies above `margin`. Source: Tango, 1998, equations 8 to 10."""
    a, b = 2 * n, -lost - won + (2 * n - lost + won) * margin
    c = -won * margin * (1 - margin)
    share = (np.sqrt(np.maximum(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = np.maximum(n * (2 * share + margin * (1 - margin)), 1e-300)
    return np.asarray((lost - won - n * margin) / np.sqrt(variance))


def _most_lost(score: float, gains: np.ndarray, n: int, margin: float) -> np.ndarray:
    """Per number of gains the most losses with a score of at most `score`; it grows with them. -1 if none."""
    low, high = np.full(len(gains), -1.0), n - gains
    while (low < high).any():
        middle = np.ceil((low + high) / 2)
        inside = _score(middle, gains, n, margin) <= score + 1e-12
        low, high = np.where(inside, middle, low), np.where(inside, high, middle - 1)
    return low


def mean_p_value(losses: np.ndarray, margin: float) -> float:
    """How likely so small a mean would be if it really were `margin` or more; each loss from -1 to 1.

    Whoever bets on a smaller mean at fair odds multiplies his stake by 1/p or more only with probability p.
    The stake is spread evenly over constant bets, the largest of which can lose all but a tenth.
    Source: Waudby-Smith and Ramdas, 2024, Journal of the Royal Statistical Society B 86:1,
    arXiv:2010.09686, sections 4 and B.3 (diversified betting).
    """
    largest = 0.9 / (1 - margin)
    bets = np.geomspace(largest / 50, largest, STAKES)
    growth = np.log1p(bets[:, None] * (margin - np.asarray(losses, dtype=float))).sum(axis=1)
    return min(1.0, float(np.exp(np.log(STAKES) - special.logsumexp(growth))))
