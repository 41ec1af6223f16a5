"""Batch sizes and lengths as axes: winner and strong baseline side by side at each point."""

import dataclasses
import io
import itertools
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.tables import running as tables
from pareflow import spec as specs
from pareflow.errors import SpecError, WorkloadError
from pareflow.measuring.contestant import read_feeds
from pareflow.reporting import page
from pareflow.spec import Sweep
from pareflow.stages import optimization, outcome, sweeping
from pareflow.stages.jobs import feeds_key
from pareflow.stages.run import Row, Run
from pareflow.variant import Recipe, Step

pytestmark = pytest.mark.usefixtures("rogues")
NUMBERS = {"latency_ms", "throughput", "samples"}


def swept(run: Run, **axes: Any) -> Run:
    return dataclasses.replace(run, spec=run.spec.model_copy(update={"sweep": Sweep(**axes)}))


def test_both_are_timed_at_each_batch_size_on_inputs_of_that_size(judged: Any, trained: Any) -> None:
    run = swept(trained.run, batch_sizes=(1, 4))
    built = optimization.make(run, judged.candidate)
    points = sweeping.sweep(run, judged.finalists, built)
    assert [(point["batch_size"], point["length"]) for point in points] == [(1, None), (4, None)]
    for point in points:
        assert point["reason"] is None
        assert set(point["baseline"]) == set(point["winner"]) == NUMBERS
        assert point["speedup"]["low"] <= point["speedup"]["estimate"] <= point["speedup"]["high"]
        feeds = run.store.find(feeds_key(run.facts.digest, point["batch_size"], point["length"]))
        assert feeds is not None
        sizes = {len(array) for batch in read_feeds(feeds / "feeds.npz") for array in batch.values()}
        assert sizes == {point["batch_size"]}
    assert sweeping.sweep(run, judged.finalists, built) == points  # kept in the store


def test_point_at_which_one_dies_has_its_reason_and_no_numbers(trained: Any) -> None:
    run = swept(trained.run)
    doomed = optimization.make(run, Row(Recipe((), Step("segfaults_under_load", {"requests": 30}))))
    (point,) = sweeping.sweep(run, trained.rows, doomed)
    assert point["reason"].startswith("CrashedError: ")
    assert (point["baseline"], point["winner"], point["speedup"]) == (None, None, None)
    shown(trained.run, trained.rows, [point])


def test_point_whose_inputs_cannot_be_made_has_its_reason(judged: Any, trained: Any) -> None:
    run = swept(trained.with_budget(variant_minutes=1e-4), batch_sizes=(5,))
    (point,) = sweeping.sweep(run, judged.finalists, judged.candidate)
    assert point["reason"].startswith("TimedOutError: ")


def test_without_a_winner_or_where_the_baseline_wins_there_is_nothing_to_compare(trained: Any) -> None:
    run = swept(trained.run)
    assert sweeping.sweep(run, trained.rows, None) == []
    assert sweeping.sweep(run, trained.rows, trained.strong) == []
    assert sweeping.sweep(trained.run, trained.rows, trained.rows[1]) == []


def test_points_are_on_the_page_and_on_the_terminal(trained: Any) -> None:
    side = {"latency_ms": {"p50": 1.25, "p99": 2.5}, "throughput": 6400.0, "samples": 300}
    gained = {"estimate": 1.5, "low": 1.25, "high": 1.75}
    point = {"batch_size": 8, "length": 64, "baseline": side, "winner": side, "speedup": gained}
    for text in shown(trained.run, trained.rows, [{**point, "reason": None}]):
        for word in ("8", "64", "1.25", "2.5", "1.5"):
            assert word in text


def shown(run: Run, rows: list[Row], points: list[dict[str, Any]]) -> tuple[str, str]:
    """The page, from where its section begins, and the terminal."""
    document = outcome.document(run, rows, rows, None, None, None, points)
    console = Console(width=200, record=True, file=io.StringIO())
    tables.outcome(document, console)
    return page.render(document).partition('id="sweep"')[2], console.export_text()


def test_lengths_of_inputs_without_a_sequence_are_an_error_before_anything_runs(
    workloads: Path, tmp_path: Path
) -> None:
    document = specs.read(workloads / "images.yaml").to_json()
    spec = specs.parse({**document, "workload": "images.py", "sweep": {"lengths": [16]}}, "here")
    with pytest.raises(WorkloadError, match=r"`.*` has no sequence axis. Leave out `sweep.lengths`"):
        Run.open(spec, workloads / "images.yaml", tmp_path)


def test_points_are_every_batch_size_at_every_length() -> None:
    axes = Sweep(batch_sizes=(1, 8), lengths=(16, 64))
    assert axes.points() == tuple(itertools.product((1, 8), (16, 64)))
    assert Sweep(batch_sizes=(2,)).points() == ((2, None),)


@pytest.mark.parametrize(
    "axes", [{"batch_sizes": []}, {"batch_sizes": [0]}, {"lengths": [-1]}, {"size": [1]}]
)
def test_impossible_axes_are_errors(axes: Any, tiny_document: Any) -> None:
    with pytest.raises(SpecError, match="sweep"):
        specs.parse({**tiny_document, "sweep": axes}, "here")
