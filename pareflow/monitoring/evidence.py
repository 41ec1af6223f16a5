"""Evidence that a share or a mean is above its limit now, looked at after every window and yet not inflated.

One window multiplies the wealth of a few bets against "the mean is at most the limit"; fair bets gain nothing
on average while that holds. A breach may begin at any time, so that a new stake is laid at each window
(Shiryaev and Roberts): all stakes of a week together are 1. By Ville's inequality the wealth then reaches
1/error with a chance of at most `error` in that week, however often one looks, and whatever the shares do
below the limit. What is bounded is the chance where at each moment the mean is at most the limit: a burst of
errors is above it, and no false alarm. One window can multiply the wealth by no more than the `windows`-th
root of what is needed, which only makes it smaller: about so many windows must agree.
Source: Shin, Ramdas and Rinaldo, 2022, arXiv:2203.03532, section 3 (e-detectors; here with stakes that sum to
1); Waudby-Smith and Ramdas, 2020, arXiv:2010.09686, section 4 (bets on a bounded mean); Robbins, 1970, Annals
of Mathematical Statistics 41:1397 (`always_valid_share`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from scipy import optimize, special

from pareflow.measurement import CONFIDENCE, Interval

WEEK_S = 604_800.0
BETS = 8
_LEAST, _MOST = 1e-300, 1 - 1e-16


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What is tested: a mean of values in [0, 1] against its limit, and at which error a week."""

    limit: float
    error: float
    starts: int
    """Windows in a week."""
    windows: int
    """As many must agree, at least."""

    @property
    def needed(self) -> float:
        """The logarithm of the wealth at which it is a breach, stakes at 1 in all."""
        return -math.log(self.error)

    @property
    def most(self) -> float:
        """The logarithm of the most that one window may multiply by: one bet alone may win in so many."""
        return (self.needed + math.log(self.starts * BETS)) / self.windows + 1e-9

    def bets(self) -> list[float]:
        """From cautious, for means just above the limit, to bold: each as a share of what may be staked."""
        low = min(0.25 * self.limit / (1 - self.limit), 0.02)
        return [low * (0.5 / low) ** (i / (BETS - 1)) for i in range(BETS)]


@dataclass(frozen=True, slots=True)
class Evidence:
    """The wealth of each bet as a logarithm, and how many of the week's stakes are laid."""

    wealth: tuple[float, ...] = (-math.inf,) * BETS
    laid: int = 0

    def after(self, values: Mapping[float, int], test: Hypothesis) -> "Evidence":
        """With one more window, in which each value in [0, 1] was seen so often; an empty one is none."""
        seen = [(value, count) for value, count in values.items() if count]
        if not seen:
            return self
        before = Evidence() if self.laid >= test.starts else self
        stake = -math.log(test.starts)
        wealth = []
        for share, log_wealth in zip(test.bets(), before.wealth, strict=True):
            bet = share / test.limit
            gain = sum(count * math.log1p(bet * (value - test.limit)) for value, count in seen)
            wealth.append(_log_sum(log_wealth, stake) + min(gain, test.most))
        return Evidence(tuple(wealth), before.laid + 1)

    def total(self) -> float:
        """The logarithm of the wealth of all bets, each with an equal part of the stakes."""
        most = max(self.wealth)
        if most == -math.inf:
            return most
        return most + math.log(sum(math.exp(one - most) for one in self.wealth) / BETS)

    def proves(self, test: Hypothesis) -> bool:
        """Whether the limit is broken, at the test's error."""
        return self.total() >= test.needed

    def restarted(self) -> "Evidence":
        """Without the wealth, for another version; what was laid this week stays laid."""
        return replace(Evidence(), laid=self.laid)

    def to_json(self) -> dict[str, Any]:
        return {"wealth": [max(one, -1e9) for one in self.wealth], "laid": self.laid}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Evidence":
        return cls(tuple(document["wealth"]), document["laid"])


def always_valid_share(successes: float, n: int, confidence: float = CONFIDENCE) -> Interval:
    """An interval for a share that holds at every n at once: one may look all the time.

    Each bound is one-sided at `confidence`. The shares against which a uniform mixture of bets has not
    won yet: B(k + 1, n - k + 1) / (p^k (1 - p)^(n - k)) is below 1/(1 - confidence). `successes` may be a sum
    of shares between 0 and 1: by the inequality of the means that only makes the bets win less.
    """
    if n == 0:
        return Interval(float("nan"), None, None, 0, confidence)
    estimate = successes / n
    bound = -math.log(1 - confidence) - float(special.betaln(successes + 1, n - successes + 1))

    def over(share: float) -> float:
        """Negative inside."""
        likelihood = special.xlogy(successes, share) + special.xlog1py(n - successes, -share)
        return -float(likelihood) - bound

    # Where so little was seen that the last share on a side is not refuted, the interval is open there.
    low = 0.0 if over(_LEAST) <= 0 else optimize.brentq(over, _LEAST, estimate)
    high = 1.0 if over(_MOST) <= 0 else optimize.brentq(over, estimate, _MOST)
    return Interval(estimate, float(low), float(high), n, confidence)


def _log_sum(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    high, low = max(a, b), min(a, b)
    return high + math.log1p(math.exp(low - high))
