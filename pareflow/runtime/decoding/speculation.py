"""How many tokens to draft, if any: from what drafts were worth and cost until now."""

from collections import deque
from collections.abc import Mapping
from statistics import fmean, median

MOST = 8
"""The longest draft that is tuned to; longer ones gain nothing at the acceptance of real drafts."""
PROBE_LENGTH, PROBE_ROUNDS = 2, 4
PLAIN_STEPS = 15
"""Of so many plain steps the mean is taken; every `REFRESH`th round is one of them."""
REFRESH = 24
HELD_UP = 3.0
"""What took so many times longer than it should was held up by others, and counts no more than that."""
UNKNOWN_COST = 0.5
MOST_SAVED = 20.0


class Speculation:
    """Decides before each round of decoding, and is told after it what it gave and took.

    Times are counted in steps: what one token takes without drafts, here and now. The gain of drafts of
    length n is `(1 - a^(n+1)) / ((1 - a) (n c + 1))`, with the acceptance `a` and what each drafted token
    costs, `c`. The length of the largest gain is drafted, where that is more than 1.

    Drafting is never done on credit: plain steps put `max_loss` of their time aside, rounds add what they
    gained and pay what they lost, and no round is drafted that could not be paid if all it drafted were
    rejected. So all is at most `max_loss` slower than without drafts, whatever the estimates say. Where the
    gain is below 1, what was saved pays a few short drafts now and then, which measure it anew.

    Source: Leviathan et al., 2023, arXiv:2211.17192, theorem 3.8 and section 3.3. There `c` is the time of
    drafting alone; here it holds what each drafted token adds to the target's pass too, which on a CPU is
    the larger part.
    """

    def __init__(self, length: int | None = None, *, automatic: bool = True, max_loss: float = 0.01) -> None:
        self._lengths = range(1, MOST + 1) if length is None else (length,)
        self._probe = min(PROBE_LENGTH, MOST) if length is None else length
        self._automatic, self._max_loss = automatic, max_loss
        self._plain: deque[float] = deque(maxlen=PLAIN_STEPS)
        self._step = 0.0
        self._acceptance, self._cost = Share(), Share()
        self._best, self._gain = self._probe, 0.0
        self._saved, self._probes_left = 0.0, 0
        self._number = 0
        self._rounds = self._drafted = self._accepted = self._plain_steps = self._probes = 0

    def length(self, room: int) -> int:
        """How many tokens to draft now, at most `room`; 0 for a plain step."""
        self._number += 1
        if room < 1 or len(self._plain) < PLAIN_STEPS or self._number % REFRESH == 0:
            return 0
        return min(room, self._wanted())

    def observe(self, asked: int, accepted: int, seconds: float) -> None:
        """A round was asked for so many drafted tokens, got so many right and one more, and took so long."""
        if asked:
            self._observe_draft(asked, accepted, seconds / self._step)
        else:
            self._plain_steps += 1
            self._plain.append(seconds)
            most = HELD_UP * median(self._plain)
            self._step = fmean(min(seconds, most) for seconds in self._plain)
            self._saved += self._max_loss
        self._saved = min(self._saved, MOST_SAVED)

    def figures(self) -> Mapping[str, float]:
        return {
            "rounds": self._rounds,
            "drafted": self._drafted,
            "accepted": self._accepted,
            "plain_steps": self._plain_steps,
            "probes": self._probes,
            "draft_length": self.best,
        }

    def gain(self, length: int) -> float:
        """How many times faster drafts of this length are expected to be than none."""
        a, c = self._acceptance.value(0.0), self.cost
        tokens = length + 1.0 if a == 1 else (1 - a ** (length + 1)) / (1 - a)
        return tokens / (length * c + 1)

    @property
    def cost(self) -> float:
        """What each drafted token takes, in steps."""
        return max(0.0, self._cost.value(UNKNOWN_COST))

    @property
    def best(self) -> int:
        """The length that is drafted where drafting gains; 0 where it does not."""
        return self._best if self._gain > 1 or not self._automatic else 0

    def _wanted(self) -> int:
        if not self._automatic:
            return self._best
        if self._probes_left == 0 and self._gain > 1:
            return self._best if self._saved >= self._best * self.cost else 0
        if self._probes_left == 0 and self._saved >= PROBE_ROUNDS * self._probe * self.cost:
            self._probes_left = PROBE_ROUNDS
            self._probes += 1
        return self._probe if self._probes_left else 0

    def _observe_draft(self, asked: int, accepted: int, steps: float) -> None:
        self._rounds += 1
        self._drafted += asked
        self._accepted += accepted
        self._probes_left = max(0, self._probes_left - 1)
        steps = min(steps, HELD_UP * (1 + asked * self.cost))  # as plain steps are
        self._acceptance.observe(accepted, accepted + (accepted < asked))
        self._cost.observe(steps - 1, asked)
        self._saved += accepted + 1 - steps
        self._best = max(self._lengths, key=self.gain)
        self._gain = self.gain(self._best)


class Share:
    """A ratio of two sums, in which older parts count less and less."""

    def __init__(self, memory: float = 0.95) -> None:
        self._memory, self._part, self._whole = memory, 0.0, 0.0

    def observe(self, part: float, whole: float) -> None:
        self._part = self._memory * self._part + part
        self._whole = self._memory * self._whole + whole

    def value(self, unknown: float) -> float:
        """The ratio, or `unknown` before anything was seen."""
        return self._part / self._whole if self._whole else unknown
