"""A run on another machine than the flow's: its clock, its folders, and what it must have at hand."""

import dataclasses
import math
import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.pipeline import side_by_side
from pareflow.errors import NodeError
from pareflow.stages import building, node, optimization
from pareflow.stages.clock import Meter
from pareflow.stages.jobs import original
from pareflow.stages.run import Row, Run
from pareflow.variant import Recipe, Step
from tasks.execution import Plain
from tests.conftest import Trained

seconds = st.floats(0, 1e6)


@given(seconds, seconds)
def test_a_copy_has_as_much_time_left_whatever_the_other_clock_shows(
    trained_run: Run, ago: float, clock: float
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: 1e6)
        run = dataclasses.replace(trained_run, meter=Meter(1e6 - ago))
        left, sent = run.minutes_left, pickle.dumps(run)
        patch.setattr(time, "monotonic", lambda: clock)
        copy: Run = pickle.loads(sent)
        assert copy.minutes_left == pytest.approx(left, abs=1e-6)


def test_a_copy_of_an_unhurried_run_is_unhurried(trained_run: Run) -> None:
    copy = pickle.loads(pickle.dumps(trained_run.unhurried))
    assert copy.minutes_left == math.inf
    assert copy == trained_run


@pytest.fixture(scope="module")
def trained_run(_trained_once: Trained) -> Run:
    return _trained_once.run


def test_on_the_flows_own_machine_nothing_changes(trained: Trained) -> None:
    assert node.here(trained.run) == trained.run


def test_a_node_may_keep_its_data_elsewhere(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained.run.data_dir, tmp_path / "own")
    monkeypatch.setenv(node.DATA_DIR, str(tmp_path / "own"))
    assert node.here(trained.run) == dataclasses.replace(trained.run, data_dir=tmp_path / "own")


def test_the_flow_asks_the_clock_and_not_the_node(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each wave may be built on another node: what was decided is kept in one place."""
    shutil.copytree(trained.run.data_dir, tmp_path / "own")
    monkeypatch.setenv(node.DATA_DIR, str(tmp_path / "own"))
    monkeypatch.setattr(optimization, "make", lambda run, row: dataclasses.replace(row, id="made"))
    row = Row(Recipe((), Step("onnxruntime")))
    over = dataclasses.replace(trained.run, meter=Meter(-math.inf))
    (made,) = side_by_side(trained.run, Plain(), "make", [row])
    (again,) = side_by_side(over, Plain(), "make", [row])
    assert (made.id, again.id) == ("made", "made")
    assert trained.run.clock.known(f"make {row.label}") is not None
    assert node.here(trained.run).clock.known(f"make {row.label}") is None


def test_a_node_without_the_pipeline_is_named(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.node", lambda: "box-7")
    absent = dataclasses.replace(trained.run, config=Path("/nowhere/pipeline.yaml"))
    with pytest.raises(NodeError, match=r"`box-7` has no /nowhere/pipeline\.yaml"):
        node.here(absent)


def test_a_node_without_the_original_is_named(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.node", lambda: "box-7")
    trained.run.store.evict(original(trained.run.facts.digest).id)
    with pytest.raises(NodeError, match=r"`box-7` does not in .*--store s3://bucket/prefix"):
        node.here(trained.run)


def test_a_builder_waits_for_the_original_that_a_neighbour_brings(trained: Trained) -> None:
    """The first one on a machine fetches it from the shared store; until then the others find nothing."""
    store, key = trained.run.store, original(trained.run.facts.digest).id
    entry, elsewhere = store.root / "entries" / key, store.root / "brought"
    with ThreadPoolExecutor(2) as builders:
        with store.lock(key):
            entry.rename(elsewhere)
            asked = [builders.submit(node.here, trained.run) for _ in range(2)]
            assert not wait(asked, 0.2).done
            elsewhere.rename(entry)
        assert [one.result() for one in asked] == [trained.run] * 2


def test_a_node_with_another_workload_is_told(trained: Trained) -> None:
    """The flow found another workload than lies here; the original is there, as from a shared store."""
    facts = dataclasses.replace(trained.run.facts, digest="of another file")
    run = dataclasses.replace(trained.run, facts=facts)
    entries = trained.run.store.root / "entries"
    for name in (lambda of: original(of.facts.digest).id, building.first_answers_key):
        shutil.copytree(entries / name(trained.run), entries / name(run))
    with pytest.raises(NodeError, match=r"must be the same .*makes other variants"):
        building.make(node.here(run), Row(Recipe((), Step("onnxruntime"))))


def test_what_a_node_of_another_kind_evaluates_is_of_its_own_environment(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """int8 may saturate there and not here: the flow's machine does not take such a quality for its own."""
    own = dataclasses.replace(trained.run.environment, flags=("none",))
    monkeypatch.setattr(node, "environment", lambda: own)
    keys = {
        building._evaluation(run, trained.strong, "search")["key"]
        for run in (trained.run, node.here(trained.run))
    }
    assert len(keys) == 2
