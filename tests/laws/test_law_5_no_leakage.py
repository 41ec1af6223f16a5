"""Law 5: the splits are disjoint, and the verdict split is opened for finalists only."""

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.errors import SplitError, WorkloadError
from pareflow.measurement import Quality
from pareflow.measuring.quality import evaluate_quality
from pareflow.stages import jobs
from pareflow.workload import SPLITS, LoadedWorkload, Split, SplitName, Splits

Load = Callable[[str], LoadedWorkload]


def numbers(values: list[int]) -> Split:
    return Split(np.asarray(values, dtype=np.int64), np.zeros(len(values), dtype=np.int64))


@given(st.permutations(range(20)), st.integers(0, 3), st.integers(0, 3), st.data())
def test_any_shared_sample_is_found(order: list[int], one: int, other: int, data: st.DataObject) -> None:
    parts = [order[5 * i : 5 * i + 5] for i in range(4)]
    assert Splits(*map(numbers, parts)).check()
    if one != other:
        parts[one].insert(data.draw(st.integers(0, 5)), data.draw(st.sampled_from(parts[other])))
        with pytest.raises(SplitError, match="1 samples of"):
            Splits(*map(numbers, parts)).check()


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_equal_samples_are_found_in_any_form(load_tiny: Load, kind: str) -> None:
    splits = load_tiny(kind).splits
    leaking = Splits(splits.train, splits.verdict.take(np.asarray([3])), splits.search, splits.verdict)
    with pytest.raises(SplitError, match="1 samples of `verdict` are also in `calibration`"):
        leaking.check()


def test_verdict_split_is_shut_to_whoever_builds(load_tiny: Load) -> None:
    workload = load_tiny("images")
    assert [len(workload.split(name)) > 0 for name in SPLITS if name != "verdict"] == [True] * 3
    for look in (lambda: workload.split("verdict"), lambda: list(workload.feeds("verdict", 8))):
        with pytest.raises(WorkloadError, match="the verdict split must stay shut"):
            look()


def test_validation_opens_the_verdict_split_and_shuts_the_others(load_tiny: Load) -> None:
    opened = load_tiny("images").for_validation()
    assert len(opened.split("verdict")) == 400
    for name in ("train", "calibration", "search"):
        with pytest.raises(WorkloadError, match="only verdict are open here"):
            opened.split(name)


@pytest.mark.parametrize("split", get_args(SplitName))
def test_evaluating_job_opens_what_it_evaluates_and_no_more(
    split: SplitName, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real job; what it hands to the instrument is noted on the way."""
    seen: dict[str, Any] = {}

    def noting(session: Any, workload: LoadedWorkload, name: SplitName, *rest: Any) -> Quality:
        seen.update(opened=workload.opened, name=name)
        return evaluate_quality(session, workload, name, *rest)

    monkeypatch.setattr(jobs, "evaluate_quality", noting)
    run = trained.run
    jobs.evaluate(
        run.spec.workload,
        str(run.folder),
        str(run.store.root),
        variant=trained.strong.id,
        backend={"onnxruntime": {}},
        split=split,
        metric="accuracy",
        batch_size=64,
        key="a key of this test",
    )
    assert seen["name"] == split
    assert ("verdict" in seen["opened"]) == (split == "verdict")
    assert split in seen["opened"]


def test_candidates_are_screened_on_the_search_split(judged: Any) -> None:
    for row in (*judged.baselines, judged.candidate):
        assert row.quality.split == "search"
    searched = {row.quality.split_digest for row in judged.baselines}
    decided = {row.quality.split_digest for row in judged.finalists}
    assert len(searched) == len(decided) == 1
    assert searched != decided
