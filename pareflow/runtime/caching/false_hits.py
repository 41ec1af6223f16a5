"""How often a semantic cache is wrong: measured in operation, and where the threshold comes from."""

import logging
import math
from collections.abc import Mapping
from statistics import median_low

from pareflow.intervals import share_bounds
from pareflow.measurement import CONFIDENCE
from pareflow.runtime.caching.calibration import calibrate
from pareflow.runtime.caching.near_answers import Held

ATTEMPTS = 3
"""Calibrations on shadow pairs, each on pairs of its own, twice as many as before."""

NONE_HELD = Held()

log = logging.getLogger(__name__)


class FalseHits:
    """Hits that were computed again, and how many of them were false.

    `exceeded` is true once the true rate is above the limit with confidence, however often one looks: the
    likelihood of rates above the limit, weighted by a beta distribution around four times the limit, is
    1 / (1 - confidence) times that of the limit itself. Source: Robbins, 1970, Annals of Mathematical
    Statistics 41:1397 (mixtures, by Ville's inequality).
    """

    def __init__(self, limit: float, confidence: float = CONFIDENCE) -> None:
        self._limit, self._confidence = limit, confidence
        self.reruns = self.false_hits = 0
        self.exceeded = False

    def observe(self, false: bool) -> None:
        self.reruns += 1
        self.false_hits += false
        if false and self._log_odds() >= -math.log(1 - self._confidence):
            self.exceeded = True

    def figures(self) -> Mapping[str, float]:
        """The interval is of Clopper and Pearson, each side with the confidence; nothing before a rerun."""
        counts = {"reruns": self.reruns, "false_hits": self.false_hits}
        if not self.reruns:
            return counts
        low, high = share_bounds(self.false_hits, self.reruns, self._confidence)
        rate = self.false_hits / self.reruns
        return {**counts, "false_hit_rate": rate, "false_hit_low": low, "false_hit_high": high}

    def _log_odds(self) -> float:
        """The logarithm of the mixture's likelihood over the limit's."""
        from scipy import special, stats

        a, b = 1.0, 0.25 / self._limit
        false, right = self.false_hits, self.reruns - self.false_hits
        above = stats.beta.logsf(self._limit, a + false, b + right) - stats.beta.logsf(self._limit, a, b)
        mixture = above + special.betaln(a + false, b + right) - special.betaln(a, b)
        return float(mixture - false * math.log(self._limit) - right * math.log1p(-self._limit))


class Threshold:
    """The score from which on a kept answer is given, and how many must be held; None while it is not known.

    Where none is given it comes from shadow pairs: requests that were computed, of which it is known whether
    the kept answer would have done. The chance of a wrong one is shared by all attempts. As many
    must be held as half of the pairs met.
    """

    def __init__(self, value: float | None, limit: float, pairs: int, held: Held = NONE_HELD) -> None:
        self.value, self.held, self._limit, self._needed = value, held, limit, pairs
        self._pairs: list[tuple[float, bool, Held]] = []
        self._attempts = 0
        self.given_up = False

    @property
    def wanted(self) -> bool:
        """Whether pairs are being gathered."""
        return self.value is None and not self.given_up

    def observe(self, score: float, same: bool, held: Held = NONE_HELD) -> None:
        """A shadow pair. The last one that is needed takes some milliseconds."""
        self._pairs.append((score, same, held))
        if len(self._pairs) >= self._needed:
            self._attempt()

    def figures(self) -> Mapping[str, float]:
        known = {} if self.value is None else {"threshold": self.value}
        return {
            **known,
            "shadow_pairs": len(self._pairs),
            "calibrations": self._attempts,
            "needed_entries": self.held.answers,
            "needed_kinds": self.held.kinds,
        }

    def _attempt(self) -> None:
        self._attempts += 1
        confidence = 1 - (1 - CONFIDENCE) / 2**self._attempts
        scores, same, held = zip(*self._pairs, strict=True)
        found = calibrate(scores, same, self._limit, confidence)
        self.value = found.threshold
        self.held = Held(*map(median_low, zip(*held, strict=True)))
        if self.value is None:
            self.given_up = self._attempts == ATTEMPTS
            log.warning("the semantic cache has no threshold from %d pairs: %s", found.pairs, found.reason)
        self._pairs, self._needed = [], 2 * self._needed
