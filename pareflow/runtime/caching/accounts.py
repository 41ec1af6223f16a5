"""What a cache gains and costs, and the switch that turns it off while it loses."""

import time
from collections.abc import Callable, Mapping

LONGEST_REST = 32
"""Times the first rest: a cache that loses again and again is tried that seldom."""


class Account:
    """Hits × milliseconds saved, less what lookups and keeping took.

    What a hit saves is what computing took, the last times counting most. After every `window` lookups the
    account of that window is drawn; a loss switches the cache off for `rest_s` seconds, twice as long after
    each further loss in a row. When it comes on, its first window is not judged: it begins empty, or stale.
    Nor is one with hits before anything was computed: what they saved is not known.
    """

    def __init__(self, window: int, rest_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._window, self._first_rest_s, self._clock = window, rest_s, clock
        self._rest_s = rest_s
        self._off_until: float | None = None
        self._computed_s: float | None = None
        self._warming = True
        self._lookups = self._window_hits = 0
        self._window_cost_s = 0.0
        self._hits = self._misses = self._joined = self._skipped = self._times_off = 0
        self._saved_s = self._cost_s = 0.0

    def on(self) -> bool:
        """Whether the cache is to be asked; a request that passes it by is counted."""
        if self._off_until is None:
            return True
        if self._clock() < self._off_until:
            self._skipped += 1
            return False
        self._off_until, self._warming = None, True
        return True

    def looked_up(self, hits: int, misses: int, cost_s: float, joined: int = 0) -> None:
        """So many were found and not found, which took so long. `joined`: misses that others compute."""
        self._hits += hits
        self._misses += misses
        self._joined += joined
        self._saved_s += hits * (self._computed_s or 0.0)
        self._window_hits += hits
        self._lookups += hits + misses
        self.paid(cost_s)
        if self._lookups >= self._window:
            self._judge()

    def computed(self, count: int, seconds: float) -> None:
        """So many were computed, together in so many seconds."""
        each = seconds / count
        self._computed_s = each if self._computed_s is None else 0.95 * self._computed_s + 0.05 * each

    def paid(self, seconds: float) -> None:
        """What else the cache cost: keeping, embedding, computing again."""
        self._cost_s += seconds
        self._window_cost_s += seconds

    def figures(self) -> Mapping[str, float]:
        return {
            "hits": self._hits,
            "misses": self._misses,
            "joined": self._joined,
            "skipped": self._skipped,
            "saved_ms": 1e3 * self._saved_s,
            "cost_ms": 1e3 * self._cost_s,
            "net_ms": 1e3 * (self._saved_s - self._cost_s),
            "on": float(self._off_until is None),
            "times_off": self._times_off,
        }

    def _judge(self) -> None:
        gain_s = self._window_hits * (self._computed_s or 0.0) - self._window_cost_s
        known = self._computed_s is not None or not self._window_hits
        judged = known and not self._warming
        if judged and gain_s < 0:
            self._off_until = self._clock() + self._rest_s
            self._rest_s = min(2 * self._rest_s, LONGEST_REST * self._first_rest_s)
            self._times_off += 1
        elif judged:
            self._rest_s = self._first_rest_s
        self._warming = False
        self._lookups = self._window_hits = 0
        self._window_cost_s = 0.0
