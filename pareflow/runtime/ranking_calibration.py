"""How few candidates each stage of a ranking cascade may let through, so that the loss stays in a budget."""

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from pareflow.errors import CalibrationError
from pareflow.runtime.calibration import FULL, Calibration, fewest_queries, last_passed, require_enough
from pareflow.runtime.exact_tests import mean_p_value


class RankingCalibration(Calibration):
    """How many candidates each stage lets through."""

    keep: dict[str, int] = Field(description="candidates that go on from each tier, by name")


def calibrate_ranking(
    variants: Mapping[str, str],
    losses: Sequence[tuple[Mapping[str, int], np.ndarray]],
    *,
    max_drop: float,
    confidence: float = 0.95,
) -> RankingCalibration:
    """The sharpest stages whose mean loss is at most `max_drop`, so surely.

    `losses` gives per candidate setting (how many each tier lets through) what each query loses of a metric
    between 0 and 1, full model minus cascade, shape (queries,). The settings go from the most generous to the
    sharpest, and must not be chosen by these queries. The test holds for any distribution of losses.

    Raises: CalibrationError where there are too few queries, and where even the first may lose too much.
    """
    queries = len(losses[0][1])
    require_enough(queries, fewest_queries(max_drop, confidence))
    passed = last_passed(losses, lambda one: mean_p_value(one[1], max_drop), confidence)
    if passed is None:
        raise CalibrationError(
            f"at most {max_drop:g} may be lost with confidence {confidence:g}",
            f"even {dict(losses[0][0])} may lose more on these {queries} queries",
            "Give more queries, a larger `max_drop`, or a more generous first setting",
        )
    keep, lost = passed
    return RankingCalibration(
        variants={**{name: variants[name] for name in keep}, FULL: variants[FULL]},
        max_drop=max_drop,
        confidence=confidence,
        samples=queries,
        drop=float(np.mean(lost)),
        keep=dict(keep),
    )
