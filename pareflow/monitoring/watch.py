"""All rules of one served model over its windows: what is seen becomes figures, and sometimes a breach."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from pareflow.errors import InputError
from pareflow.monitoring import drift
from pareflow.monitoring.comparing import COUNT, FEATURE
from pareflow.monitoring.evidence import WEEK_S, Hypothesis, always_valid_share
from pareflow.monitoring.exposition import Reading, Window, between
from pareflow.monitoring.labels import Joined
from pareflow.monitoring.rules import Drift, RuleName, Rules
from pareflow.monitoring.state import Breach, State
from pareflow.workload import Arrays

AGREEING = 2
"""Windows in a row that must have drifted."""
LABELS_AT_ONCE = 50
"""Labels come in heaps: so many are one window."""
PROCESSES = 1000
"""Replicas whose last reading is remembered; servers that are started again and again are as many."""


class Watch:
    """The rules over one version. `state` is what is remembered."""

    def __init__(self, rules: Rules, state: State) -> None:
        self.rules, self.state = rules, state
        self.figures: dict[str, float] = {}
        self._then = rules.named()
        self._reference: Arrays = {}
        self._allowed = math.nan
        self._last: dict[float | None, Reading] = {}
        self._rows: dict[float | None, Reading] = {}
        self._live: dict[RuleName, list[Arrays]] = {}
        self._since_s: dict[RuleName, float] = {}
        self._count: dict[RuleName, int] = {}

    def compare_with(self, reference: Arrays, max_drop: float | None) -> None:
        """From now on take live requests beside the compared calibration data; `max_drop` is the SLA's, where
        that is a share of the predictions.

        Raises: InputError where `variant_drift` has no limit.
        """
        self._reference = reference
        rule = self.rules.variant_drift
        if rule is None:
            return
        self.figures["variant_drift.calibration"] = float((~reference["agrees"]).mean())
        self._allowed = rule.max_disagreement or max_drop or math.nan
        if math.isnan(self._allowed):
            raise InputError(
                "`variant_drift` needs a limit above 0",
                "neither `max_disagreement` nor the SLA's `quality.max_drop`, of a share, gives one",
                "Give `max_disagreement`",
            )

    def reads(self, reading: Reading) -> list[Breach]:
        """One more reading of the server's metrics, compared with the last one of the same process.

        Of a process that began since the last reading of any, all that it did counts.
        """
        before = self._last.pop(reading.started_s, None) or self._nothing_before(reading)
        self._last[reading.started_s] = reading
        self._rows.setdefault(reading.started_s, before or reading)
        if len(self._last) > PROCESSES:
            del self._last[next(iter(self._last))]
        if before is None or before.version != reading.version:
            return []
        window = between(before, reading)
        found = list[Breach | None]()
        if self.rules.errors is not None:
            limit = self.rules.errors.max_share
            found.append(self._share("errors", _counts(window.failed, window.requests), limit))
        if self.rules.refused is not None:
            limit = self.rules.refused.max_share
            found.append(self._share("refused", _counts(window.refused, window.requests), limit))
        alone = not (before.canary or reading.canary)  # else a challenger's times are among them
        latency = self.rules.latency if alone else None
        if latency is not None and latency.p50_ms is not None:
            slow, _ = window.slower_than(latency.p50_ms)
            found.append(self._share("latency_p50", _counts(slow, window.answered), 0.5))
        if latency is not None and latency.p99_ms is not None:
            slow, _ = window.slower_than(latency.p99_ms)
            found.append(self._share("latency_p99", _counts(slow, window.answered), 0.01))
        return [breach for breach in found if breach is not None]

    def compares(self, rows: Arrays, at_s: float) -> list[Breach]:
        """Requests that the original has answered too, as `comparing` gives them; `at_s` never jumps.

        Rows of one request may be alike: of each its share counts, and of its features the first row's.
        """
        self.figures["compared.left_out"] = self.figures.get("compared.left_out", 0) + int(rows.get(COUNT, 0))
        if "agrees" not in rows:
            return []
        found: list[Breach | None] = []
        _, first, owner = np.unique(rows["id"], return_index=True, return_inverse=True)
        if self.rules.variant_drift is not None:
            shares = np.bincount(owner, weights=~rows["agrees"]) / np.bincount(owner)
            found.append(self._share("variant_drift", Counter(shares.tolist()), self._allowed))
        rows = {name: column[first] for name, column in rows.items() if column.ndim}
        if self.rules.input_drift is not None:
            names = [name for name in rows if name.startswith(FEATURE)]
            given = {name: rows[name] for name in names if name in self._reference}
            found.append(self._drifts("input_drift", self.rules.input_drift, given, at_s))
        if self.rules.prediction_drift is not None:
            given = {"served": rows["served"]}
            found.append(self._drifts("prediction_drift", self.rules.prediction_drift, given, at_s))
        return [breach for breach in found if breach is not None]

    def joins(self, joined: Joined) -> list[Breach]:
        """Labels that have come, some at a time."""
        rule, found = self.rules.quality, list[Breach | None]()
        self.figures["labels.without_request"] = joined.alone
        if rule is None:
            return []
        for start in range(0, len(joined.served), LABELS_AT_ONCE):
            part = slice(start, start + LABELS_AT_ONCE)
            before, after = joined.original[part], joined.served[part]
            if rule.min is not None:
                wrong = int((~after).sum())
                found.append(self._share("quality_min", _counts(wrong, len(after)), 1 - rule.min))
            if rule.max_drop is not None:
                lost, won = int((before & ~after).sum()), int((~before & after).sum())
                found.append(self._drop(lost, won, len(after), rule.max_drop))
        return [breach for breach in found if breach is not None]

    def row(self) -> dict[str, float]:
        """The figures of all that was seen since the last row; of each share of this version its interval.

        The interval is always valid: at every row at once. What is live is of the process that was read last.
        """
        if self._last:
            last = next(reversed(self._last.values()))
            before, self._rows = self._rows[last.started_s], dict(self._last)
            if last.at_s > before.at_s:
                self.figures |= live(between(before, last), last)
        found = dict(self.figures)
        for rule, state in self.state.rules.items():
            if state.seen:
                interval = always_valid_share(state.hits, state.seen)
                numbers = {"share": interval.estimate, "low": interval.low, "high": interval.high}
                found |= {f"{rule}.{name}": value for name, value in numbers.items() if value is not None}
        return found

    def _nothing_before(self, reading: Reading) -> Reading | None:
        """What its process had done at the last reading, where it began since then."""
        last = next(reversed(self._last.values()), None)
        if last is None or last.read_s is None or reading.started_s is None:
            return None
        if reading.started_s <= last.read_s:
            return None
        return replace(reading, at_s=last.at_s, statuses={}, buckets={}, cpu_s=0.0)

    def _share(self, rule: RuleName, values: Mapping[float, int], limit: float) -> Breach | None:
        """How often each value was seen: a hit is 1, none 0; requests of many rows lie between."""
        state, count = self.state.of(rule), sum(values.values())
        hits = state.hits + sum(value * number for value, number in values.items())
        self.state = self.state.having(rule, replace(state, seen=state.seen + count, hits=hits))
        if count:
            self.figures[f"{rule}.limit"] = limit
        return self._judged(rule, values, limit, limit)

    def _drop(self, lost: int, won: int, count: int, max_drop: float) -> Breach | None:
        """Paired: 1 where the original alone was right, 0 where the served version was, else a half."""
        self.figures |= {"quality_drop.window": (lost - won) / count, "quality_drop.limit": max_drop}
        values = {1.0: lost, 0.5: count - lost - won, 0.0: won}
        return self._judged("quality_drop", values, (1 + max_drop) / 2, max_drop)

    def _judged(
        self,
        rule: RuleName,
        values: Mapping[float, int],
        mean_limit: float,
        limit: float,
    ) -> Breach | None:
        count = sum(values.values())
        if not count:
            return None
        mean = sum(value * number for value, number in values.items()) / count
        state = self.state.of(rule)
        if state.breached:
            self._recovers(rule, mean <= mean_limit)
            return None
        starts = max(1, round(WEEK_S / self.rules.every_s))
        test = Hypothesis(mean_limit, self.rules.error, starts, self.rules.windows)
        evidence = state.evidence.after(values, test)
        estimate = 2 * mean - 1 if rule == "quality_drop" else mean
        if not evidence.proves(test):
            self.state = self.state.having(rule, replace(state, evidence=evidence))
            self.figures[f"{rule}.evidence"] = max(evidence.total(), -99.0) / test.needed
            return None
        words = f"{estimate:.3g} in the last {count}, at most {limit:.3g} is allowed"
        return self._breach(rule, estimate, limit, words)

    def _drifts(self, rule: RuleName, asked: Drift, rows: Arrays, at_s: float) -> Breach | None:
        """Gather rows until there is a window, and compare it with the reference."""
        gathered = self._live.setdefault(rule, [])
        since = self._since_s.setdefault(rule, at_s)
        gathered.append(rows)
        count = self._count[rule] = self._count.get(rule, 0) + len(next(iter(rows.values()), ()))
        if count < asked.samples or at_s - since < 60 * asked.minutes:
            return None
        common = [name for name in gathered[0] if all(name in one for one in gathered)]
        live = {name: np.concatenate([one[name] for one in gathered]) for name in common}
        self._live[rule], self._since_s[rule], self._count[rule] = [], at_s, 0
        if rule == "input_drift":
            shifts = drift.of_inputs(self._reference, live)
        else:
            shifts = drift.of_predictions(self._reference["served"], live["served"])
        return self._shifted(rule, asked, shifts, count)

    def _shifted(
        self, rule: RuleName, asked: Drift, shifts: Sequence[drift.Shift], count: int
    ) -> Breach | None:
        windows = max(1.0, WEEK_S / (60 * asked.minutes))
        found = drift.drifted(shifts, self.rules.error / windows, asked.min_distance)
        most = max(shifts, key=lambda shift: shift.distance, default=None)
        if most is not None:
            self.figures |= {f"{rule}.distance": most.distance, f"{rule}.p_value": most.p_value}
        state = self.state.of(rule)
        if state.breached:
            self._recovers(rule, found is None, AGREEING)
            return None
        streak = state.streak + 1 if found is not None else 0
        self.state = self.state.having(rule, replace(state, streak=streak))
        if found is None or streak < AGREEING:
            return None
        name = found.feature.removeprefix(FEATURE)
        words = f"`{name}` lies {found.distance:.2f} from the calibration data, by {count} samples twice"
        return self._breach(rule, found.distance, asked.min_distance, words)

    def _breach(self, rule: RuleName, estimate: float, limit: float, words: str) -> Breach:
        state = self.state.of(rule)
        broken = replace(state, evidence=state.evidence.restarted(), breached=True, calm=0, streak=0)
        self.state = self.state.having(rule, broken)
        return Breach(rule, self.state.version, estimate, limit, f"{rule}: {words}", self._then[rule])

    def _recovers(self, rule: RuleName, calm: bool, after: int | None = None) -> None:
        """One more look at a rule that is broken: enough calm ones in a row end that."""
        state = self.state.of(rule)
        state = replace(state, calm=state.calm + 1 if calm else 0)
        if state.calm >= (after or self.rules.recovered_after):
            state = replace(state, breached=False, calm=0)
        self.state = self.state.having(rule, state)


def _counts(hits: int, count: int) -> dict[float, int]:
    return {1.0: hits, 0.0: count - hits}


def live(window: Window, reading: Reading) -> dict[str, float]:
    """What a window showed, as rows in MLflow name it; what is not known is left out."""
    known: dict[str, float | None] = {
        "live.throughput_per_s": window.requests / window.seconds,
        "live.failed_share": window.failed / window.requests if window.requests else None,
        "live.refused_share": window.refused / window.requests if window.requests else None,
        "live.p50_ms": window.quantile_ms(0.5),
        "live.p99_ms": window.quantile_ms(0.99),
        "live.cpu_share": window.cpu_share,
        "live.memory_mib": reading.memory_mib,
        "live.registry_reachable": None
        if reading.registry_reachable is None
        else float(reading.registry_reachable),
        **{f"live.{name}": value for name, value in reading.figures.items()},
    }
    return {name: value for name, value in known.items() if value is not None}
