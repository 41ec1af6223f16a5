"""Whether a window of live data is drawn from where the reference was: per feature, by exact tests.

For numbers the two-sample Kolmogorov-Smirnov test, for kinds Fisher's exact test, kind by kind; both are
scipy's. The reference is one sample, used in every window: the p-values of a week depend on each other,
through what is odd about it. So evidence is not piled up over windows; the error is shared out among all
windows of a week and all tests of a window (Bonferroni), which holds for any dependence.

Embeddings are tested along fixed random directions: distributions that differ, differ along almost every one.
Source: Cuesta-Albertos, Fraiman and Ransford, 2006, Bulletin of the Brazilian Mathematical Society 37:477.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from pareflow.runtime.rows import unfilled
from pareflow.workload import Arrays

KINDS = 32
"""Predictions of more kinds than this are tested as numbers."""
MISSING = "embedding.missing"
"""The feature that is the share of an embedding that is no number."""
_SEED = 20_26


@dataclass(frozen=True, slots=True)
class Shift:
    """One feature of one window: how far it lies from the reference, and how likely that is by chance."""

    feature: str
    distance: float
    """The largest difference of the two shares below any value, or of any kind: 0 to 1."""
    p_value: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def numbers(name: str, reference: np.ndarray, live: np.ndarray) -> Shift:
    """One feature of numbers, shapes (n,) and (m,), by their ranks. What is no number ranks above all others:
    where its share differs, that is a shift."""
    _, ranks = np.unique(np.concatenate([reference, live]), return_inverse=True)
    found = stats.ks_2samp(ranks[: len(reference)], ranks[len(reference) :], method="auto")
    return Shift(name, float(found.statistic), float(found.pvalue))


def kinds(name: str, reference: np.ndarray, live: np.ndarray) -> Shift:
    """One feature of few kinds: the kind that differs most surely, its p-value corrected for their number."""
    found = np.unique(np.concatenate([reference, live]))
    shifts = []
    for kind in found:
        ours, theirs = int((reference == kind).sum()), int((live == kind).sum())
        table = [[ours, len(reference) - ours], [theirs, len(live) - theirs]]
        p_value = min(1.0, len(found) * float(stats.fisher_exact(table).pvalue))
        shifts.append(Shift(name, abs(ours / len(reference) - theirs / len(live)), p_value))
    return min(shifts, key=lambda shift: (shift.p_value, -shift.distance))


def of_inputs(reference: Mapping[str, np.ndarray], live: Mapping[str, np.ndarray]) -> list[Shift]:
    """Every feature that both have, shapes (n,) and (m,) each."""
    return [numbers(name, reference[name], live[name]) for name in reference if name in live]


def of_predictions(reference: np.ndarray, live: np.ndarray) -> list[Shift]:
    """Predictions, shapes (n, …) and (m, …): as kinds where they are few, else value by value as numbers."""
    flat = [part.reshape(len(part), -1) for part in (reference, live)]
    if flat[0].shape[1] == 1 and reference.dtype.kind != "f":
        ours, theirs = (part[:, 0] for part in flat)
        if len(np.unique(ours)) <= KINDS:
            return [kinds("prediction", ours, theirs)]
        return [numbers("prediction", ours, theirs)]
    both = flat[0].shape[1] == flat[1].shape[1]
    width = min(flat[0].shape[1], KINDS) if both else 0
    return [numbers(f"prediction.{i}", flat[0][:, i], flat[1][:, i]) for i in range(width)]


def drifted(shifts: Sequence[Shift], error: float, min_distance: float) -> Shift | None:
    """The feature that drifted most surely, at this error for all of them together; or None."""
    found = [s for s in shifts if s.p_value * len(shifts) <= error and s.distance >= min_distance]
    return min(found, key=lambda shift: (shift.p_value, -shift.distance), default=None)


def features(inputs: Arrays, most: int) -> Arrays:
    """What is watched of the network's inputs, one value per row each.

    Of each input the mean, spread, least and largest value of a row, its length where rows may differ, and
    evenly spaced single values, `most` in all. The zeros at the end of a row of whole numbers (token ids,
    masks) count as filling, which is as long as its neighbours in a request made it: they are cut off.
    """
    found: Arrays = {}
    each = max(1, most // max(1, len(inputs)))
    for name, array in inputs.items():
        if array.dtype.kind not in "biuf" or not array.size:
            continue
        rows = array.reshape(len(array), -1).astype(np.float64)
        cut = [unfilled(row) for row in rows] if array.dtype.kind in "biu" and array.ndim > 1 else list(rows)
        found |= {
            f"{name}.mean": np.array([row.mean() for row in cut]),
            f"{name}.spread": np.array([row.std() for row in cut]),
            f"{name}.least": np.array([row.min() for row in cut]),
            f"{name}.largest": np.array([row.max() for row in cut]),
            f"{name}.length": np.array([float(len(row)) for row in cut]),
        }
        for position in np.unique(np.linspace(0, rows.shape[1] - 1, each).astype(int)):
            found[f"{name}[{position}]"] = rows[:, position].copy()  # a view would keep all rows
    return found


def projections(embeddings: np.ndarray, count: int) -> Arrays:
    """Embeddings of shape (n, …) along `count` directions that are the same for ever.

    What is no number counts as 0 there, since one masked logit (-inf) would hide all others; its share of a
    row is one value more.
    """
    rows = embeddings.reshape(len(embeddings), -1).astype(np.float64)
    directions = np.random.default_rng(_SEED).standard_normal((rows.shape[1], count))
    finite = np.isfinite(rows)
    along = np.where(finite, rows, 0.0) @ (directions / np.linalg.norm(directions, axis=0))
    return {f"embedding.{i}": along[:, i] for i in range(count)} | {MISSING: (~finite).mean(axis=1)}
