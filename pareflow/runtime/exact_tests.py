"""Whether a loss is small enough: tests whose error holds for any number of samples, not only for many."""

import functools

import numpy as np

from pareflow.intervals import paired_score, share_bounds

NUISANCE_ERROR = 1e-3
"""Of the test of paired shares, spent on where the unknown share of gains lies."""
GRID = 41
"""Points of that interval at which the test is evaluated; its p-value is smooth between them."""
STAKES = 10
"""Constant bets that the test of means is averaged over."""


@functools.lru_cache(4096)
def shares_p_value(lost: int, won: int, n: int, margin: float) -> float:
    """How likely so small a loss would be if it really were `margin` or more: for outcomes right or wrong.

    Of `n` pairs `lost` were right before and wrong after, and `won` the other way round; the loss is the
    difference of their shares. The probability of every table that speaks as strongly or more against the
    hypothesis, by Tango's score, at the least favourable share of gains inside its Clopper-Pearson interval.
    Source: Hsueh, Liu and Chen, 2001, Biometrics 57:478 (the exact unconditional test); Berger and Boos,
    1994, Journal of the American Statistical Association 89:1012 (the interval for the nuisance).
    """
    from scipy import special  # here, since `import pareflow` must be quick

    low, high = share_bounds(won, n, 1 - NUISANCE_ERROR / 2)
    shares = np.linspace(low, min(high, (1 - margin) / 2), GRID)
    gains = _likely(n, shares[0], shares[-1])
    most = _most_lost(float(paired_score(lost, won, n, margin)), gains, n, margin)
    share = shares[:, None]
    gained = special.xlogy(gains, share) + special.xlog1py(n - gains, -share)
    tables = np.exp(gained - special.betaln(gains + 1, n - gains + 1) - np.log(n + 1))
    lost_little = special.bdtr(np.maximum(most, 0), (n - gains).astype(int), (share + margin) / (1 - share))
    tables *= np.where(most < 0, 0.0, lost_little)
    return min(1.0, float(tables.sum(axis=1).max()) + NUISANCE_ERROR)


def _likely(n: int, low: float, high: float) -> np.ndarray:
    """The counts that shares from `low` to `high` give, but for a probability below 1e-9 (Bernstein)."""
    least, most = n * low - 20 - 8 * np.sqrt(n * low), n * high + 20 + 8 * np.sqrt(n * high)
    return np.arange(max(0, int(least)), min(n, int(most)) + 1, dtype=float)


def _most_lost(score: float, gains: np.ndarray, n: int, margin: float) -> np.ndarray:
    """Per number of gains the most losses with a score of at most `score`; it grows with them. -1 if none."""
    low, high = np.full(len(gains), -1.0), n - gains
    while (low < high).any():
        middle = np.ceil((low + high) / 2)
        inside = paired_score(middle, gains, n, margin) <= score + 1e-12
        low, high = np.where(inside, middle, low), np.where(inside, high, middle - 1)
    return low


def mean_p_value(losses: np.ndarray, margin: float) -> float:
    """How likely so small a mean would be if it really were `margin` or more; each loss from -1 to 1.

    Whoever bets on a smaller mean at fair odds multiplies his stake by 1/p or more only with probability p.
    The stake is spread evenly over constant bets, the largest of which can lose all but a tenth.
    Source: Waudby-Smith and Ramdas, 2024, Journal of the Royal Statistical Society B 86:1,
    arXiv:2010.09686, sections 4 and B.3 (diversified betting).
    """
    from scipy import special

    largest = 0.9 / (1 - margin)
    bets = np.geomspace(largest / 50, largest, STAKES)
    growth = np.log1p(bets[:, None] * (margin - np.asarray(losses, dtype=float))).sum(axis=1)
    return min(1.0, float(np.exp(np.log(STAKES) - special.logsumexp(growth))))
