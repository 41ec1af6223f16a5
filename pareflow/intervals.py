"""Where the truth lies: intervals for shares, quantiles, ratios and any metric, from raw samples.

Every bound is one-sided at `confidence`, as a clause of an SLA needs it; too few samples give no bound.
Standard statistics come from scipy; what it lacks is here, each with its source. scipy takes half a second to
import, and every command loads this module: so it is imported where it is used.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from pareflow.measurement import CONFIDENCE, Interval, Measurement

RESAMPLES = 2000
"""Of a block bootstrap."""

Samples = Sequence[float] | np.ndarray
Blocks = Sequence[Samples]


def quantile_interval(
    samples: Samples, quantile: float, confidence: float = CONFIDENCE, *, alike: float = 1.0
) -> Interval:
    """A distribution-free interval for a quantile, from order statistics.

    With sorted samples x(1) ≤ … ≤ x(n), the number of samples at or below the true q-quantile is
    binomial(n, q); x(k) bounds it from above with confidence P[binomial ≤ k-1]. Where so many are `alike`
    (`neighbours_alike`), n is as many as they are worth, which is what the interval counts.
    Source: Hahn and Meeker, 1991, Statistical Intervals, section 5.2.
    """
    from scipy import stats

    ordered = np.sort(np.asarray(samples, dtype=float))
    n = int(len(ordered) / alike)
    if n == 0:
        return Interval(float("nan"), None, None, samples=0, confidence=confidence)
    upper = int(stats.binom.ppf(confidence, n, quantile)) + 1
    lower = int(stats.binom.ppf(1 - confidence, n, quantile))
    size = len(ordered)
    return Interval(
        estimate=float(np.quantile(ordered, quantile)),
        low=float(ordered[lower * size // n - 1]) if lower >= 1 else None,
        high=float(ordered[-(-upper * size // n) - 1]) if upper <= n else None,
        samples=n,
        confidence=confidence,
    )


def neighbours_alike(samples: Samples) -> float:
    """How many latencies of a line, in the order of arrival, are worth one independent one; 1 at least.

    Those of one busy spell are long together. A spell ends where a latency is no more than the median; where
    spells hold s of those above the 90th percentile, it is Σs² / Σs: by so much more than binomial does
    the number above a high level vary, since spells and not requests come independently.
    Source: Hsing, Hüsler and Leadbetter, 1988, Probability Theory and Related Fields 78:97; the spells'
    ends are ours, held to simulated lines (`bench/gate.py`).
    """
    series = np.asarray(samples, dtype=float)
    if not len(series):
        return 1.0
    calm, long = np.quantile(series, [0.5, 0.9])
    sizes = np.bincount(np.cumsum(series <= calm)[series > long]).astype(float)
    return max(1.0, float((sizes**2).sum() / sizes.sum())) if sizes.sum() else 1.0


def samples_needed(quantile: float, confidence: float = CONFIDENCE) -> int:
    """How many samples bound a quantile from above: their maximum does with confidence 1 - q^n.

    299 for p99 at 95 %. Source: Wilks, 1941, Annals of Mathematical Statistics 12:91.
    """
    return math.ceil(math.log(1 - confidence) / math.log(quantile))


def share_interval(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """The exact interval for a share: no bound is wrong more often than stated, however few samples.

    Source: Clopper and Pearson, 1934, Biometrika 26:404.
    """
    return Interval(successes / n, *share_bounds(successes, n, confidence), n, confidence)


def share_bounds(successes: int, n: int, confidence: float) -> tuple[float, float]:
    """The bounds of that interval, each of which is wrong no more often than stated."""
    return 1 - _most(n - successes, n, confidence), _most(successes, n, confidence)


def _most(successes: int, n: int, confidence: float) -> float:
    """The largest share of which so few successes are no surprise."""
    from scipy import stats

    return 1.0 if successes == n else float(stats.beta.ppf(confidence, successes + 1, n - successes))


def paired_share_drop(lost: int, won: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """The score interval for the difference of two paired shares.

    `lost` pairs were right before and wrong after, `won` the other way round, of `n` pairs. A difference d
    is inside where |z(d)| is at most the normal quantile; z's variance is taken under d. Where nothing was
    won, the bound is no nearer than the exact one of the share lost: few differ there, and the score's would
    be wrong in up to 7 % where 5 are stated. Mirrored where nothing was lost.
    Source: Tango, 1998, Statistics in Medicine 17:891, equations 11 and 12.
    """
    from scipy import stats

    z = float(stats.norm.ppf(confidence))
    estimate = (lost - won) / n
    low = _root(lambda d: float(paired_score(lost, won, n, d)) - z, -1.0, estimate)
    high = _root(lambda d: float(paired_score(lost, won, n, d)) + z, estimate, 1.0)
    if won == 0:
        high = max(high, _most(lost, n, confidence))
    if lost == 0:
        low = min(low, -_most(won, n, confidence))
    return Interval(estimate, low, high, n, confidence)


def paired_score(lost: np.ndarray | float, won: np.ndarray | float, n: int, difference: float) -> np.ndarray:
    """How many standard errors the difference of two paired shares lies above a given one.

    Source: Tango, 1998, Statistics in Medicine 17:891, equations 8 to 10.
    """
    a, b = 2 * n, -lost - won + (2 * n - lost + won) * difference
    c = -won * difference * (1 - difference)
    share = (np.sqrt(np.maximum(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = np.maximum(n * (2 * share + difference * (1 - difference)), 1e-300)
    return np.asarray((lost - won - n * difference) / np.sqrt(variance))


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses zero, strictly inside; the end it does not reach where it does not."""
    inside = 1e-9
    low, high = low + inside * (low <= -1), high - inside * (high >= 1)
    if low >= high or function(low) <= 0:
        return low
    if function(high) >= 0:
        return high
    from scipy import optimize

    return float(optimize.brentq(function, low, high, xtol=1e-10))


FEWEST = 10
"""Resamples of fewer tell too little of how far off they are: means of five normal samples were bounded
wrongly in 44 of 1000, where 12.5 are stated."""


def bca_interval(
    estimate: float,
    replicates: Samples,
    jackknife: Samples,
    samples: int,
    confidence: float = CONFIDENCE,
    within: tuple[float, float] | None = None,
) -> Interval:
    """The bias-corrected, accelerated bootstrap interval of any statistic.

    `replicates` is the statistic on bootstrap resamples, `jackknife` with each sample (or group) left out;
    `within` is the least and the most it can be: each bound is at least as far out as inputs that were not
    drawn could move it, of which there may be about 3 / n at 95 % ("the rule of three"). Where any replicate
    is no number, there are no bounds; nor where hardly any differ (`_alike`), nothing bounds the statistic,
    and the samples are fewer than bound a p99: what was not drawn could then be anything. Levels are widened
    for few samples; fewer than `FEWEST` bound only what has a range.
    Source: Efron, 1987, Journal of the American Statistical Association 82:171, sections 2 and 6; Hesterberg,
    2015, The American Statistician 69:371, section 5.3.
    """
    from scipy import stats

    drawn, left_out = np.asarray(replicates, dtype=float), np.asarray(jackknife, dtype=float)
    known = len(drawn) and np.isfinite(drawn).all() and np.isfinite(left_out).all()
    few = within is None and samples < samples_needed(0.99, confidence)
    least = FEWEST if within is None else 2
    if not known or samples < least or (few and _alike(drawn, confidence)):
        return Interval(estimate, None, None, samples, confidence)
    below = float(np.mean(drawn < estimate) + np.mean(drawn == estimate) / 2)
    below = min(max(below, 0.5 / len(drawn)), 1 - 0.5 / len(drawn))
    bias = float(stats.norm.ppf(below))
    spread = left_out.mean() - left_out
    squares = float((spread**2).sum())
    acceleration = float((spread**3).sum()) / (6 * squares**1.5) if squares > 0 else 0.0

    def bound(level: float) -> float:
        shifted = bias + _normal(level, samples)
        return float(np.quantile(drawn, stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))))

    low, high = bound(1 - confidence), bound(confidence)
    if within is not None:
        share = _most(0, samples, confidence)
        low = min(low, estimate - share * (estimate - within[0]))
        high = max(high, estimate + share * (within[1] - estimate))
    return Interval(estimate, low, high, samples, confidence)


def _normal(level: float, n: int) -> float:
    """The standard normal quantile at which replicates of n samples cover as Student's t does: those vary by
    (n - 1) / n of what the samples do."""
    from scipy import stats

    return math.sqrt(n / (n - 1)) * float(stats.t.ppf(level, n - 1))


def _alike(drawn: np.ndarray, confidence: float) -> bool:
    """Whether so many replicates share the least or the largest value that a bound falls on it.

    At 95 % that is where no more than three samples make all the difference: 1/e^3 of resamples hold none.
    """
    edges = [float(np.mean(drawn == edge)) for edge in (drawn.min(), drawn.max())]
    return max(edges) > 1 - confidence


def pooled_quantile_interval(
    blocks: Blocks, quantile: float, confidence: float = CONFIDENCE, *, in_line: bool = False
) -> Interval:
    """A quantile of all samples: the order-statistic interval, widened to that of the block bootstrap.

    The first is exact for independent samples, the second holds where samples of one block resemble each
    other, as latencies do on a machine that drifts. One block gives the first only. Those of requests that
    wait `in_line`, in the order of arrival, count as what they are worth (`neighbours_alike`).
    """
    samples = _pooled(blocks)
    alike = neighbours_alike(samples) if in_line else 1.0
    exact = quantile_interval(samples, quantile, confidence, alike=alike)
    if len(blocks) < 2:
        return exact
    drawn = _bootstrap(exact.estimate, resampled_quantiles(blocks, quantile), blocks, confidence)
    return _widest(exact, drawn)


def tail_ratio_interval(blocks: Blocks, confidence: float = CONFIDENCE) -> Interval:
    """p99 over p50 of all samples: by block bootstrap, no narrower than order statistics of both say."""
    pooled = _pooled(blocks)
    p99, p50 = (quantile_interval(pooled, quantile, confidence) for quantile in (0.99, 0.5))
    ratios = resampled_quantiles(blocks, 0.99) / resampled_quantiles(blocks, 0.5)
    return _quotient(p99, p50, ratios, blocks)


def quantile_speedup(
    baseline: Measurement, candidate: Measurement, quantile: float, confidence: float = CONFIDENCE
) -> Interval:
    """How many times smaller a quantile of all latencies is: `quantile_ratio` of the samples of each load.

    For p99, which single blocks have too few samples for.

    Raises: ValueError if the two were not measured alike.
    """
    require_alike(baseline, candidate)
    return quantile_ratio(baseline.loads_ms, candidate.loads_ms, quantile, confidence)


def quantile_ratio(
    baseline: Blocks,
    candidate: Blocks,
    quantile: float,
    confidence: float = CONFIDENCE,
    *,
    in_line: bool = False,
) -> Interval:
    """How many times smaller a quantile of all samples is: by bootstrap over blocks, no narrower than order
    statistics of both say.

    It is as wide as the one of fewer blocks asks for, and its samples are those of the one of fewer samples.
    `in_line` is as of `pooled_quantile_interval`.
    """
    pooled = [_pooled(blocks) for blocks in (baseline, candidate)]
    alike = [neighbours_alike(samples) if in_line else 1.0 for samples in pooled]
    before, after = (
        quantile_interval(samples, quantile, confidence, alike=worth)
        for samples, worth in zip(pooled, alike, strict=True)
    )
    ratios = resampled_quantiles(baseline, quantile) / resampled_quantiles(candidate, quantile)
    return _quotient(before, after, ratios, min(baseline, candidate, key=len))


def _quotient(over: Interval, under: Interval, replicates: np.ndarray, blocks: Blocks) -> Interval:
    """One quantity over another: by bootstrap over blocks, no narrower than the interval of either.

    A quantile far out in a tail that few samples reach moves less among resamples than among measurements:
    those that it would move to were not drawn. So each bound is as far out as either quantity could take it
    alone; where both may move at once the bootstrap says how far. There is none where either has none.
    """
    drawn = _bootstrap(over.estimate / under.estimate, replicates, blocks, over.confidence)
    either = (
        replace(drawn, low=_ratio(over.low, under.estimate), high=_ratio(over.high, under.estimate)),
        replace(drawn, low=_ratio(over.estimate, under.high), high=_ratio(over.estimate, under.low)),
    )
    return replace(_widest(drawn, *either), samples=min(over.samples, under.samples))


def _ratio(over: float | None, under: float | None) -> float | None:
    return None if over is None or under is None else over / under


def _widest(found: Interval, *others: Interval) -> Interval:
    """The interval with each bound as far out as any has it, and none where any has none."""
    low, high = ([getattr(one, side) for one in (found, *others)] for side in ("low", "high"))
    return replace(found, low=None if None in low else min(low), high=None if None in high else max(high))


def resampled_quantiles(blocks: Blocks, quantile: float) -> np.ndarray:
    """A quantile of all samples, once per bootstrap resample of whole blocks, shape (RESAMPLES,).

    Series of equally many blocks are resampled alike, so that block i of each stays with its neighbours.
    Source: Künsch, 1989, Annals of Statistics 17:1217.
    """
    n = len(blocks)
    owner = np.repeat(np.arange(n), [len(block) for block in blocks])
    pooled = _pooled(blocks)
    order = np.argsort(pooled, kind="stable")
    ordered, owner = pooled[order], owner[order]
    draws = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    found = []
    for draw in draws:
        reached = np.cumsum(np.bincount(draw, minlength=n)[owner])
        found.append(ordered[np.searchsorted(reached, quantile * reached[-1])])
    return np.asarray(found)


def _bootstrap(estimate: float, replicates: np.ndarray, blocks: Blocks, confidence: float) -> Interval:
    """Percentiles of replicates, widened for few blocks.

    Source: Hesterberg, 2015, The American Statistician 69:371, section 5.3.
    """
    from scipy import stats

    n, samples = len(blocks), sum(map(len, blocks))
    if n < 2:
        return Interval(estimate, None, None, samples, confidence)
    level = float(stats.norm.cdf(_normal(confidence, n)))
    low, high = np.quantile(replicates, [1 - level, level])
    return Interval(estimate, float(low), float(high), samples, confidence)


def _pooled(blocks: Blocks) -> np.ndarray:
    return np.asarray([ms for block in blocks for ms in block], dtype=float)


def speedup(baseline: Measurement, candidate: Measurement, confidence: float = CONFIDENCE) -> Interval:
    """How many times faster `candidate` is: the ratio of the medians of each block, over loads.

    Blocks are paired by position, since they ran next to each other; a load's ratio is the median over its
    blocks. Loads differ lastingly (measured, docs/log.md), so that they and not blocks are the sample: the
    interval is Student's for the mean of their logarithms.
    Source: Kalibera and Jones, 2013, Rigorous benchmarking in reasonable time, section 6.
    Raises: ValueError if the two were not measured alike, for then a ratio means nothing.
    """
    require_alike(baseline, candidate)
    return block_speedup(baseline.blocks_ms, candidate.blocks_ms, candidate.blocks_per_load, confidence)


def block_speedup(
    baseline: Blocks, candidate: Blocks, blocks_per_load: int, confidence: float = CONFIDENCE
) -> Interval:
    """`speedup` of the ms of each block, as many of both."""
    ratios = [
        float(np.median(ours) / np.median(theirs)) for ours, theirs in zip(baseline, candidate, strict=True)
    ]
    size = blocks_per_load
    return mean_interval([np.median(ratios[i : i + size]) for i in range(0, len(ratios), size)], confidence)


def throughput_speedup(
    baseline: Measurement, candidate: Measurement, confidence: float = CONFIDENCE
) -> Interval:
    """How many times as many requests are answered per second: the ratio of the mean times of each load.

    Of all requests of a load: a pause in one of its blocks costs what it costs, where a median over blocks
    (`speedup`) would not see it. The interval is Student's for the mean of the ratios' logarithms.
    Raises: ValueError if the two were not measured alike.
    """
    require_alike(baseline, candidate)
    pairs = zip(baseline.loads_ms, candidate.loads_ms, strict=True)
    return mean_interval([float(np.mean(ours) / np.mean(theirs)) for ours, theirs in pairs], confidence)


def mean_interval(values: Samples, confidence: float = CONFIDENCE) -> Interval:
    """Student's interval for the geometric mean of positive values; no bounds from fewer than two."""
    from scipy import stats

    logs = np.log(np.asarray(values, dtype=float))
    n = len(logs)
    mean = float(logs.mean())
    if n < 2:
        return Interval(math.exp(mean), None, None, n, confidence)
    half = float(stats.t.ppf(confidence, n - 1) * logs.std(ddof=1) / math.sqrt(n))
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half), n, confidence)


def require_alike(baseline: Measurement, candidate: Measurement) -> None:
    """Raises: ValueError unless two measurements may be compared."""
    for name in ("environment", "batch_size", "load", "blocks_per_load"):
        ours, theirs = getattr(baseline, name), getattr(candidate, name)
        if ours != theirs:
            raise ValueError(
                f"`{name}` must be equal to compare two measurements, but {ours} != {theirs}. "
                "Measure both together."
            )
    if len(baseline.blocks_ms) != len(candidate.blocks_ms):
        raise ValueError(
            "two measurements must come from one arena to be compared, but they have "
            f"{len(baseline.blocks_ms)} and {len(candidate.blocks_ms)} blocks. Measure both together."
        )
