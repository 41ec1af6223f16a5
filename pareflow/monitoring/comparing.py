"""Kept requests, answered again by the original: a process beside the monitor, at low priority.

`follow` turns each file of a request log into a file of the same name in a folder of its own, with one row
per sample: `id` and `row` (of the request), `served` and `original` (predictions), `agrees`, `feature.NAME`.
`reference.npz` there holds the same of the calibration data, where `served` is what the version answers. Who
reads a file removes it; what waits for labels is in a table beside them (`labels.py`).
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pareflow.compiler.backend import backend_of
from pareflow.errors import InputError
from pareflow.measuring.contestant import read_feeds
from pareflow.monitoring import drift
from pareflow.monitoring.labels import Answers, same_label
from pareflow.serving import agreement, request_log
from pareflow.serving.hosting import PREDICTIONS, SAMPLES
from pareflow.serving.model import PackagedModel
from pareflow.variant import Step
from pareflow.workload import Arrays

REFERENCE = "reference.npz"
POLL_S = 0.5
BACK_S = 600.0
"""What was kept so long before the process began is compared too, and nothing older: now is what counts."""
AHEAD_S = 60.0
"""A name that lies further ahead is of a clock that was set back since."""
REASONS = 100
"""So many different ones are told, each once: a log must not grow for as long as requests come."""
_FORGET_S = 3600.0
FEATURE = "feature."
TEXTS = "OSU"
"""Kinds of numpy types that hold texts."""
COUNT = "left_out"
"""How many requests could not be answered again."""
MAX_DROP = "max_drop"
"""In the reference: the SLA's, where it bounds how many predictions may differ."""


class Comparison:
    """The original beside a served version, both opened here. Raises: as `PackagedModel`."""

    def __init__(
        self,
        package: str,
        original: str,
        backend: Mapping[str, Any],
        watched: Mapping[str, Any],
    ) -> None:
        self._model = PackagedModel(Path(package))
        golden = self._model.golden()
        self._inputs = self._model.preprocess(golden["samples"][:1]).keys()
        self._outputs = golden["outputs"].keys()
        loaded = backend_of(Step.from_json(backend))
        self._original = loaded.load(Path(original))
        self._watched = watched
        self._spread = np.zeros(())
        self._shapes = set[tuple[int, ...]]()
        self._told = set[str]()

    def reference(self, batches: Iterable[Arrays]) -> Arrays:
        """The rows of the calibration data. It also says how far predictions with fractions may differ."""
        answered = []
        for number, feeds in enumerate(batches):
            served = self._model.postprocess(self._model.session.run(feeds))
            answered.append(self._rows(f"calibration-{number}", feeds, served, self._original.run(feeds)))
        originals = [one["original"] for one in answered]
        self._spread = agreement.spread(originals)
        self._shapes = {part.shape[1:] for one in originals for part in agreement.parts(one)}
        found = joined([self._judged(one) for one in answered])
        self._tell_where_none_is_a_number(found)
        return found

    def live(self, exchanges: Iterable[request_log.Exchange]) -> Arrays:
        """The rows of kept requests. Those that lack what the original takes are left out, and counted."""
        rows, left_out = [], 0
        for one in exchanges:
            try:
                raw = self._holds_samples(one)
                feeds = self._model.preprocess(one.inputs[SAMPLES]) if raw else one.inputs
                served = one.outputs.get(PREDICTIONS) if raw else None
                if served is None:
                    served = self._model.postprocess(one.outputs)
                answered = self._rows(one.id, feeds, np.asarray(served), self._original.run(feeds))
                rows.append(self._judged(answered))
            except Exception as error:  # redacted, or a client's own mistake that was answered all the same
                left_out += 1
                self.tell(f"request {one.id} cannot be compared", error)
        return joined([*rows, {COUNT: np.array(left_out)}])

    def tell(self, what: str, error: Exception) -> None:
        """Print what could not be done, once for each reason."""
        reason = f"{type(error).__name__}: {error}"
        if reason not in self._told and len(self._told) < REASONS:
            self._told.add(reason)
            print(f"{what}: {reason}", file=sys.stderr)

    def _holds_samples(self, one: request_log.Exchange) -> bool:
        """Whether it was asked with raw samples, rather than with what the network takes.

        Of a network with an input of that name it is told by the answer.
        """
        if one.inputs.keys() != {SAMPLES}:
            return False
        return SAMPLES not in self._inputs or PREDICTIONS in one.outputs.keys() - self._outputs

    def _rows(self, identity: str, feeds: Arrays, served: np.ndarray, outputs: Arrays) -> Arrays:
        """All but whether they agree: of outputs, which may be large, nothing is kept but what is watched."""
        original = self._model.postprocess(outputs)
        count = len(original)
        if len(served) != count:
            raise ValueError(f"{len(served)} predictions for {count} samples")
        return {
            "id": np.full(count, identity),
            "row": np.arange(count),
            "served": np.array(served),
            "original": np.array(original),  # which may be a view of all outputs
            **{f"{FEATURE}{name}": column for name, column in self._features(feeds, outputs).items()},
        }

    def _judged(self, rows: Arrays) -> Arrays:
        """With whether they agree, as a file without pickles holds them."""
        predictions = {name: self._storable(rows[name]) for name in ("served", "original")}
        return {**rows, **predictions, "agrees": self._agree(rows["served"], rows["original"])}

    def _storable(self, predictions: np.ndarray) -> np.ndarray:
        """Of one kind in all files: objects, and rows whose widths differ in the reference, as texts, of JSON
        where they are none. Raises: ValueError where rows have one width there, and these another."""
        if len(self._shapes) == 1 and predictions.shape[1:] not in self._shapes:
            (known,) = self._shapes
            raise ValueError(
                f"predictions of shape {predictions.shape[1:]}, not {known} as of calibration data"
            )
        if len(self._shapes) > 1 or predictions.dtype == object:
            return np.array(
                [one if isinstance(one, str) else json.dumps(one) for one in predictions.tolist()]
            )
        return predictions

    def _features(self, feeds: Arrays, outputs: Arrays) -> Arrays:
        found = drift.features(feeds, int(self._watched["features"]))
        if (count := int(self._watched["projections"])) and (rows := self._embedded(outputs)).shape[1]:
            found |= drift.projections(rows, count)
        return found

    def _embedded(self, outputs: Arrays) -> np.ndarray:
        """What is projected, shape (n, width); of a network that gives no floats the width is 0."""
        embedding = self._watched["embedding"]
        chosen = [outputs[embedding]] if embedding else list(outputs.values())
        rows = [array.reshape(len(array), -1) for array in chosen if array.dtype.kind == "f"]
        return np.concatenate([np.empty((len(chosen[0]), 0), np.float32), *rows], axis=1)

    def _tell_where_none_is_a_number(self, reference: Arrays) -> None:
        missing = reference.get(f"{FEATURE}{drift.MISSING}")
        if missing is not None and (missing == 1).all():
            must = "embeddings must have values that are numbers in the calibration data"
            remedy = "Name another output in `input_drift.embedding`"
            self.tell("embeddings are not watched", InputError(must, "none is", remedy))

    def _agree(self, served: np.ndarray, original: np.ndarray) -> np.ndarray:
        """Row by row, shape (n,)."""
        near = float(self._watched["tolerance"]) * self._spread
        if len(self._shapes) > 1:
            return agreement.lists(served, original, near)
        if original.dtype.kind == "f" and served.dtype.kind not in TEXTS:
            same = agreement.near(served, original, near)
        else:
            same = _same_labels(served, original)
        return agreement.rows(same)


def _same_labels(served: np.ndarray, original: np.ndarray) -> np.ndarray:
    """Value by value. Neither is cast to the other's type, which would cut a longer text, or a fraction."""
    texts = [array.dtype.kind in TEXTS for array in (served, original)]
    if not any(texts):
        return np.asarray(served == original)
    served, original = served.astype(str), original.astype(str)
    if all(texts):
        return np.asarray(served == original)
    return np.asarray(np.vectorize(same_label, otypes=[bool])(served, original))


def follow(
    package: str,
    original: str,
    backend: Mapping[str, Any],
    calibration: str,
    requests: str,
    into: str,
    model: str,
    version: str,
    watched: Mapping[str, Any],
    max_drop: float | None = None,
) -> None:
    """Compare what is kept, for ever, in a folder that is there. What was compared before is done.

    `watched` is `features`, `projections`, `embedding`, `tolerance` and `keep_days`.
    """
    folder = Path(into)
    answers = Answers(folder)
    unread = Unread(Path(requests), answers.done())
    comparison = Comparison(package, original, backend, watched)
    reference = comparison.reference(read_feeds(Path(calibration)))
    _write(folder / REFERENCE, reference | ({} if max_drop is None else {MAX_DROP: np.array(max_drop)}))
    forgotten = 0.0
    while True:
        for path in unread.new():
            rows = comparison.live(_of(path, model, version, comparison.tell))
            _write(folder / path.name, rows)
            answers.add(rows, path.name)
        if time.monotonic() - forgotten > _FORGET_S:
            answers.forget(float(watched["keep_days"]))
            forgotten = time.monotonic()
        time.sleep(POLL_S)


def make_private(folder: Path) -> None:
    """Make a folder, or one of ours that is there, its owner's alone: rows hold what requests held."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid == os.geteuid():
        folder.chmod(0o700)


class Unread:
    """The files of a request log, each once; `done` is the name of the last one that was read before.

    Names tell the time, and the clock may be set back: what is new then is not what has the highest name, but
    what was not there at the look before.
    """

    def __init__(self, folder: Path, done: str) -> None:
        self._folder = folder
        self._since, ahead = (request_log.name_of(time.time() + s) for s in (-BACK_S, AHEAD_S))
        there = (path.name for path in request_log.files(folder, after=self._since))
        self._seen = {name for name in there if name <= done or name > ahead}

    def new(self) -> list[Path]:
        """What came since the look before, the oldest first."""
        since = request_log.name_of(time.time() - BACK_S)
        there = request_log.files(self._folder, after=min(since, self._since))
        found = [path for path in there if path.name > self._since and path.name not in self._seen]
        self._since, self._seen = since, {path.name for path in there}
        return found


def results(folder: Path) -> list[Path]:
    """The files of compared requests, the oldest first."""
    return sorted(folder.glob(f"[0-9]*{request_log.SUFFIX}"), key=lambda path: path.name)


def _of(
    path: Path, model: str, version: str, tell: Callable[[str, Exception], None]
) -> Iterator[request_log.Exchange]:
    """The exchanges of one version; none of a file that is damaged, or was removed meanwhile."""
    try:
        found = list(request_log.exchanges(path))
    except (OSError, ValueError) as error:
        tell(f"{path} cannot be read", error)
        return
    yield from (one for one in found if (one.model, one.version) == (model, version))


def joined(rows: Sequence[Arrays]) -> Arrays:
    """Row after row; features that not all have (inputs of other shapes) are left out. Counts are summed."""
    counts = {COUNT: np.array(sum(int(one.get(COUNT, 0)) for one in rows))}
    full = [one for one in rows if "id" in one]
    names = [name for name in full[0] if all(name in one for one in full)] if full else []
    return counts | {name: np.concatenate([one[name] for one in full]) for name in names if name != COUNT}


def _write(path: Path, arrays: Arrays) -> None:
    partial = path.with_name(f".{path.name}")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    partial.replace(path)
