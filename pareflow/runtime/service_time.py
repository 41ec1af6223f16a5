"""How long a batch takes, learnt from those before it: `fixed + count × each`."""

import math


class ServiceTime:
    """A line through the last batches' times, older ones counting less and less.

    Source: the fit of BentoML's dispatcher (`duration = a·n + b`), here with weights that fall by `memory`
    per batch, by which it follows a machine that gets slower or faster.
    """

    def __init__(self, memory: float = 0.98) -> None:
        self._memory = memory
        self._weight = self._n = self._t = self._nn = self._nt = 0.0

    def observe(self, count: int, seconds: float) -> None:
        """A batch of so many samples took so long."""
        kept = self._memory
        self._weight = kept * self._weight + 1
        self._n = kept * self._n + count
        self._t = kept * self._t + seconds
        self._nn = kept * self._nn + count * count
        self._nt = kept * self._nt + count * seconds

    def predict(self, count: int) -> float:
        """Seconds for a batch of so many samples; NaN before the first was seen.

        Where all batches were of one size, time grows in proportion above it, and does not fall below.
        """
        if not self._weight:
            return math.nan
        n, t = self._n / self._weight, self._t / self._weight
        spread = self._nn / self._weight - n * n
        if spread < 1e-9 * n * n:
            return t * max(1.0, count / n)
        each = max(0.0, (self._nt / self._weight - n * t) / spread)
        return max(0.0, t + each * (count - n))
