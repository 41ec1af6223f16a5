"""Which samples of a pipeline the processing of a packaged model takes."""

import numpy as np
import pytest

from pareflow.errors import StepFailedError
from pareflow.stages.processing import _as_taken
from pareflow.workload import Split

RECORDS = np.array([("abc", 1)], dtype=[("q", "<U3"), ("n", "<i8")])


@pytest.mark.parametrize(
    ("samples", "kind"), [(np.array(["abc"]), "<U2"), (RECORDS, "[('q', '<U57'), ('n', '<i8')]")]
)
def test_a_longer_text_in_the_data_is_no_other_kind_of_sample(samples: np.ndarray, kind: str) -> None:
    """An array of texts is as wide as its longest, which changes with the data."""
    split = Split(samples)
    assert _as_taken(split, kind) is split


@pytest.mark.parametrize("kind", ["text", "int64", "[('q', '<U3'), ('n', '<i4')]"])
def test_samples_of_another_kind_are_told(kind: str) -> None:
    with pytest.raises(StepFailedError, match="a packaged model must take this pipeline's samples"):
        _as_taken(Split(RECORDS), kind)
