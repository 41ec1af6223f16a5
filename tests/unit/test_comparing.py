"""Kept requests, answered again by the original: which rows agree, and what a redacted or odd one costs."""

import json
import os
import stat
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from pareflow.errors import CrashedError
from pareflow.measuring.arena import write_feeds
from pareflow.monitoring import drift
from pareflow.monitoring.comparing import (
    REASONS,
    REFERENCE,
    Comparison,
    Unread,
    _write,
    make_private,
    results,
)
from pareflow.monitoring.rules import Rules, VariantDrift
from pareflow.serving.model import PackagedModel, told
from pareflow.serving.request_log import (
    Exchange,
    Names,
    RequestLog,
    RequestLogSettings,
    name_of,
    place,
)
from pareflow.stages.jobs import calibration_key
from pareflow.stages.monitoring import CALIBRATION, _loaded, answering_key, compared
from pareflow.store import Store
from pareflow.variant import Step
from pareflow.workload import Arrays

WATCHED: dict[str, Any] = {
    "features": 3,
    "projections": 2,
    "embedding": None,
    "tolerance": 0.05,
    "keep_days": 7,
    "keep_mib": 9,
}
PATIENCE_S = 300.0
"""How long a process may take to begin: a bound for a busy machine."""


@pytest.fixture(scope="module")
def package(packaged: Callable[..., Path]) -> Path:
    return packaged("images")


@pytest.fixture(scope="module")
def comparison(package: Path) -> Comparison:
    """The version beside itself as the original."""
    return beside_itself(package)


def beside_itself(package: Path, **watched: Any) -> Comparison:
    document = json.loads((package / "model.json").read_text())
    about = str(package), str(package / "artifact"), document["backend"]
    return Comparison(*about, {**WATCHED, **watched})


@pytest.fixture(scope="module")
def answered(package: Path) -> Callable[..., Exchange]:
    """A request for so many images, and the answer; `changed` are predictions to tell instead."""
    model = PackagedModel(package)

    def made(identity: str, count: int, *, raw: bool = False, changed: Any = None) -> Exchange:
        images = np.random.default_rng(count).random((count, 8, 8), dtype=np.float32)
        outputs = model.session.run(model.preprocess(images))
        if raw:
            predictions = model.postprocess(outputs) if changed is None else np.asarray(changed)
            return Exchange(
                identity, "images", "1", 0.0, {"samples": images}, {"predictions": predictions}, {}
            )
        return Exchange(identity, "images", "1", 0.0, model.preprocess(images), outputs, {})

    return made


def test_a_version_agrees_with_itself(comparison: Comparison, answered: Callable[..., Exchange]) -> None:
    """Tensors and raw samples, in rows: each with its request, its features and its embedding."""
    rows = comparison.live([answered("a", 3), answered("b", 2, raw=True)])
    assert rows["agrees"].tolist() == [True] * 5
    assert rows["id"].tolist() == ["a", "a", "a", "b", "b"]
    assert rows["row"].tolist() == [0, 1, 2, 0, 1]
    features = {name for name in rows if name.startswith("feature.")}
    assert {
        "feature.images.mean",
        "feature.images[0]",
        "feature.images[63]",
        "feature.embedding.1",
    } <= features


def test_detections_agree_with_themselves_in_whatever_company_they_come(detector: Path) -> None:
    """In the calibration data samples differ in how many they have; one alone is an array."""
    comparison, model = beside_itself(detector), PackagedModel(detector)
    feeds = model.preprocess(model.golden_samples)
    reference = comparison.reference([feeds])
    singles = [{"images": feeds["images"][i : i + 1]} for i in range(len(feeds["images"]))]
    rows = comparison.live(
        Exchange(str(i), "images", "1", 0.0, one, model.session.run(one), {})
        for i, one in enumerate([*singles, feeds])
    )
    counts = [len(json.loads(row)) for row in reference["served"]]
    assert [len(json.loads(row)) for row in rows["served"]] == 2 * counts
    assert rows["agrees"].tolist() == [True] * 2 * len(counts)


def test_texts_that_come_together_are_no_drift(packaged: Callable[..., Path]) -> None:
    """The calibration data's, four in a request and filled up to its longest, rather than each alone."""
    package = packaged("texts", Step("torch_eager"))  # of any length
    document = json.loads((package / "model.json").read_text())
    comparison = Comparison(str(package), str(package / "artifact"), document["backend"], WATCHED)
    chance = np.random.default_rng(0)
    alone = [_tokens([chance.integers(1, 7, size=size)]) for size in chance.integers(3, 13, size=80)]
    together = [
        _tokens([row["ids"][0] for row in alone[start : start + 4]]) for start in range(0, len(alone), 4)
    ]
    reference = comparison.reference(alone)
    session = PackagedModel(package).session
    live = comparison.live(Exchange("a", "texts", "1", 0.0, one, session.run(one), {}) for one in together)
    names = [name for name in reference if name.startswith("feature.ids") and name in live]
    assert {"feature.ids.mean", "feature.ids.spread", "feature.ids.length"} <= set(names)
    for name in names:
        np.testing.assert_array_equal(live[name], reference[name])


def _tokens(rows: list[np.ndarray]) -> Arrays:
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = row
    return {"ids": ids, "mask": (ids > 0).astype(np.int64)}


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        ("card_payment", "card_payment_fee", False),
        ("fee", "fee", True),
        ("07", "7", False),
        ("1", 1, True),
        ("1.0", 1, True),
        ("1", 1.0, True),
        ("seven", 7, False),
        ("seven", 7.0, False),
        (1.0, 1, True),
        (True, 1, True),
        (True, 2, False),
        (b"fee", "fee", True),
    ],
)
@pytest.mark.parametrize("other_way_round", [False, True])
def test_predictions_agree_where_they_are_the_same_label_whatever_type_holds_it(
    comparison: Comparison, one: Any, other: Any, agree: bool, other_way_round: bool
) -> None:
    """A longer text is not cut to the length of a shorter one."""
    served, original = np.array([one, one]), np.array([other, other])
    if other_way_round:
        served, original = original, served
    assert comparison._agree(served, original).tolist() == [agree, agree]


def test_predictions_of_numbers_agree_where_both_are_the_same_infinity(comparison: Comparison) -> None:
    original = np.array([[0.5, -np.inf], [0.5, -np.inf], [0.5, -np.inf]])
    served = np.array([[0.5, -np.inf], [0.5, 3.0], [0.7, -np.inf]])
    assert comparison._agree(served, original).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("image", "scores", "left_out"),
    [("x", "predictions", 0), ("samples", "y", 0), ("samples", "predictions", 1)],
)
def test_what_a_network_calls_its_tensors_makes_no_disagreement(
    linear: Callable[..., Path], image: str, scores: str, left_out: int
) -> None:
    """Tensors, and raw samples; which of both it was cannot be told where it calls two of them as we do."""
    package = linear(image, scores, scale=0.5, zero_point=0.25)
    model = PackagedModel(package)
    document = json.loads((package / "model.json").read_text())
    comparison = Comparison(str(package), str(package / "artifact"), document["backend"], WATCHED)
    images = np.random.default_rng(3).standard_normal((20, 1, 8, 8), np.float32)
    tensors, raw = model.session.run({image: images}), model.outputs(images)
    told = {**raw, "predictions": model.postprocess(raw)}
    assert (told["predictions"] != model.postprocess(tensors)).any()
    live = comparison.live(
        [
            Exchange("tensors", "linear", "1", 0.0, {image: images}, tensors, {}),
            Exchange("raw", "linear", "1", 0.0, {"samples": images}, told, {}),
        ]
    )
    assert int(live["left_out"]) == left_out
    assert live["agrees"].tolist() == 20 * (2 - left_out) * [True]
    np.testing.assert_array_equal(live["served"][:20], model.postprocess(tensors))


def test_other_predictions_than_the_originals_disagree(
    comparison: Comparison, answered: Callable[..., Exchange]
) -> None:
    rows = comparison.live([answered("a", 4, raw=True, changed=[9, 9, 9, 9])])
    assert rows["agrees"].tolist() == [False] * 4


def test_what_cannot_be_answered_again_is_left_out_and_counted(
    comparison: Comparison, answered: Callable[..., Exchange]
) -> None:
    """A request whose only input was redacted, beside a whole one."""
    redacted = Exchange("r", "images", "1", 0.0, {}, {"output": np.zeros((1, 4), np.float32)}, {})
    rows = comparison.live([redacted, answered("a", 1)])
    assert (rows["id"].tolist(), int(rows["left_out"])) == (["a"], 1)


class Masked:
    """The original with one more output, which holds the same values for every sample."""

    def __init__(self, comparison: Comparison, *values: float) -> None:
        self.session, self.values = comparison._original, values

    def run(self, feeds: Arrays) -> Arrays:
        found = self.session.run(feeds)
        count = len(next(iter(found.values())))
        return {**found, "masked": np.tile(np.array(self.values, np.float32), (count, 1))}


NAN, MASK = float("nan"), float("-inf")


@pytest.mark.parametrize(
    ("embedding", "values", "then", "bright", "drifts"),
    [
        pytest.param(None, (MASK, MASK), (MASK, MASK), 0.0, True, id="dark images, beside masked values"),
        pytest.param(None, (MASK, MASK), (MASK, MASK), 1.0, False, id="images like them"),
        pytest.param("masked", (0.0, MASK), (NAN, MASK), 1.0, True, id="a number that is none any more"),
    ],
)
def test_masked_values_hide_no_drift_of_others(
    package: Path,
    embedding: str | None,
    values: tuple[float, ...],
    then: tuple[float, ...],
    bright: float,
    drifts: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    comparison = beside_itself(package, embedding=embedding)
    model, images = PackagedModel(package), np.random.default_rng(1).random((160, 8, 8), np.float32)
    masked = Masked(comparison, *values)
    monkeypatch.setattr(comparison, "_original", masked)
    reference = comparison.reference(model.preprocess(images[i : i + 1]) for i in range(80))
    masked.values = then
    feeds = model.preprocess(bright * images[80:])
    live = comparison.live([Exchange("a", "images", "1", 0.0, feeds, model.session.run(feeds), {})])
    embedded = {name: column for name, column in reference.items() if name.startswith("feature.embedding")}
    assert len(embedded) == WATCHED["projections"] + 1
    assert (drift.drifted(drift.of_inputs(embedded, live), 1e-6, 0.1) is not None) == drifts


def test_of_the_calibration_data_no_outputs_are_kept(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are dense where each pixel has its classes: when the next batch is asked for, they are gone."""
    comparison, kept = beside_itself(package), list[weakref.ref[np.ndarray]]()
    masked, model = Masked(comparison, 1.0), PackagedModel(package)

    def run(feeds: Arrays) -> Arrays:
        found = masked.run(feeds)
        kept.append(weakref.ref(found["masked"]))
        return found

    def batches() -> Iterator[Arrays]:
        for _ in range(3):
            yield model.preprocess(np.zeros((2, 8, 8), np.float32))
            assert kept.pop()() is None

    monkeypatch.setattr(comparison, "_original", SimpleNamespace(run=run))
    assert len(comparison.reference(batches())["id"]) == 6


def test_an_embedding_without_a_number_is_told(
    package: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = beside_itself(package, embedding="masked")
    monkeypatch.setattr(comparison, "_original", Masked(comparison, MASK, MASK))
    images = np.zeros((2, 8, 8), np.float32)
    comparison.reference([PackagedModel(package).preprocess(images)])
    assert "embeddings must have values that are numbers" in capsys.readouterr().err


def test_what_cannot_be_compared_is_told_once_for_each_reason_and_not_for_ever(
    comparison: Comparison, capsys: pytest.CaptureFixture[str]
) -> None:
    """A client may send the same mistake for months."""
    comparison._told.clear()
    empty = [Exchange(str(number), "images", "1", 0.0, {}, {}, {}) for number in range(3)]
    assert int(comparison.live(empty)["left_out"]) == 3
    for number in range(2 * REASONS):
        comparison.tell("request a cannot be compared", ValueError(number))
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("request 0 cannot be compared: ")
    assert len(told) == REASONS


def tagged(comparison: Comparison, patch: pytest.MonkeyPatch) -> None:
    """From now on both answer what they are asked with, and predict that."""
    answers = SimpleNamespace(run=lambda feeds: {"tags": feeds["ids"]})
    patch.setattr(comparison, "_original", answers)
    patch.setattr(comparison._model, "session", answers)
    patch.setattr(comparison._model, "postprocess", lambda outputs: outputs["tags"])


def asked(ids: list[list[int]], answer: list[list[int]]) -> Exchange:
    return Exchange("a", "images", "1", 0.0, {"ids": np.array(ids)}, {"tags": np.array(answer)}, {})


def stored(rows: Arrays, folder: Path) -> Arrays:
    """As whoever monitors reads them."""
    _write(folder / REFERENCE, rows)
    return _loaded(folder / REFERENCE)


def test_predictions_as_wide_as_their_texts_are_compared_and_stored(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tag of each token: in the calibration data of two, and of three; in a request of four."""
    comparison = beside_itself(package)
    tagged(comparison, monkeypatch)
    reference = stored(
        comparison.reference({"ids": np.array([ids])} for ids in ([1, 2], [1, 2, 3])), tmp_path
    )
    assert reference["served"].tolist() == reference["original"].tolist() == ["[1, 2]", "[1, 2, 3]"]
    assert reference["agrees"].tolist() == [True, True]
    live = stored(comparison.live([asked([[4, 5, 6, 7]], [[4, 5, 6, 8]])]), tmp_path)
    assert (live["served"].tolist(), live["original"].tolist()) == (["[4, 5, 6, 8]"], ["[4, 5, 6, 7]"])
    assert live["agrees"].tolist() == [False]


def test_predictions_of_another_width_than_all_of_the_calibration_data_are_left_out(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = beside_itself(package)
    tagged(comparison, monkeypatch)
    comparison.reference([{"ids": np.array([[1, 2], [3, 4]])}])
    rows = comparison.live([asked([[1, 2, 3]], [[1, 2, 3]]), asked([[1, 2]], [[1, 2]])])
    assert (rows["served"].tolist(), int(rows["left_out"])) == ([[1, 2]], 1)


def test_texts_that_are_objects_are_stored_as_texts(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which a file without pickles holds."""
    comparison, model = beside_itself(package), PackagedModel(package)
    texts = np.array(["fee", "card_payment"], dtype=object)
    monkeypatch.setattr(comparison._model, "postprocess", lambda _: texts)
    reference = comparison.reference([model.preprocess(np.zeros((2, 8, 8), np.float32))])
    found = stored(reference, tmp_path)
    assert (found["served"].tolist(), found["agrees"].tolist()) == (texts.tolist(), [True, True])


Clock = Callable[[float], None]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Set it, in seconds from a time of ours."""
    return lambda at_s: monkeypatch.setattr("time.time", lambda: 1e9 + at_s)


def kept(folder: Path, at_s: float) -> Path:
    """A file of a request log that is written now."""
    path = place(folder, f"{name_of(1e9 + at_s)}-1-000001.npz")
    path.parent.mkdir(exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize("step_s", [10, 500, 7200])
def test_each_kept_file_is_new_once_though_the_clock_is_set_back(
    tmp_path: Path, clock: Clock, step_s: float
) -> None:
    """Its name tells the time: a new one may lie before those that were read."""
    clock(0)
    kept(tmp_path, -700)  # before anybody compared
    first, unread = kept(tmp_path, -1), Unread(tmp_path, "")
    assert unread.new() == [first]
    clock(1)
    second = kept(tmp_path, 1)
    assert unread.new() == [second]
    clock(2 - step_s)
    assert unread.new() == []
    later = [kept(tmp_path, at_s - step_s) for at_s in (3, 4)]
    clock(4 - step_s)
    assert unread.new() == later
    for at_s in (5, 1000, 9000):  # the clock passes the names from before
        clock(at_s - step_s)
        assert unread.new() == []


def test_a_process_goes_on_where_the_clock_was_set_back_since_the_one_before(
    tmp_path: Path, clock: Clock
) -> None:
    clock(0)
    before = [kept(tmp_path, at_s) for at_s in (-5, -1)]
    for done, went_on in ((before[-1], []), (kept(tmp_path, -7200), [kept(tmp_path, -7190)])):
        clock(-7180)
        unread = Unread(tmp_path, done.name)
        assert unread.new() == went_on
        new = kept(tmp_path, -7180)
        assert unread.new() == [new]
        new.unlink()


@pytest.mark.parametrize(("other", "mode"), [(0, 0o700), (1, 0o755)])
def test_a_folder_of_ours_is_made_private_and_that_of_another_user_is_let_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: int, mode: int
) -> None:
    """Who is not its owner may not."""
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + other)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows").chmod(0o755)
    make_private(tmp_path / "rows")
    assert stat.S_IMODE((tmp_path / "rows").stat().st_mode) == mode


def test_a_process_compares_what_is_kept_of_one_version_and_another_goes_on(
    package: Path, answered: Callable[..., Exchange], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of this version only, after the calibration data's; one that is killed is told."""

    def keep(*kept: tuple[str, str]) -> None:
        log = RequestLog(RequestLogSettings(share=1, flush_s=0.01), tmp_path / "log")
        for identity, version in kept:
            one = answered(identity, 2)
            log.take(identity, "images", version, one.inputs, one.outputs, 100, Names((), ()))
        log.close()

    keep(("a", "1"), ("b", "2"))
    feeds = [answered(str(count), 1).inputs for count in range(3)]
    store, workload = Store(tmp_path / "store"), told(package)["workload_digest"]
    store.bring(answering_key(workload), package / "artifact")
    store.ensure(
        calibration_key(workload, CALIBRATION), lambda folder: write_feeds(feeds, folder / "feeds.npz")
    )
    into, log_file = tmp_path / "compared", tmp_path / "child.log"
    rules = Rules(variant_drift=VariantDrift(max_disagreement=0.1))
    gone = tmp_path / "pipeline.yaml"  # the original is there: nothing else is asked
    about = (rules, gone, tmp_path, package, tmp_path / "log", into, ("images", "1"), log_file)
    into.mkdir(mode=0o755)  # as earlier versions made it
    with compared(*about) as comparer:
        assert stat.S_IMODE(into.stat().st_mode) == 0o700
        until, rows, last = time.monotonic() + PATIENCE_S, Arrays(), ""
        while not last:
            assert time.monotonic() < until, log_file.read_text()
            rows, last = comparer.news("")
            time.sleep(0.1)
        assert rows["id"].tolist() == ["a", "a"]
        reference = comparer.reference()
        assert reference is not None
        assert len(reference["agrees"]) == 3
        assert comparer.news(last)[0].keys() == {"left_out"}
        assert results(into) == []  # what was read is removed
        for identity, back_s in (("c", 300), ("d", 0)):  # c's name is lower than what was read before
            kept_at, rows = time.time() - back_s, Arrays()
            with monkeypatch.context() as patch:
                patch.setattr("time.time", lambda kept_at=kept_at: kept_at)
                keep((identity, "1"))
            while "id" not in rows:
                assert time.monotonic() < until, log_file.read_text()
                rows, last = comparer.news(last)
                time.sleep(0.1)
            assert rows["id"].tolist() == [identity] * 2
        assert comparer.news(last)[0].keys() == {"left_out"}
        for child in psutil.Process().children():
            child.kill()
            child.wait()
        with pytest.raises(CrashedError):
            comparer.news(last)
    with compared(*about) as comparer:
        while comparer.reference() is None:
            assert time.monotonic() < until, log_file.read_text()
            time.sleep(0.1)
        assert comparer.news(last)[0].keys() == {"left_out"}  # another one goes on behind what was done
