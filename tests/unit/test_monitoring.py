"""Rules of monitoring over windows: figures, breaches, hysteresis, drift, labels, what is remembered."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from pareflow.errors import InputError, SpecError, StoreError, TransientError
from pareflow.monitoring import drift, exposition, labels, rules
from pareflow.monitoring.exposition import Reading, Window, between
from pareflow.monitoring.labels import Place
from pareflow.monitoring.rules import Rules
from pareflow.monitoring.state import Breach, State
from pareflow.monitoring.watch import PROCESSES, Watch
from pareflow.serving.app import App
from pareflow.serving.metrics import BUCKETS_S, Metrics
from pareflow.serving.settings import Settings
from pareflow.serving.slot import FolderSource, Slot
from pareflow.serving.traffic import Traffic
from pareflow.workload import Arrays
from tests.replies import replying


def quick(**rules: Any) -> Rules:
    """Rules as a YAML holds them, that let a breach end after four looks."""
    return Rules.model_validate({"every_s": 5, "recovered_after": 4, **rules})


def after(reading: Reading, *, good: int = 100, failed: int = 0, refused: int = 0, slow: int = 0) -> Reading:
    """Five seconds later: so many requests more, of which some failed, were refused or took over 0.1 s."""
    statuses = dict(reading.statuses)
    statuses["200"] = statuses.get("200", 0) + good - failed - refused
    statuses["500"] = statuses.get("500", 0) + failed
    statuses["429"] = statuses.get("429", 0) + refused
    buckets = {bound: reading.buckets.get(bound, 0) + good for bound in (0.1, 1.0, float("inf"))}
    buckets[0.1] -= slow
    return replace(reading, at_s=reading.at_s + 5, statuses=statuses, buckets=buckets)


@pytest.fixture
def begun() -> Reading:
    return Reading(0.0, "m", "1", {}, {}, {}, None, None, None)


def run(watch: Watch, reading: Reading, looks: int, **seen: int) -> tuple[list[Breach], Reading]:
    found: list[Breach] = []
    for _ in range(looks):
        reading = after(reading, **seen)
        found += watch.reads(reading)
    return found, reading


def test_what_a_real_server_tells_is_read() -> None:
    """The server's own exposition: two answers, a probe that does not count, its process."""
    metrics = Metrics()
    metrics.serves("images", "3", {"batching": lambda: {"waiting": 4.0}}, "here")
    metrics.serves("texts", "1", {"batching": lambda: {"waiting": 9.0}}, "here")
    metrics.registry(reachable=True)
    for route, status, seconds in (("infer", 200, 0.003), ("invocations", 503, 0.3), ("ready", 200, 0.0001)):
        metrics.answered("images", route, status, seconds)
    reading = exposition.parse(metrics.text().decode(), "images", at_s=7)
    assert (reading.model, reading.version, reading.registry_reachable) == ("images", "3", True)
    assert reading.statuses == {"200": 1, "503": 1}
    assert (reading.buckets[0.005], reading.buckets[float("inf")]) == (1, 2)
    assert reading.figures["batching.waiting"] == 4
    assert reading.memory_mib is not None
    assert reading.memory_mib > 1
    assert reading.cpu_s is not None
    assert reading.started_s is not None


def test_of_a_server_of_several_models_one_is_read(packaged: Callable[..., Path]) -> None:
    """Two requests to one and three to the other, which fail; whom nobody serves makes no series."""
    metrics = Metrics()
    slots = [Slot(FolderSource(packaged(name)), None, metrics) for name in ("images", "texts")]
    image = {"name": "images", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.5] * 64}
    with TestClient(App(slots, Settings(poll_s=None), metrics).asgi()) as client:
        for _ in range(2):
            assert client.post("/v2/models/images/infer", json={"inputs": [image]}).status_code == 200
        for _ in range(3):
            assert client.post("/v2/models/texts/infer", json={"inputs": [image]}).status_code == 400
        assert client.post("/v2/models/anything/infer", json={"inputs": [image]}).status_code == 404
        assert client.post("/invocations", json={"inputs": [0]}).status_code == 404
        text = client.get("/metrics").text
    images, texts = (exposition.parse(text, name, at_s=0) for name in ("images", "texts"))
    assert (images.statuses, texts.statuses) == ({"200": 2}, {"400": 3})
    assert (images.buckets[float("inf")], texts.buckets[float("inf")]) == (2, 3)
    assert (images.version, texts.version) == tuple(slot.hosted.release.version for slot in slots)
    assert "anything" not in text


def test_of_a_server_of_one_model_all_invocations_are_its(packaged: Callable[..., Path]) -> None:
    metrics = Metrics()
    slot = Slot(FolderSource(packaged("images")), None, metrics)
    with TestClient(App([slot], Settings(poll_s=None), metrics).asgi()) as client:
        assert client.post("/invocations", json={"inputs": [[[0.5] * 8] * 8]}).status_code == 200
        reading = exposition.parse(client.get("/metrics").text, "images", at_s=0)
    assert reading.statuses == {"200": 1}


def test_what_is_no_server_of_ours_is_told() -> None:
    with pytest.raises(InputError, match="pareflow_model_info"):
        exposition.parse("up 1\n", "images", 0)
    with pytest.raises(InputError, match="it serves images, texts"):
        exposition.parse(served("images", "texts").text().decode(), "words", 0)
    with pytest.raises(TransientError, match="must answer"):
        exposition.read("http://127.0.0.1:9", "images")


MODEL = b'pareflow_model_info{model="images",version="1"} 1.0\n'


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + MODEL,
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + MODEL + b"pareflow_requests_total{mod",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + MODEL + b"process_cpu_seconds_total 1",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 28\r\n\r\n<html>{starting up}</html>\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\n",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
        b"garbage\r\n\r\n",
        b"",
    ],
)
def test_a_reply_that_is_cut_or_another_ones_is_worth_another_try(reply: bytes) -> None:
    """A server that dies in the middle of its reply, behind a proxy or not; a proxy's own page."""
    with replying(reply) as url, pytest.raises(TransientError):
        exposition.read(url, "images")


def test_a_whole_reply_is_read() -> None:
    reply = f"HTTP/1.1 200 OK\r\nContent-Length: {len(MODEL)}\r\n\r\n".encode() + MODEL
    with replying(reply) as url:
        reading = exposition.read(url, "images")
    assert (reading.version, reading.read_s is not None) == ("1", True)


def test_failed_texts_and_streams_are_counted() -> None:
    """A language model's requests come by routes of their own."""
    metrics = served("words")
    for route, status in (("generate", 500), ("generate_stream", 503), ("generate", 200)):
        metrics.answered("words", route, status, 0.3)
    reading = exposition.parse(metrics.text().decode(), "words", at_s=0)
    window = between(replace(reading, statuses={}, buckets={}), reading)
    assert (window.requests, window.failed, window.answered) == (3, 2, 3)


def served(*names: str) -> Metrics:
    """The metrics of a server of these models."""
    metrics = Metrics()
    for name in names:
        metrics.serves(name, "3", {}, "here")
    return metrics


def test_a_server_that_was_started_again_counts_from_there(begun: Reading) -> None:
    """And not below nothing."""
    before = after(begun, good=1000)
    window = between(before, replace(after(begun, good=30, failed=3), at_s=20))
    assert (window.requests, window.failed, window.seconds) == (30, 3, 15)


def test_a_server_that_was_started_again_and_counts_more_is_known_by_what_fell(begun: Reading) -> None:
    """A thousand answers and 50 failures before, 2000 and 20 after it: none is counted below nothing."""
    before = after(begun, good=1000, failed=50)
    window = between(before, after(begun, good=2000, failed=20))
    assert (window.requests, window.failed, window.answered) == (2000, 20, 2000)


def test_a_server_that_was_started_again_is_known_by_its_times_too(begun: Reading) -> None:
    """As many answers as before, of which 40 took over 0.1 s where 10 did: 60 under it where 90 were."""
    before = after(begun, good=100, slow=10)
    window = between(before, after(begun, good=100, slow=40))
    assert (window.requests, window.answered) == (100, 100)
    assert window.slower_than(100) == (40, 100)


def test_quantiles_lie_in_their_bucket_in_proportion() -> None:
    """Ten requests under 10 ms, ten to 20: the median is the bound, p75 the middle of the second."""
    window = Window(1, 20, 0, {0.01: 10, 0.02: 20, float("inf"): 20})
    assert window.quantile_ms(0.5) == pytest.approx(10)
    assert window.quantile_ms(0.75) == pytest.approx(15)
    assert Window(1, 0, 0).quantile_ms(0.5) is None


def test_a_limit_between_two_bounds_counts_what_is_surely_over_it() -> None:
    window = Window(1, 20, 0, {0.01: 10, 0.02: 15, float("inf"): 20})
    assert window.slower_than(10) == (10, 10)
    assert window.slower_than(12) == (5, 20)
    assert window.slower_than(5000) == (0, float("inf"))


def test_errors_above_their_share_are_a_breach_told_once(begun: Reading) -> None:
    watch = Watch(quick(errors={"max_share": 0.01, "then": ["rollback"]}), State("1"))
    calm, reading = run(watch, begun, 20, failed=0)
    assert watch.row()["live.throughput_per_s"] == 20  # of all looks since the last row
    found, _ = run(watch, reading, 20, failed=40)
    assert calm == []
    assert [(one.rule, one.version, one.then) for one in found] == [("errors", "1", ("rollback",))]
    assert watch.row()["live.failed_share"] == 0.4


def test_what_is_refused_for_lack_of_room_is_no_failure_of_the_version(begun: Reading) -> None:
    """A twentieth of all requests: as errors it takes the version back, as refusals it is told alone."""
    chosen = quick(errors={"max_share": 0.01, "then": ["rollback"]}, refused={"max_share": 0.01})
    found, _ = run(watch := Watch(chosen, State("1")), begun, 100, refused=5)
    assert [(one.rule, one.then) for one in found] == [("refused", ())]
    row = watch.row()
    assert (row["live.failed_share"], row["live.refused_share"]) == (0, 0.05)
    found, _ = run(Watch(chosen, State("1")), begun, 100, failed=5)
    assert [(one.rule, one.then) for one in found] == [("errors", ("rollback",))]


def test_a_breach_ends_after_enough_calm_looks_and_can_come_again(begun: Reading) -> None:
    """Three calm looks of four, then a bad one: it lasts. After four it is over, and another is told."""
    watch = Watch(quick(errors={"max_share": 0.01}), State("1"))
    found, reading = run(watch, begun, 10, failed=40)
    _, reading = run(watch, reading, 3, failed=0)
    _, reading = run(watch, reading, 1, failed=40)
    _, reading = run(watch, reading, 3, failed=0)
    assert watch.state.of("errors").breached
    _, reading = run(watch, reading, 1, failed=0)
    assert not watch.state.of("errors").breached
    again, _ = run(watch, reading, 10, failed=40)
    assert (len(found), len(again)) == (1, 1)


def test_replicas_behind_one_address_are_each_compared_with_themselves(begun: Reading) -> None:
    """One had failed 5000 times before the monitor began, and does no more; then the other one fails."""
    watch = Watch(quick(errors={"max_share": 0.01}), State("1"))
    one, other = replace(begun, started_s=1.0, statuses={"500": 5000.0}), replace(begun, started_s=2.0)
    found = list[Breach]()
    for _ in range(20):
        found += watch.reads(one) + watch.reads(other)
        one, other = after(one), after(other)
    assert found == []
    assert watch.row()["live.throughput_per_s"] == 20  # of the one that was read last
    for _ in range(20):
        found += watch.reads(one) + watch.reads(other)
        one, other = after(one), after(other, failed=40)
    assert [breach.rule for breach in found] == ["errors"]


@pytest.mark.parametrize(("age_s", "counts"), [(2, True), (3600, False)])
def test_what_a_process_did_before_its_first_look_counts_where_it_began_after_the_last_one(
    begun: Reading, age_s: float, counts: bool
) -> None:
    """A version that dies soon after each start is seen; a replica that failed long ago is not charged."""
    watch, found = Watch(quick(errors={"max_share": 0.01}), State("1")), list[Breach]()
    for look in range(20):
        now = 5.0 * look
        died = replace(begun, started_s=1e9 + now - age_s, read_s=1e9 + now, at_s=now - 5)
        found += watch.reads(after(died, failed=50))
    assert [breach.rule for breach in found] == ["errors"] * counts
    assert watch.state.of("errors").seen == 1900 * counts
    assert watch.row().get("live.failed_share") == (0.5 if counts else None)


def test_a_server_that_is_started_again_for_ever_takes_no_more_memory(begun: Reading) -> None:
    watch = Watch(quick(errors={}), State("1"))
    for start in range(2 * PROCESSES):
        watch.reads(replace(begun, started_s=float(start)))
        watch.row()
    assert len(watch._last) == len(watch._rows) == PROCESSES


def test_slow_answers_are_a_breach_and_a_fast_server_is_none(begun: Reading) -> None:
    chosen = quick(latency={"p99_ms": 100, "p50_ms": 1000})
    watch = Watch(chosen, State("1"))
    calm, reading = run(watch, begun, 50, slow=1)
    found, _ = run(watch, reading, 20, slow=30)
    assert calm == []
    assert [one.rule for one in found] == ["latency_p99"]


def test_times_say_nothing_of_a_version_while_a_challenger_answers_some(begun: Reading) -> None:
    """The histogram holds both; errors are the champion's all the same."""
    chosen = quick(latency={"p99_ms": 100}, errors={"max_share": 0.01})
    found, last = run(Watch(chosen, State("1")), replace(begun, canary=0.25), 20, slow=25)
    assert found == []
    found, last = run(watch := Watch(chosen, State("1")), last, 20, failed=25)
    assert [one.rule for one in found] == ["errors"]
    found, _ = run(watch, replace(last, canary=0.0), 20, slow=25)
    assert [one.rule for one in found] == ["latency_p99"]


def test_the_share_of_a_challenger_is_read() -> None:
    metrics = served("images", "texts")
    metrics.tries("images", Traffic(version="4", shadow=0.5, canary=0.25))
    assert exposition.parse(metrics.text().decode(), "images", at_s=0).canary == 0.25
    assert exposition.parse(metrics.text().decode(), "texts", at_s=0).canary == 0
    metrics.tries("images", None)
    assert exposition.parse(metrics.text().decode(), "images", at_s=0).canary == 0


def test_another_version_is_judged_anew(begun: Reading) -> None:
    watch = Watch(quick(errors={}), State("1"))
    run(watch, begun, 2, failed=40)
    state = watch.state.for_version("2")
    assert (state.of("errors").seen, state.of("errors").evidence.laid) == (
        0,
        watch.state.of("errors").evidence.laid,
    )
    assert state.for_version("2") is state


def rows(count: int, *, disagree: int = 0, feature: Any = None, kinds: Any = None, each: int = 1) -> Arrays:
    """Compared requests of `each` rows: the first ones disagree."""
    generator = np.random.default_rng(count + disagree)
    return {
        "id": np.repeat([f"r{i}" for i in range(count // each)], each),
        "row": np.tile(np.arange(each), count // each),
        "agrees": np.arange(count) >= disagree,
        "served": generator.integers(0, 4, count) if kinds is None else np.asarray(kinds),
        "original": np.zeros(count, int),
        "feature.x": generator.normal(size=count) if feature is None else np.asarray(feature),
        "left_out": np.array(0),
    }


def compared(chosen: Rules, max_drop: float | None = 0.02) -> Watch:
    watch = Watch(chosen, State("1"))
    watch.compare_with(rows(400), max_drop)
    return watch


def test_disagreement_above_the_slas_drop_is_a_breach() -> None:
    """0.02 may, where the rule names no limit of its own. A fifth is more, 0.01 is not."""
    watch = compared(quick(variant_drift={"then": ["rollback"]}))
    calm = [b for look in range(100) for b in watch.compares(rows(100, disagree=1), look)]
    told = watch.row()
    assert told["variant_drift.limit"] == 0.02
    assert told["variant_drift.low"] < 0.01 < told["variant_drift.high"]
    found = [b for look in range(20) for b in watch.compares(rows(100, disagree=20), look)]
    assert (len(calm), len(found)) == (0, 1)


def test_a_request_of_many_rows_counts_once() -> None:
    """One request of 100 rows, all otherwise, among 99 of which each agrees, is one in a hundred."""
    watch = compared(quick(variant_drift={"max_disagreement": 0.05}))
    wide, narrow = rows(100, disagree=100, each=100), rows(99)
    both = {name: np.concatenate([narrow[name], wide[name]]) for name in wide if wide[name].ndim}
    both["id"] = np.concatenate([narrow["id"], np.repeat(["wide"], 100)])
    watch.compares(both, 0)
    assert watch.row()["variant_drift.share"] == pytest.approx(0.01)


def test_variant_drift_needs_a_limit() -> None:
    for max_drop in (None, 0.0):
        with pytest.raises(InputError, match="needs a limit"):
            compared(quick(variant_drift={}), max_drop=max_drop)


DRIFT = {"samples": 200, "minutes": 1}


def test_inputs_that_moved_are_a_breach_when_two_windows_agree() -> None:
    watch = compared(quick(input_drift=DRIFT))
    moved = np.random.default_rng(5).normal(2.0, size=200)
    found = [watch.compares(rows(200, feature=moved), at_s) for at_s in (0, 60, 120, 180)]
    assert [len(one) for one in found] == [0, 0, 1, 0]  # the first minute is not over before the second look
    assert "`x` lies" in found[2][0].reason


def test_inputs_that_stay_are_no_breach_and_their_distance_is_told() -> None:
    watch = compared(quick(input_drift=DRIFT, prediction_drift=DRIFT))
    found = [b for look in range(30) for b in watch.compares(rows(200 + look), 60 * look)]
    assert found == []
    assert 0 < watch.figures["input_drift.distance"] < 0.2
    assert 0 < watch.figures["prediction_drift.p_value"] <= 1


def test_small_windows_that_happen_to_lie_far_are_no_breach() -> None:
    """Of 60 samples each: most lie 0.1 away from the reference and more, by chance."""
    few = {"samples": 60, "minutes": 1, "min_distance": 0.05}
    watch = compared(quick(input_drift=few, prediction_drift=few))
    assert [b for look in range(200) for b in watch.compares(rows(60 + look % 7), 60 * look)] == []


def test_predictions_that_moved_are_a_breach() -> None:
    watch = compared(quick(prediction_drift=DRIFT))
    found = [b for look in range(4) for b in watch.compares(rows(200, kinds=[3] * 200), 60 * look)]
    assert [one.rule for one in found] == ["prediction_drift"]


def test_kinds_are_told_apart_by_fishers_test() -> None:
    """Ten of ten against none of ten, two kinds: 2/C(20,10), twice."""
    shift = drift.kinds("k", np.array(["a"] * 10), np.array(["b"] * 10))
    assert shift.distance == 1
    assert shift.p_value == pytest.approx(2 * 2 / 184756)


def test_small_differences_are_none_however_certain() -> None:
    shifts = [drift.Shift("x", 0.05, 1e-30), drift.Shift("y", 0.5, 0.2)]
    assert drift.drifted(shifts, 0.01, 0.1) is None
    assert drift.drifted([*shifts, drift.Shift("z", 0.2, 1e-9)], 0.01, 0.1) == drift.Shift("z", 0.2, 1e-9)


def test_embeddings_that_turned_are_seen_along_fixed_directions() -> None:
    """Two clouds with the same mean and spread per axis, one correlated."""
    generator = np.random.default_rng(0)
    plain = generator.normal(size=(2000, 2))
    turned = plain @ np.array([[1.0, 0.0], [0.95, 0.31]]).T
    shifts = drift.of_inputs(drift.projections(plain, 8), drift.projections(turned, 8))
    assert drift.drifted(shifts, 1e-6, 0.05) is not None
    same = drift.of_inputs(
        drift.projections(plain, 8), drift.projections(generator.normal(size=(2000, 2)), 8)
    )
    assert drift.drifted(same, 1e-6, 0.05) is None


NAN, INFINITY = float("nan"), float("inf")


def test_what_is_no_number_of_an_embedding_hides_no_other_value_and_its_share_is_watched() -> None:
    found = drift.projections(np.array([[1.0, -INFINITY, 2.0, NAN]]), 3)
    without = drift.projections(np.array([[1.0, 0.0, 2.0, 0.0]]), 3)
    assert [one.pop(drift.MISSING).tolist() for one in (found, without)] == [[0.5], [0.0]]
    assert found == without


@pytest.mark.parametrize("missing", [NAN, INFINITY])
def test_what_is_no_number_is_a_shift_where_its_share_differs(missing: float) -> None:
    """0 to 9 against 0 to 4 and five that are none: up to 9 lies all of the one, half of the other."""
    plain, half = np.arange(10.0), np.array([*range(5), *[missing] * 5])
    shift = drift.numbers("x", plain, half)
    assert shift.distance == pytest.approx(0.5)
    assert 0 < shift.p_value < 1
    assert drift.numbers("x", half, half) == drift.Shift("x", 0.0, 1.0)


def joined(lost: int, won: int, count: int) -> labels.Joined:
    before, served = np.ones(count, bool), np.ones(count, bool)
    served[:lost] = False
    before[lost : lost + won] = False
    order = np.random.default_rng(0).permutation(count)
    return labels.Joined(before[order], served[order])


def test_late_labels_judge_the_drop_and_the_least() -> None:
    """A loss of a tenth against a limit of 0.02; where as many are won as lost there is none."""
    chosen = quick(quality={"max_drop": 0.02, "min": 0.5, "then": ["retrain"]})
    assert Watch(chosen, State("1")).joins(joined(100, 100, 1000)) == []
    found = Watch(chosen, State("1")).joins(joined(200, 0, 1000))
    assert [one.rule for one in found] == ["quality_drop"]
    found = Watch(chosen, State("1")).joins(joined(700, 300, 1000))
    assert {one.rule for one in found} == {"quality_min", "quality_drop"}


def answered(ids: list[str], served: int = 1) -> Arrays:
    """One row per request, to which the original says 1."""
    columns = {"row": 0, "original": 1, "served": served}
    return {"id": np.array(ids), **{name: np.full(len(ids), value) for name, value in columns.items()}}


LABEL = (("a", 0), "1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of the version that serves."""
    (tmp_path / "2").mkdir()
    return tmp_path / "2"


def join(folder: Path, wanted: list[labels.Label], counted: int = 0) -> labels.Joined:
    return labels.join(folder, wanted, counted)[folder.name]


def test_labels_are_joined_by_request_and_row_and_read_once(folder: Path, tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "id": ["a", "a", "b"],
        "row": [0, 1, 0],
        "original": [1, 2, 3],
        "served": [1, 5, 3],
    }
    answers, table = labels.Answers(folder), tmp_path / "labels.csv"
    answers.add({name: np.array(column) for name, column in columns.items()}, "0001.npz")
    table.write_text("request_id,row,label\na,0,1.0\na,1,2\n")
    new = labels.read(table, Place())
    found = join(folder, new.labels)
    assert (found.original.tolist(), found.served.tolist()) == ([True, True], [True, False])
    with table.open("a") as file:
        file.write("b,0,cat\nnobody,0,1\n")
    found = join(folder, labels.read(table, new.place).labels, counted=1)
    assert (found.served.tolist(), found.alone) == ([False], 1)
    table.write_text("request,label\na,1\n")
    with pytest.raises(InputError, match="request_id"):
        labels.read(table, Place())
    with pytest.raises(InputError, match="must be a CSV that can be read"):
        labels.read(tmp_path, Place())


def test_a_row_that_is_no_label_costs_itself(tmp_path: Path) -> None:
    """One lacks a column, one has a word for its row, one is no text, one opens a quote: the others count."""
    table = tmp_path / "labels.csv"
    table.write_bytes(b'request_id,label,row\r\na,1,0\r\nb\r\nc,1,x\r\nd,\xff,0\r\n"e,1,0\r\n\r\nf,2,\r\n')
    new = labels.read(table, Place())
    assert new.labels == [(("a", 0), "1"), (("f", 0), "2")]
    assert len(new.bad) == 4
    assert new.bad[0] == "the row at byte 29 lacks 'label'"
    again = labels.read(table, new.place)
    assert (again.labels, again.bad, again.place) == ([], [], new.place)


def test_an_empty_label_is_none_yet(tmp_path: Path) -> None:
    """It would be a wrong answer, and the label that comes later would count no more."""
    table = tmp_path / "labels.csv"
    table.write_text("request_id,label\na,\na,1\n")
    new = labels.read(table, Place())
    assert new.labels == [(("a", 0), "1")]
    assert new.bad == ["the row at byte 17 is no label: it is empty"]


@pytest.mark.parametrize(
    ("label", "prediction", "same"),
    [
        ("1", "True", True),
        ("true", "True", True),
        ("FALSE", "False", True),
        ("0.0", "False", True),
        ("0", "True", False),
        ("cat", "True", False),
        ("7.0", "7", True),
        ("7", "1", False),
    ],
)
def test_a_label_may_be_spelled_as_tables_spell_it(label: str, prediction: str, same: bool) -> None:
    assert labels.same_label(label, prediction) == same


def test_a_label_counts_when_its_line_is_whole(tmp_path: Path) -> None:
    """Who writes many at once has written half a line when somebody looks: 3 of 37 is another label."""
    table, whole = tmp_path / "labels.csv", "request_id,label\na,12\nb,37\n"
    place, found = Place(), list[Any]()
    for cut in range(len(whole) + 1):
        table.write_text(whole[:cut])
        new = labels.read(table, place)
        place, found = new.place, found + new.labels
    assert found == [(("a", 0), "12"), (("b", 0), "37")]


@pytest.mark.parametrize(
    "then",
    ["request_id,label\nc,3\n", "request_id,label\nc,3\nd,4\ne,5\nf,6\n"],
    ids=["that is shorter", "that has outgrown it"],
)
def test_another_file_is_read_from_its_beginning(tmp_path: Path, then: str) -> None:
    """In its place, or cut short and filled again; what is added to it goes on from there."""
    table = tmp_path / "labels.csv"
    table.write_text("request_id,label\na,1\nb,2\n")
    place = labels.read(table, Place()).place
    table.write_text(then)
    new = labels.read(table, place)
    assert [key[0] for (key, _) in new.labels] == list("cdef")[: then.count("\n") - 1]
    with table.open("a") as file:
        file.write("g,7\n")
    assert labels.read(table, new.place).labels == [(("g", 0), "7")]


def test_a_label_counts_once_though_a_file_brings_it_again(folder: Path) -> None:
    """Who keeps the last week's rows in it writes most of them every night; another label is none either."""
    labels.Answers(folder).add(answered(["a", "b"]), "1")
    assert len(join(folder, [LABEL]).served) == 1
    again = join(folder, [LABEL, (("a", 0), "2"), (("b", 0), "1")], counted=1)
    assert (again.served.tolist(), again.alone) == ([True], 0)


def test_a_label_waits_for_its_answer_and_counts_once(folder: Path) -> None:
    """Who labels at once is quicker than the process that compares, or than one that is started again."""
    answers = labels.Answers(folder)
    first = join(folder, [LABEL, (("c", 0), "1")])
    assert (len(first.served), first.alone) == (0, 2)
    answers.add(answered(["a", "b"]), "1")
    second = join(folder, [])
    assert (second.served.tolist(), second.alone) == ([True], 1)
    answers.add(answered(["d"]), "2")
    third = join(folder, [LABEL], counted=1)
    assert (len(third.served), third.alone) == (0, 1)


def test_labels_count_again_until_it_is_remembered_that_they_did(folder: Path) -> None:
    """Whoever joined them was killed then: the place from before is read again, or an answer had come."""
    answers = labels.Answers(folder)
    join(folder, [(("b", 0), "1")])
    answers.add(answered(["a", "b"]), "1")
    for _ in range(2):
        assert join(folder, [LABEL]).served.tolist() == [True, True]
    assert join(folder, [LABEL], counted=1).served.tolist() == []


def test_labels_of_an_earlier_version_are_joined_with_its_answers(tmp_path: Path) -> None:
    for version, identity, served in (("1", "a", 2), ("2", "b", 1)):
        (tmp_path / version).mkdir()
        labels.Answers(tmp_path / version).add(answered([identity], served), "1")
    found = labels.join(tmp_path / "2", [((name, 0), "1") for name in "abc"])
    assert found.keys() == {"1", "2"}
    assert [found[version].served.tolist() for version in "12"] == [[False], [True]]
    assert found["2"].alone == 1


def test_no_limit_lies_beyond_what_the_server_tells_apart() -> None:
    assert 1000 * max(BUCKETS_S) == rules.LONGEST_MS
    with pytest.raises(ValidationError, match="less than or equal to 50000"):
        rules.Rules.model_validate({"latency": {"p99_ms": 50_001}})


def test_the_last_file_of_answers_is_known(folder: Path) -> None:
    """Numbers with fractions wait for no label; their file is done all the same."""
    answers = labels.Answers(folder)
    assert answers.done() == ""
    answers.add(
        {"id": np.array(["a"]), "row": np.array([0]), "original": np.array([1]), "served": np.array([1])}, "1"
    )
    answers.add(
        {"id": np.array(["b"]), "row": np.array([0]), "original": np.ones(1), "served": np.ones(1)}, "2"
    )
    asked = [(("a", 0), "1"), (("b", 0), "1.0")]
    assert (answers.done(), join(folder, asked).alone) == ("2", 1)


def test_answers_wait_so_many_days(folder: Path) -> None:
    answers = labels.Answers(folder)
    answers.add(answered(["a", "b"]), "1")
    answers.forget(keep_days=1)
    assert join(folder, [LABEL]).served.tolist() == [True]
    answers.forget(keep_days=0)
    assert join(folder, [(("b", 0), "1")], counted=1).alone == 1
    answers.forget(keep_days=0)
    assert join(folder, [], counted=1).alone == 0


def test_rules_come_with_pareflow_and_say_every_problem(checkout: Path, tmp_path: Path) -> None:
    found = rules.read(checkout / "configs" / "monitoring" / "rules.yaml")
    assert found.named()["errors"] == ("rollback",)
    assert found.named()["refused"] == ()
    assert found.error == pytest.approx(found.false_alarms_per_week / len(found.named()))
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("errors: {max_shares: 0.1}\nlatency: {}\nevery_s: 0\n")
    with pytest.raises(SpecError) as error:
        rules.read(wrong)
    assert len(error.value.problems) == 3
    wrong.write_text("every_s: 5\n")
    with pytest.raises(SpecError, match="at least one rule"):
        rules.read(wrong)


def test_what_is_remembered_comes_back(tmp_path: Path, begun: Reading) -> None:
    watch = Watch(quick(errors={}), State("1"))
    run(watch, begun, 3, failed=2)
    path = tmp_path / "m.json"
    watch.state.write(path)
    assert State.read(path) == watch.state
    assert State.read(tmp_path / "none.json") == State()
    path.write_text("{")
    with pytest.raises(StoreError, match="state of a monitor"):
        State.read(path)


def test_what_waits_for_the_registry_is_remembered_for_its_version(tmp_path: Path) -> None:
    """What Prefect was not told waits for whichever version. A file from before says that nothing waits."""
    path = tmp_path / "m.json"
    broken = Breach("errors", "1", 0.5, 0.01, "half of them", ("rollback",))
    waiting = State("1", waiting=(broken,), untold=({"id": "a"},))
    waiting.write(path)
    assert State.read(path) == waiting
    later = waiting.for_version("2")
    assert (waiting.for_version("1"), later.waiting, later.untold) == (waiting, (), waiting.untold)
    document = json.loads(path.read_text())
    del document["waiting"], document["untold"]
    path.write_text(json.dumps(document))
    assert State.read(path) == State("1")


def test_a_monitor_that_is_started_again_goes_on(tmp_path: Path, begun: Reading) -> None:
    """A breach that is three looks long is found also where the monitor dies after each of them."""
    reading, path, found = after(begun), tmp_path / "m.json", list[Breach]()
    for _ in range(4):
        watch = Watch(quick(errors={}), State.read(path).for_version("1"))
        watch.reads(reading)
        reading = after(reading, failed=60)
        found += watch.reads(reading)
        watch.state.write(path)
    assert len(found) == 1
