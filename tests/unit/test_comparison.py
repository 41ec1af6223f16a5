"""One comparison of answers: what every export is held to."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pareflow import comparison
from pareflow.comparison import difference, mismatch, real_inputs
from pareflow.errors import WorkloadError
from pareflow.workload import Arrays, LoadedWorkload, Samples, Split, Splits, Workload

Load = Callable[[str], LoadedWorkload]


def test_error_cosine_and_agreement_by_hand() -> None:
    """Error: 2 of 4. Cosines: 1, and (3·4 + 4·3) / 25 = 0.96. Of two rows the second has another largest."""
    ours = np.asarray([[4.0, 0.0], [3.0, 4.0]])
    theirs = np.asarray([[2.0, 0.0], [4.0, 3.0]])
    found = difference("y", ours, theirs)
    assert (found.error, found.agreement) == (0.5, 0.5)
    assert found.cosine == pytest.approx(0.96)
    assert str(found) == "`y` differs by 0.5 of its largest value (cosine 0.96, top-1 agreement 0.5)"


def test_small_row_beside_a_large_one_is_told_by_cosine_and_agreement() -> None:
    """The largest error is 0.0002 of 100, which is nothing; yet the second row is another."""
    ours, theirs = np.asarray([[100.0, 0.0], [0.02, 0.0]]), np.asarray([[100.0, 0.0], [0.0, 0.02]])
    found = difference("y", ours, theirs)
    assert found.error <= comparison.TOLERANCE
    assert (found.cosine, found.agreement) == (0, 0.5)
    assert not found.within(comparison.TOLERANCE)


def test_ties_agree_wherever_their_largest_value_is_found() -> None:
    assert difference("y", np.asarray([[1.0, 1.0 - 1e-7]]), np.asarray([[1.0 - 1e-7, 1.0]])).agreement == 1


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_never_agrees(wrong: float) -> None:
    ours = np.asarray([[1.0, 2.0]])
    for pair in ((ours, np.asarray([[1.0, wrong]])), (np.asarray([[1.0, wrong]]), ours)):
        assert not difference("y", *pair).within(0.5)


def test_logits_that_both_mask_are_passed_over() -> None:
    """Minus infinity at one place in both is no difference, and hides none; nor does a row of it alone."""
    ours = np.asarray([[1.0, -np.inf, 2.0], [-np.inf, -np.inf, -np.inf]])
    assert difference("y", ours, ours.copy()).within(1e-12)
    found = difference("y", ours, np.asarray([[3.0, -np.inf, 2.0], [-np.inf, -np.inf, -np.inf]]))
    assert (found.error, found.agreement) == (1, 0.5)


@given(
    arrays.arrays(np.float32, (3, 4), elements=st.floats(-100, 100, width=32)),
    arrays.arrays(np.float32, (3, 4), elements=st.floats(-100, 100, width=32)),
)
def test_equal_answers_agree_and_others_only_within_the_tolerance(
    ours: np.ndarray, theirs: np.ndarray
) -> None:
    assert difference("y", ours, ours).within(1e-12)
    if difference("y", ours, theirs).within(comparison.TOLERANCE):
        assert np.abs(ours - theirs).max() <= comparison.TOLERANCE * max(np.abs(ours).max(), 1e-6)


@pytest.mark.parametrize("ours", [np.asarray(["a", "b"]), np.asarray([True, False]), np.asarray([3, 4])])
def test_texts_truths_and_integers_are_compared(ours: np.ndarray) -> None:
    assert difference("y", ours, ours).within(1e-12)
    assert not difference("y", ours, ours[::-1]).within(comparison.TOLERANCE)


def feeds() -> Iterator[Arrays]:
    yield {"x": np.ones((1, 2))}
    yield {"x": np.ones((3, 2))}


def refuses(given: Arrays) -> Arrays:
    raise ValueError("\n  only batches of 1\nat line 7")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda given: {"other": given["x"]}, None),
        (lambda given: {"y": given["x"] * len(given["x"])}, r"`y` differs by 2 of .* at x 3×2"),
        (lambda given: {"y": given["x"][:1]}, r"`y` has the shape \(1, 2\), not \(3, 2\), at x 3×2"),
        (lambda given: {"y": given["x"], "z": given["x"]}, "it has the outputs y, z where the source has y"),
        (refuses, "at x 1×2 it says: only batches of 1"),
    ],
    ids=["equal", "values", "shape", "outputs", "refusal"],
)
def test_first_mismatch_is_told(made: comparison.Run, said: str | None) -> None:
    found = mismatch(lambda given: {"y": given["x"]}, made, feeds())
    assert found is None if said is None else re.search(said, str(found))


@pytest.mark.parametrize("names", ["ba", "ac"], ids=["turned", "other"])
def test_several_outputs_have_the_names_of_the_source(names: str) -> None:
    """Their arrays agree by position: what is read by name would be another's."""
    source, made = (lambda given, names=n: dict.fromkeys(names, given["x"]) for n in ("ab", names))
    found = mismatch(source, made, feeds())
    assert found == f"it has the outputs {names[0]}, {names[1]} where the source has a, b"


def test_real_inputs_of_one_shape_come_in_several_batches(load_tiny: Load) -> None:
    images = [feeds["images"].shape for feeds in real_inputs(load_tiny("images"))]
    assert images == [(1, 1, 8, 8), (3, 1, 8, 8)]


class Words(Workload):
    """Texts as long as they are: a batch has the length of its longest; at most `most` where it is set."""

    most: int | None = None

    def data(self) -> Splits:
        raise NotImplementedError

    def network(self) -> Any:
        raise NotImplementedError

    def preprocess(self, samples: Samples) -> Arrays:
        length = max(map(len, samples)) if self.most is None else self.most
        return {"ids": np.ones((len(samples), length), np.int64)}

    def postprocess(self, outputs: Arrays) -> np.ndarray:
        raise NotImplementedError


class Sized(Words):
    def at_length(self, length: int) -> Workload:
        if length == 1:
            raise WorkloadError("2 <= length must hold", "length=1", "Take another")
        return Words(most=length)


@pytest.mark.parametrize(
    ("definition", "texts", "lengths"),
    [
        (Words(), ["ab", "a", "abcdefg", "abc"], [(1, 2), (3, 7), (1, 1), (1, 7)]),
        (Sized(), ["ab", "a", "abcdefg", "abc"], [(1, 2), (3, 7), (1, 1), (1, 7), (3, 3)]),
        (Sized(), ["ab", "ab"], [(1, 2), (3, 2)]),
    ],
    ids=["shortest and longest", "and half the longest", "and not where it is refused"],
)
def test_real_inputs_of_texts_come_in_several_lengths(
    definition: Workload, texts: list[str], lengths: list[tuple[int, int]]
) -> None:
    part = Split(texts)
    loaded = LoadedWorkload(definition, "", "", Splits(part, part, part, part))
    assert [feeds["ids"].shape for feeds in real_inputs(loaded)] == lengths
