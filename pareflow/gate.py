"""The promotion gate: `judge`, a pure function from an SLA and evidence to a verdict.

Each clause becomes one Check with an estimate and its interval. A check promotes only if the whole interval
is on the right side of its limit, rejects only if the whole interval is on the wrong side, and is
inconclusive otherwise; so is what was not measured (law 3).

The error that is stated is the error that is kept: `judge_all` corrects for choosing among finalists, and
looking again after more samples spends the error of timing clauses bit by bit.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from pareflow import intervals
from pareflow.hardware.budget import Fit
from pareflow.measurement import Interval, Measurement, Quality
from pareflow.sla import SLA, Objective

Decision = Literal["promote", "reject", "inconclusive"]

QUALITY_HARM = "quality.harm"
"""The check that joins an SLA without a clause of quality: what is surely worse than the original is harm."""


MEMORY_GAIN = 1.01
"""What `do_no_harm` asks where the peak memory is the objective: it is measured once, and two processes that
do the same differ by some tenths of a MiB."""


_HOPELESS = 1e-3
"""An estimate nearer to its limit than this share of its interval: a million times the samples."""


_UNITS = {"do_no_harm": "loads", "throughput.min_per_s": "loads"}
"""What the samples of a check are, where they are not single requests or inputs."""


_OF_P99 = ("p99_ms", "p99_over_p50", "speedup_p99")
"""How the clauses end that samples bound only where they bound a p99."""


_ESTIMATED = {"memory.max_mib": "memory", "energy.max_j": "energy", "energy.max_w": "power"}
"""Clauses that bear on the device alone, and which of its needs tells of them where it is not at hand."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of one finalist; what is None was not measured.

    `original` is the quality of the original on the same samples, `baseline` the strong baseline, timed in
    the same blocks, and `served` the latencies under the load that the SLA names. `fit` is how it fits the
    device that it is for, where that is another than this machine.
    """

    variant: str
    objective: Objective
    quality: Quality | None
    original: Quality | None
    measurement: Measurement | None
    baseline: Measurement | None
    served: Measurement | None = None
    fit: Fit | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One clause, judged; `more_samples` is about how many more could settle it, where that is known.

    For speedups and throughput, samples are loads of the executable; 1 is measured once, and 0 not sampled at
    all: read off the files, or computed.
    """

    clause: str
    limit: float
    estimate: float | None
    low: float | None
    high: float | None
    decision: Decision
    reason: str
    samples: int = 0
    confidence: float | None = None
    more_samples: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Promote if every check promotes, reject if any rejects, else inconclusive."""

    variant: str
    environment: str
    decision: Decision
    checks: tuple[Check, ...]

    @property
    def missed(self) -> str:
        """Every clause that did not promote, with its reason; empty where all did."""
        return "; ".join(f"{c.clause}: {c.reason}" for c in self.checks if c.decision != "promote")

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "checks": [asdict(check) for check in self.checks]}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Verdict":
        """What a newer pareflow says beside is left out."""
        checks = tuple(Check(**_known(Check, check)) for check in document["checks"])
        return cls(**{**_known(cls, document), "checks": checks})


def _known(kind: type[Check] | type[Verdict], document: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: document[field.name] for field in fields(kind) if field.name in document}


def judge_all(
    sla: SLA, finalists: Sequence[Evidence], look: int | None = None, others: int = 0
) -> list[Verdict]:
    """A verdict per finalist; the chance that any is promoted wrongly is at most 1 - `sla.confidence`.

    Holm's step-down: all are judged at the error divided by their number; those that pass are set aside, and
    the others judged again at the error divided by how many are left, until none passes. A finalist passes
    if all of its clauses do, so that its p-value is its worst clause's. `others` share the error, and
    are judged elsewhere: they never count as set aside.
    Source: Holm, 1979, Scandinavian Journal of Statistics 6:65; Berger, 1982, Technometrics 24:295.
    """
    verdicts: dict[int, Verdict] = {}
    left = list(range(len(finalists)))
    while left:
        judged = {i: judge(sla, finalists[i], among=len(left) + others, look=look) for i in left}
        passed = [i for i in left if judged[i].decision == "promote"]
        verdicts |= {i: judged[i] for i in passed or left}
        left = [i for i in left if i not in passed] if passed else []
    return [verdicts[i] for i in range(len(finalists))]


def judge(
    sla: SLA, evidence: Evidence, *, among: int = 1, look: int | None = None, least_gain: float = 1.0
) -> Verdict:
    """The verdict on one finalist: one check per clause of the SLA, and `do_no_harm` (law 1), of quality too
    where the SLA says nothing of it (`QUALITY_HARM`).

    `among` is the number of finalists that share the error. `look` counts from 1 where timing may be looked
    at again with more samples, and is None where this is the only look: look k spends 1/(k(k+1)) of the
    error, which sums to all of it. Quality is measured once, on the whole verdict split. `least_gain` is what
    `do_no_harm` asks of the objective: below 1 it is a test of non-inferiority.
    Source: Lan and DeMets, 1983, Biometrika 70:659 (spending the error over looks).
    """
    error = (1 - sla.confidence) / among
    spent = error if look is None else error / (look * (look + 1))
    checks = tuple(_checks(sla, evidence, least_gain, quality=1 - error, timing=1 - spent))
    environment = evidence.measurement.environment if evidence.measurement else "not measured"
    return Verdict(evidence.variant, environment, _worst({check.decision for check in checks}), checks)


def judge_intervals(
    variant: str, environment: str, clauses: Mapping[str, tuple[float, Interval | None, bool]]
) -> Verdict:
    """The same verdict on clauses of another kind, such as those of live traffic, whose intervals are given.

    A clause is its limit, its interval (None: not measured), and whether the limit is an upper one.
    """
    checks = tuple(
        _check(clause, limit, interval, upper=upper) for clause, (limit, interval, upper) in clauses.items()
    )
    return Verdict(variant, environment, _worst({check.decision for check in checks}), checks)


def _worst(decisions: set[Decision]) -> Decision:
    if "reject" in decisions:
        return "reject"
    return "promote" if decisions == {"promote"} else "inconclusive"


def _checks(
    sla: SLA, evidence: Evidence, least_gain: float, *, quality: float, timing: float
) -> Iterator[Check]:
    for clause, limit in sla.clauses().items():
        if clause.startswith("quality."):
            interval = _quality(clause, evidence, quality)
        else:
            interval = _measured(clause, evidence, timing)
        check = _check(clause, limit, interval, upper=not from_below(clause))
        yield check if evidence.fit is None else elsewhere(check, evidence.fit, sla)
    if sla.quality is None:
        yield _quality_harm(drop_interval(evidence.original, evidence.quality, sla.confidence))
    yield _check("do_no_harm", _least(evidence, least_gain), gain(evidence, timing), upper=False)


def from_below(clause: str) -> bool:
    """Whether the limit of a clause is the least that is allowed."""
    return clause.endswith((".min", ".min_per_s"))


def _quality_harm(drop: Interval | None) -> Check:
    """Whether quality is surely worse than the original's, where no limit is stated.

    Nobody said how much may be lost, so that no drop is shown to be small enough: what is not surely one
    passes, as far as a bound says so. It is a veto, at the whole error: a share of it would let more pass the
    more finalists there are.
    """
    check = _check(QUALITY_HARM, 0.0, drop, upper=True)
    if check.decision == "inconclusive" and check.low is not None:
        unsure = f"not surely worse than the original, at {check.confidence:.4g} confidence"
        check = replace(check, decision="promote", reason=unsure, more_samples=None)
    elif check.decision == "reject":
        lost = f"{check.low:.4g} at least is lost"
        check = replace(
            check, reason=f"worse than the original: {lost}, at {check.confidence:.4g} confidence"
        )
    return replace(check, reason=f"{check.reason}; `quality: {{max_drop: …}}` in the SLA states a limit")


def _least(evidence: Evidence, least_gain: float) -> float:
    """What `do_no_harm` asks of the objective; of the baseline itself no more than that."""
    ours, baseline = evidence.measurement, evidence.baseline
    itself = ours is not None and baseline is not None and ours.variant == baseline.variant
    noisy = evidence.objective == "peak_memory" and not itself
    return least_gain * MEMORY_GAIN if noisy else least_gain


def _quality(clause: str, evidence: Evidence, confidence: float) -> Interval | None:
    """The interval that bears on a clause of quality, or None if it was not measured."""
    if clause == "quality.max_drop":
        return drop_interval(evidence.original, evidence.quality, confidence)
    if clause == "quality.worst_slice_max_drop":
        return worst_slice_drop(evidence.original, evidence.quality, confidence)
    return None if evidence.quality is None else value_interval(evidence.quality, confidence)


def _measured(clause: str, evidence: Evidence, confidence: float) -> Interval | None:
    """The interval that bears on any other clause, or None if it was not measured."""
    measurement = evidence.measurement
    if clause == "load.p99_ms":
        served = evidence.served
        if served is None or not _timed(served):
            return None
        return intervals.pooled_quantile_interval(served.loads_ms, 0.99, confidence, in_line=True)
    if measurement is None or not _timed(measurement):
        return None
    match clause:
        case "latency.p50_ms":
            return intervals.pooled_quantile_interval(measurement.loads_ms, 0.50, confidence)
        case "latency.p99_ms":
            return intervals.pooled_quantile_interval(measurement.loads_ms, 0.99, confidence)
        case "latency.p99_over_p50":
            return intervals.tail_ratio_interval(measurement.loads_ms, confidence)
        case "throughput.min_per_s":
            return throughput_interval(measurement, confidence)
    if evidence.fit is not None and clause in _ESTIMATED:
        return _estimated(clause, evidence.fit, measurement)
    if clause == "size.max_mib":
        return _point(measurement.size_mib, samples=0)
    once = {
        "memory.max_mib": measurement.peak_memory_mib,
        "energy.max_j": measurement.energy_j,
        "energy.max_w": measurement.power_w,
    }
    return _point(once[clause], samples=1)


def _estimated(clause: str, fit: Fit, measurement: Measurement) -> Interval | None:
    """What another device needs, as far as that can be told without it; None where it cannot.

    Memory lies between the least that any runtime needs and the peak of the whole process here; power lies
    below what the device can draw; of energy there is an estimate and no bound, so that it cannot pass.
    """
    needs = fit.needed(_ESTIMATED[clause])
    if needs is None:
        return None
    if clause == "energy.max_j":
        return Interval(needs, None, None, samples=0)
    if clause == "energy.max_w":
        return Interval(needs, None, needs, samples=0)
    return Interval(needs, needs, measurement.peak_memory_mib, samples=0)


def elsewhere(check: Check, fit: Fit, sla: SLA) -> Check:
    """A check that bears on another device says what was measured here and what is estimated for there.

    A time passes by what this machine did (law 8: the verdict is its own), and is rejected where the device
    cannot be so fast at its peak rates; so are a throughput and a load.
    """
    if check.clause in _ESTIMATED:
        bound = ", up to the peak of the process here" if check.clause == "memory.max_mib" else ""
        return replace(check, reason=f"{check.reason}; estimated{bound}, not measured on {fit.device}")
    if not check.clause.startswith(("latency.", "load.", "throughput.")):
        return check
    impossible = _beyond(check, fit, sla)
    if impossible is not None:
        return replace(check, decision="reject", reason=impossible)
    return replace(check, reason=f"{check.reason}; measured on this machine, not on {fit.device}")


def _beyond(check: Check, fit: Fit, sla: SLA) -> str | None:
    """Why a device cannot keep a clause of time, however well it is used; None where it may.

    Of a throughput one request at a time is asked; a load is shared by all units that run the variant.
    """
    least = fit.needed("least_ms")
    if not least:
        return None
    words = f"{fit.device} takes at least {least:.3g} ms (estimated from its peak rates)"
    if check.clause.endswith("_ms") and least > check.limit:
        return f"{words}, more than {check.limit:g}"
    samples_per_s, requests_per_s = sla.batch_size * 1000 / least, fit.units * 1000 / least
    if check.clause == "throughput.min_per_s" and check.limit > samples_per_s:
        return f"{words}, so that it answers {samples_per_s:.4g} per second at most, not {check.limit:g}"
    if check.clause.startswith("load.") and sla.load is not None and sla.load.per_s > requests_per_s:
        return f"{words}, so that it answers {requests_per_s:.4g} per second at most, not {sla.load.per_s:g}"
    return None


def _timed(measurement: Measurement) -> bool:
    """Whether every block has samples, all of them times: else it failed while it was timed."""
    blocks, samples = measurement.blocks_ms, measurement.samples_ms
    return bool(blocks and all(blocks) and np.isfinite(samples).all() and (samples > 0).all())


def _point(value: float | None, samples: int) -> Interval | None:
    """A value without an interval: one sample of what varies, or none of what does not."""
    return None if value is None else Interval(value, value, value, samples)


def decided(interval: Interval, limit: float, *, upper: bool) -> Decision:
    """Whether the whole interval is on one side of a limit, an upper one or a lower one."""
    good, bad = (interval.high, interval.low) if upper else (interval.low, interval.high)
    sign = 1 if upper else -1
    if good is not None and sign * good <= sign * limit:
        return "promote"
    return "reject" if bad is not None and sign * bad > sign * limit else "inconclusive"


def judge_served(p99: Interval, limit_ms: float) -> Check:
    """What the gate says of a plan that was served: its p99, in ms, against the SLA's limit."""
    return _check("served.p99_ms", limit_ms, p99, upper=True)


def _check(clause: str, limit: float, interval: Interval | None, *, upper: bool) -> Check:
    """One clause; `upper` says that the limit is an upper one."""
    if interval is None or not math.isfinite(interval.estimate):
        found = None if interval is None else "not a finite number"
        return Check(clause, limit, None, None, None, "inconclusive", found or "not measured")
    low, high = interval.low, interval.high
    decision = decided(interval, limit, upper=upper)
    more = _more_samples(clause, interval, limit) if decision == "inconclusive" else None
    return Check(
        clause,
        limit,
        interval.estimate,
        low,
        high,
        decision,
        _reason(decision, interval, limit, more, upper=upper, unit=_UNITS.get(clause, "samples")),
        interval.samples,
        interval.confidence,
        more,
    )


def _more_samples(clause: str, interval: Interval, limit: float) -> int | None:
    """About how many more samples would move the limit out of the interval, whose width falls with √n.

    Where none was lost, or none wrong, it falls with n: what may have gone unseen is all its width.
    """
    bound = interval.high if limit > interval.estimate else interval.low
    if bound is None and clause.endswith(_OF_P99):
        return max(1, intervals.samples_needed(0.99, interval.confidence) - interval.samples)
    if interval.samples < 2 or bound is None or not math.isfinite(bound) or bound == interval.estimate:
        return None
    distance, width = abs(limit - interval.estimate), abs(bound - interval.estimate)
    if distance < _HOPELESS * width:
        return None
    _, unseen = intervals.share_bounds(0, interval.samples, interval.confidence)
    if clause.startswith("quality.") and math.isclose(width, unseen):
        return max(1, intervals.samples_needed(1 - distance, interval.confidence) - interval.samples)
    return max(1, math.ceil(interval.samples * ((width / distance) ** 2 - 1)))


def _reason(
    decision: Decision, interval: Interval, limit: float, more: int | None, *, upper: bool, unit: str
) -> str:
    side = "at most" if upper else "at least"
    bound = interval.high if upper else interval.low
    if decision == "promote":
        return f"{bound:.4g} is {side} {limit:g}{_surely(interval)}"
    if decision == "reject":
        other = interval.low if upper else interval.high
        return f"{other:.4g} is not {side} {limit:g}{_surely(interval)}"
    could = f", about {more} more could" if more is not None else ""
    if bound is None and not interval.samples:
        return f"about {interval.estimate:.4g}, and no bound on it"
    if bound is None:
        return f"{interval.samples} {unit} give no bound on it{could or '; more are needed'}"
    inside = f"the limit {limit:g} lies inside the interval"
    return f"{inside}; {interval.samples} {unit} cannot tell{could}" if interval.samples else inside


def _surely(interval: Interval) -> str:
    """How sure a bound is: one value has no confidence, and what is not sampled needs none."""
    if interval.samples > 1:
        return f", at {interval.confidence:.4g} confidence"
    return ", measured once" if interval.samples else ""


def gain(evidence: Evidence, confidence: float) -> Interval | None:
    """How many times better than the strong baseline, on the objective; exactly 1 for the baseline itself."""
    ours, baseline = evidence.measurement, evidence.baseline
    if ours is None or baseline is None or not (_timed(ours) and _timed(baseline)):
        return None
    if ours.variant == baseline.variant:
        return Interval(1.0, 1.0, 1.0, samples=len(ours.loads_ms), confidence=confidence)
    match evidence.objective:
        case "latency_p50":
            return intervals.speedup(baseline, ours, confidence)
        case "latency_p99":
            return intervals.quantile_speedup(baseline, ours, 0.99, confidence)
        case "throughput":
            return intervals.throughput_speedup(baseline, ours, confidence)
        case "size":
            before, after, samples = baseline.size_mib, ours.size_mib, 0
        case "peak_memory":
            before, after, samples = baseline.peak_memory_mib, ours.peak_memory_mib, 1
    return None if before is None or not after else _point(before / after, samples)


def drop_interval(original: Quality | None, candidate: Quality | None, confidence: float) -> Interval | None:
    """How much quality was lost, paired sample by sample: exactly 0 by the original itself, no number where
    either has none. Each bound is one-sided at `confidence`.

    For scores of 0 and 1 the score interval for paired shares, for every other metric the BCa bootstrap.
    Raises: ValueError if the two were not taken on the same samples.
    """
    if original is None or candidate is None:
        return None
    if (original.split_digest, original.metric) != (candidate.split_digest, candidate.metric):
        raise ValueError(
            "a drop must be taken on the same samples and metric, but got "
            f"{original.metric} on {original.split_digest[:12]} and "
            f"{candidate.metric} on {candidate.split_digest[:12]}. Evaluate both on one split."
        )
    if not math.isfinite(original.value - candidate.value):
        return Interval(math.nan, None, None, candidate.samples, confidence)
    if original.variant == candidate.variant:
        return Interval(0.0, 0.0, 0.0, candidate.samples, confidence)
    if original.scores is not None and candidate.scores is not None:
        before, after = np.asarray(original.scores), np.asarray(candidate.scores)
        lost, won = int(((before == 1) & (after == 0)).sum()), int(((before == 0) & (after == 1)).sum())
        return intervals.paired_share_drop(lost, won, len(before), confidence)
    sign = 1 if original.higher_is_better else -1
    limits = original.value_range
    return intervals.bca_interval(
        sign * (original.value - candidate.value),
        sign * np.subtract(original.replicates, candidate.replicates),
        sign * np.subtract(original.jackknife, candidate.jackknife),
        original.samples,
        confidence,
        None if limits is None else (limits[0] - limits[1], limits[1] - limits[0]),
    )


def worst_slice_drop(
    original: Quality | None, candidate: Quality | None, confidence: float
) -> Interval | None:
    """The largest drop over the slices of the split; no number where one has none: it may be the worst.

    Every slice must stay below a limit for the largest to, so that its upper bound needs no correction; its
    lower bound is that of the worst slice, at the error divided by the number of slices (Bonferroni).
    """
    if original is None or candidate is None or not candidate.slices:
        return None
    found = []
    for name, part in candidate.slices.items():
        before = original.slices.get(name)
        upper = drop_interval(before, part, confidence)
        lower = drop_interval(before, part, 1 - (1 - confidence) / len(candidate.slices))
        if upper is None or lower is None:
            return None
        if not math.isfinite(upper.estimate):
            return upper
        found.append(replace(upper, low=lower.low))
    high, low = [interval.high for interval in found], [interval.low for interval in found]
    return Interval(
        max(interval.estimate for interval in found),
        max((bound for bound in low if bound is not None), default=None),
        None if None in high else max(bound for bound in high if bound is not None),
        min(interval.samples for interval in found),
        confidence,
    )


def value_interval(quality: Quality, confidence: float) -> Interval:
    """The metric itself: the exact interval for a share, else the BCa bootstrap."""
    if quality.scores is not None:
        return intervals.share_interval(sum(quality.scores), len(quality.scores), confidence)
    return intervals.bca_interval(
        quality.value,
        quality.replicates,
        quality.jackknife,
        quality.samples,
        confidence,
        quality.value_range,
    )


def throughput_interval(measurement: Measurement, confidence: float) -> Interval:
    """Samples per second, with Student's interval over loads."""
    rates = [measurement.batch_size * 1000 / float(np.mean(load)) for load in measurement.loads_ms]
    return intervals.mean_interval(rates, confidence)
